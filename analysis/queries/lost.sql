-- Events that were lost, by probe and reason, and when
SELECT probe,
       reason,
       sum(count)::BIGINT AS lost,
       count(DISTINCT mm) AS "address spaces",
       round((min(since)::HUGEINT - min(started)) / 1e9, 6) AS since,
       round((max(until)::HUGEINT - min(started)) / 1e9, 6) AS until
FROM losses
CROSS JOIN recording
GROUP BY probe, reason
ORDER BY lost DESC, probe, reason
