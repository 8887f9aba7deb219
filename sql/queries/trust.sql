-- Which nodes trust which CAs.

-- How many nodes there are in these groups (NULL: in all), and how many of them trust what $1 says.
-- name: counts
SELECT count(*) AS nodes, count(*) FILTER (WHERE m.trust = $1) AS have
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id LEFT JOIN node_numbers AS m ON m.node_id = n.id
WHERE n.removed_at IS NULL AND ($2::text[] IS NULL OR g.name = ANY($2::text[]));

-- The nodes that trust something else, or said nothing yet, by name.
-- name: lacking
SELECT n.name, n.state, coalesce(m.trust, '') AS trust, m.told_at
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id LEFT JOIN node_numbers AS m ON m.node_id = n.id
WHERE n.removed_at IS NULL AND ($2::text[] IS NULL OR g.name = ANY($2::text[])) AND coalesce(m.trust, '') <> $1
ORDER BY n.name LIMIT $3;
