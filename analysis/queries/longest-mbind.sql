-- The twenty mbind() calls that took longest
SELECT round(since_start, 6) AS seconds,
       pid,
       comm,
       start,
       "end",
       other_policy AS policy,
       ret,
       round((ts - ts_entry) / 1e3, 3) AS microseconds
FROM events
WHERE kind = 'call' AND probe = 'sys_mbind'
ORDER BY ts - ts_entry DESC, seq
LIMIT 20
