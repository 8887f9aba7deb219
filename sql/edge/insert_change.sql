INSERT INTO _skerry_changes (number, revision, name, checksum, applied_at) VALUES (?, ?, ?, ?, ?)
