-- Pages that came to CDM nodes, by way and node
--
-- A page that was migrated came by the system call around it, or else by what
-- its stack says. What a child has by fork is not told page by page, and not
-- counted.
WITH cdm AS (
    SELECT unnest(cdm_nodes) AS node, page_size FROM recording
), calls AS (
    SELECT DISTINCT tid, call, replace(probe, 'sys_', '') AS way
    FROM events
    WHERE kind IN ('call', 'call_open')
      AND probe IN ('sys_mbind', 'sys_move_pages', 'sys_migrate_pages')
)
SELECT CASE WHEN e.kind = 'migrate' AND calls.way IS NOT NULL THEN calls.way
            ELSE replace(e.cause, '_', '-')
       END AS way,
       cdm.node,
       sum(e.size // cdm.page_size)::BIGINT AS pages,
       count(DISTINCT e.mm) AS processes
FROM events e
JOIN cdm ON e.node = cdm.node AND e.src_node IS DISTINCT FROM e.node
LEFT JOIN calls ON calls.tid = e.tid AND calls.call = e.call
WHERE e.kind IN ('map', 'migrate', 'collapse') AND e.mm IS NOT NULL
GROUP BY ALL
ORDER BY pages DESC, way, cdm.node
