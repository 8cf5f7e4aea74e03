-- VMAs with the tag and without a page of a CDM node
--
-- At the end of the recording, or just before their address space ended.
SELECT pid, comm, start, "end", policy, flags
FROM vmas
WHERE tagged AND pages = 0
ORDER BY pid, start
