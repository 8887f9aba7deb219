-- What nodes can lose by a release, and how many rows they have told that they have.

-- Schema changes above one number, up to another, that can lose something.
-- name: changes
SELECT n.number, n.losses FROM (
    SELECT DISTINCT ON (number) number, losses FROM schema_changes
    WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC
) AS n
WHERE n.losses IS NOT NULL AND n.losses <> '[]'::jsonb ORDER BY n.number;

-- A group and the floor of its release.
-- name: group_floor
SELECT g.id::text AS id, coalesce(r.schema_floor, 0) AS schema_floor
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id WHERE g.name = $1;

-- The nodes of groups that have tables and lack a change, and the rows of a table, in lower case, that they have told.
-- name: rows
SELECT count(*) AS nodes, count(c.counts ->> $3::text) AS told, coalesce(sum((c.counts ->> $3::text)::int8), 0)::int8 AS rows
FROM nodes AS n LEFT JOIN node_row_counts AS c ON c.node_id = n.id
WHERE n.group_id = ANY($1::text[]::uuid[]) AND n.removed_at IS NULL AND n.schema_version > 0 AND n.schema_version < $2;

-- Those nodes with the most rows.
-- name: nodes
SELECT n.name, coalesce((c.counts ->> $3::text)::int8, -1) AS rows
FROM nodes AS n LEFT JOIN node_row_counts AS c ON c.node_id = n.id
WHERE n.group_id = ANY($1::text[]::uuid[]) AND n.removed_at IS NULL AND n.schema_version > 0 AND n.schema_version < $2
ORDER BY coalesce((c.counts ->> $3::text)::int8, -1) DESC, n.name LIMIT $4;

-- The groups whose releases include a change.
-- name: groups_with
SELECT g.id::text FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE r.schema_floor >= $1;

-- A node that is to be moved: its schema version, and its rows if it has told them.
-- name: moved
SELECT n.name, n.schema_version, c.counts
FROM nodes AS n LEFT JOIN node_row_counts AS c ON c.node_id = n.id WHERE n.id = $1;

-- The floor of a group's release.
-- name: floor
SELECT coalesce(max(r.schema_floor), 0) FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE g.id = $1;

-- Keep what a node tells.
-- name: tell
INSERT INTO node_row_counts (node_id, counts, told_at, estimates) VALUES ($1, $2, $3, $4)
ON CONFLICT (node_id) DO UPDATE SET
    counts = excluded.counts, told_at = excluded.told_at, estimates = excluded.estimates;
