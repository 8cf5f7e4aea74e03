-- The stacks that allocated most pages of CDM nodes
SELECT sum(size // page_size)::BIGINT AS pages,
       count(*) AS allocations,
       replace(stack, ';', ' < ') AS stack
FROM events
CROSS JOIN recording
WHERE kind = 'alloc' AND list_contains(cdm_nodes, node)
GROUP BY stack
ORDER BY pages DESC, stack
LIMIT 20
