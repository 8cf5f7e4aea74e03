-- From a VMA's policy to its first page of a CDM node
--
-- Empty where none came until the VMA got another policy.
WITH policies AS (
    SELECT *,
           lead(seq) OVER (PARTITION BY mm, start ORDER BY seq) AS next_policy
    FROM events
    WHERE kind = 'policy' AND ret = 0
), pages AS (
    SELECT e.*
    FROM events e, recording
    WHERE e.kind IN ('map', 'migrate', 'collapse')
      AND list_contains(cdm_nodes, e.node)
)
SELECT any_value(p.pid) AS pid,
       any_value(p.start) AS start,
       any_value(p."end") AS "end",
       any_value(p.policy) AS policy,
       any_value(p.probe) AS "set in",
       arg_min(page.kind, page.seq) AS "first page",
       round((min(page.ts) - any_value(p.ts)) / 1e3, 3) AS microseconds
FROM policies p
LEFT JOIN pages page
    ON page.mm = p.mm AND page.seq > p.seq
    AND page.addr >= p.start AND page.addr < p."end"
    AND (p.next_policy IS NULL OR page.seq < p.next_policy)
WHERE p.policy NOT IN ('DEFAULT', 'LOCAL')
GROUP BY p.seq
ORDER BY p.seq
