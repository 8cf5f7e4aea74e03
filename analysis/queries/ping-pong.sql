-- Pages that moved from node to node more than once
--
-- A page is known by its address: one that is mapped there anew is another.
WITH stays AS (
    SELECT *,
           count(*) FILTER (kind = 'map')
               OVER (PARTITION BY mm, addr ORDER BY seq) AS stay
    FROM events
    WHERE kind IN ('map', 'migrate') AND mm IS NOT NULL
)
SELECT any_value(pid) AS pid,
       addr,
       count(*) AS moves,
       concat_ws(
           ' > ',
           coalesce(arg_min(src_node, seq)::VARCHAR, '?'),
           string_agg(node::VARCHAR, ' > ' ORDER BY seq)
       ) AS route,
       round(max(since_start) - min(since_start), 6) AS seconds
FROM stays
WHERE kind = 'migrate' AND src_node IS DISTINCT FROM node
GROUP BY mm, addr, stay
HAVING count(*) > 1
ORDER BY moves DESC, mm, addr
