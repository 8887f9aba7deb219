-- How many rows nodes have reported, for schema changes that can lose some.

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

-- The rows of a table of one node, -1 if it hasn't reported them.
-- name: of_node
SELECT coalesce(max((counts ->> $2::text)::int8), -1) FROM node_row_counts WHERE node_id = $1;

-- Keep what a node tells.
-- name: tell
INSERT INTO node_row_counts (node_id, counts, told_at, estimates) VALUES ($1, $2, $3, $4)
ON CONFLICT (node_id) DO UPDATE SET
    counts = excluded.counts, told_at = excluded.told_at, estimates = excluded.estimates;
