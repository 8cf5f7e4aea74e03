-- What check finds, by rule, cause and process
SELECT rule,
       name,
       severity,
       cause,
       comm,
       count(*) AS findings,
       sum(count)::BIGINT AS times,
       min(fingerprint) AS id
FROM findings
GROUP BY ALL
ORDER BY findings DESC, rule, cause
