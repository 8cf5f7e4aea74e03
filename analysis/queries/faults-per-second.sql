-- Second by second, the faults that mapped pages of CDM nodes
SELECT floor(since_start)::BIGINT AS second,
       count(*) AS faults,
       sum(size // page_size)::BIGINT AS pages,
       count(DISTINCT mm) AS processes
FROM events
CROSS JOIN recording
WHERE kind = 'map' AND list_contains(cdm_nodes, node)
GROUP BY second
ORDER BY second
