-- The newest revision of each change, by number, after a number.
-- name: changes
SELECT DISTINCT ON (number) number, revision, name, sql, checksum, created_by, created_at FROM schema_changes
WHERE number > $1 ORDER BY number, revision DESC LIMIT $2;

-- The newest revisions of a change, up to a number of them, the newest first.
-- name: revisions
SELECT number, revision, name, sql, checksum, created_by, created_at FROM schema_changes
WHERE number = $1 ORDER BY revision DESC LIMIT $2;

-- The number of each change and of its newest revision.
-- name: numbers
SELECT number, max(revision) AS revision FROM schema_changes GROUP BY number ORDER BY number;

-- Register a revision of a change.
-- name: add
INSERT INTO schema_changes (number, revision, name, sql, checksum, created_by, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING number, revision, name, sql, checksum, created_by, created_at;
