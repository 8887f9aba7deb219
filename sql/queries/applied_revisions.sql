-- How many nodes have applied which schema changes, in which revisions.
-- name: histories
SELECT n.schema_changes::text AS schema_changes, count(*) AS nodes FROM nodes AS n
WHERE n.removed_at IS NULL AND n.schema_version > 0 GROUP BY n.schema_changes::text;

-- The changes that have several revisions, and the newest of each.
-- name: amended
SELECT number, max(revision) AS revision FROM schema_changes GROUP BY number HAVING max(revision) > 1;
