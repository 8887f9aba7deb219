INSERT INTO _skerry_schema (type, name, digest) VALUES (?, ?, ?)
