-- What the witnesses of findings did, with their stacks
SELECT f.finding,
       f.rule,
       round(e.since_start, 6) AS seconds,
       w.what,
       e.lock_entry AS lock,
       replace(e.stack, ';', ' < ') AS stack
FROM witnesses w
JOIN findings f USING (finding)
JOIN events e ON e.seq = w.seq
ORDER BY f.finding, w.step
