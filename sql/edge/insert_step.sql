INSERT INTO _skerry_steps (number, step, name, checksum, stage, target, key, sql, done)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)
