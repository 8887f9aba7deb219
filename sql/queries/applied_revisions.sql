-- How many nodes have applied which schema changes, in which revisions.
-- name: versions
SELECT schema_version, count(*) AS nodes FROM nodes WHERE removed_at IS NULL GROUP BY schema_version;

-- How many nodes have applied which revision of a change. A node's changes are in their order, without a gap.
-- name: revisions
SELECT (n.schema_changes -> ($1::int8 - 1)::int4 ->> 'revision')::int8 AS revision, count(*) AS nodes
FROM nodes AS n
WHERE n.schema_version >= $1::int8 AND n.removed_at IS NULL
GROUP BY (n.schema_changes -> ($1::int8 - 1)::int4 ->> 'revision')::int8;

-- The changes that have several revisions, and the newest of each.
-- name: amended
SELECT number, max(revision) AS revision FROM schema_changes GROUP BY number HAVING max(revision) > 1;
