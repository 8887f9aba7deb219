-- How long schema changes would hold writers of nodes up.

-- The id of a group.
-- name: group
SELECT id::text FROM groups WHERE name = $1;

-- Schema changes behind the floor of a group's release that have statements which hold writers up.
-- name: changes
SELECT n.number, n.stalls FROM (
    SELECT DISTINCT ON (number) number, stalls FROM schema_changes
    WHERE number > (
        SELECT coalesce(max(r.schema_floor), 0)
        FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE g.name = $1
    )
    ORDER BY number, revision DESC
) AS n
WHERE n.stalls IS NOT NULL AND n.stalls <> '[]'::jsonb ORDER BY n.number;

-- The nodes of a group that lack a change and have the most rows of a table, in lower case.
-- name: nodes
SELECT n.name, coalesce((c.estimates ->> $3::text)::int8, (c.counts ->> $3::text)::int8) AS rows
FROM nodes AS n JOIN node_row_counts AS c ON c.node_id = n.id
WHERE n.group_id = $1::text::uuid AND n.removed_at IS NULL AND n.schema_version < $2 AND c.counts ->> $3::text IS NOT NULL
ORDER BY coalesce((c.estimates ->> $3::text)::int8, (c.counts ->> $3::text)::int8, 0) DESC, n.name LIMIT $4;
