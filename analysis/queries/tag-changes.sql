-- Each row in which the tag of a VMA came or went
SELECT round(since_start, 6) AS seconds,
       pid,
       comm,
       start,
       "end",
       if(flags_after & vm_cdm_mask = 0, 'went', 'came') AS tag,
       kind,
       probe,
       lock_entry AS lock,
       split_part(stack, ';', 1) AS "inside"
FROM events
CROSS JOIN recording
-- Of a fork they are the parent's and the child's.
WHERE (flags_before & vm_cdm_mask) <> (flags_after & vm_cdm_mask)
  AND kind <> 'copy'
ORDER BY seq
