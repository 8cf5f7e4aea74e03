-- Where vm_flags changed, and under which lock
--
-- One change may be seen by several probes, one inside the other: report counts it once.
SELECT probe,
       kind,
       lock_entry AS "lock before",
       lock_exit AS "lock after",
       flags_before_names AS before,
       flags_after_names AS after,
       count(*) AS rows
FROM events
WHERE flags_before <> flags_after AND kind <> 'copy'
GROUP BY ALL
ORDER BY rows DESC, min(seq)
