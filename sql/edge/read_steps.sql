SELECT number, step, name, checksum, stage, target, key, sql, "after", start, bound, done
FROM _skerry_steps ORDER BY number, step
