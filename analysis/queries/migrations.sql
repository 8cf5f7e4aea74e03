-- From which node to which pages moved, and by what
--
-- The system call around it, or else what the stack says. A page that two
-- processes map counts in both. What stayed on its node is left out.
WITH calls AS (
    SELECT DISTINCT tid, call, replace(probe, 'sys_', '') AS way
    FROM events
    WHERE kind IN ('call', 'call_open')
      AND probe IN ('sys_mbind', 'sys_move_pages', 'sys_migrate_pages')
)
SELECT e.src_node AS "from",
       e.node AS "to",
       coalesce(calls.way, replace(e.cause, '_', '-')) AS way,
       sum(e.size // page_size)::BIGINT AS pages
FROM events e
CROSS JOIN recording
LEFT JOIN calls ON calls.tid = e.tid AND calls.call = e.call
WHERE e.kind = 'migrate'
  AND e.mm IS NOT NULL
  AND e.src_node IS DISTINCT FROM e.node
GROUP BY ALL
ORDER BY pages DESC, "from", "to", way
