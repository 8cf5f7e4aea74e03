-- System calls that failed, by errno
SELECT probe,
       -ret AS errno,
       comm,
       count(*) AS calls,
       round(min(since_start), 6) AS first
FROM events
WHERE kind = 'call' AND ret < 0
GROUP BY ALL
ORDER BY calls DESC, first
