-- Where vm_flags changed, and under which lock
--
-- Several probes may see one change, one inside the other: report has it
-- once.
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
