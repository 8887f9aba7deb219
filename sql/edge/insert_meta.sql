INSERT OR IGNORE INTO _skerry_meta (id, database_id, format, created_at) VALUES (1, ?, ?, ?)
