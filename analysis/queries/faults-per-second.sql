-- Faults that mapped pages of CDM nodes, by the second
SELECT floor(since_start)::BIGINT AS second,
       count(*) AS faults,
       sum(size // page_size)::BIGINT AS pages,
       count(DISTINCT mm) AS processes
FROM events
CROSS JOIN recording
WHERE kind = 'map' AND list_contains(cdm_nodes, node)
GROUP BY second
ORDER BY second
