-- About how many rows the tables of nodes have, where a schema change holds writers up for each.

-- The nodes of groups that lack a change and have the most rows of a table, in lower case.
-- name: nodes
SELECT n.name, coalesce((c.estimates ->> $3::text)::int8, (c.counts ->> $3::text)::int8) AS rows
FROM nodes AS n JOIN node_row_counts AS c ON c.node_id = n.id
WHERE n.group_id = ANY($1::text[]::uuid[]) AND n.removed_at IS NULL AND n.schema_version < $2
    AND c.counts ->> $3::text IS NOT NULL
ORDER BY coalesce((c.estimates ->> $3::text)::int8, (c.counts ->> $3::text)::int8, 0) DESC, n.name LIMIT $4;

-- Roughly how many rows of a table one node has, 0 if it hasn't reported them.
-- name: of_node
SELECT coalesce(max(coalesce((estimates ->> $2::text)::int8, (counts ->> $2::text)::int8)), 0)
FROM node_row_counts WHERE node_id = $1;
