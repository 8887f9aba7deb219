-- Which nodes trust which CAs. Revoked ones don't count: they can't learn of any until they join again.

-- How many nodes there are in these groups (NULL: in all), and how many of them trust what $1 says.
-- name: counts
SELECT count(*) AS nodes, count(*) FILTER (WHERE coalesce(m.trust, '') = $1) AS have
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id LEFT JOIN node_numbers AS m ON m.node_id = n.id
WHERE n.removed_at IS NULL AND n.state <> 'revoked' AND ($2::text[] IS NULL OR g.name = ANY($2::text[]));

-- The nodes that trust something else, or said nothing yet, by name.
-- name: lacking
SELECT n.name, n.state, coalesce(m.trust, '') AS trust, m.told_at
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id LEFT JOIN node_numbers AS m ON m.node_id = n.id
WHERE n.removed_at IS NULL AND n.state <> 'revoked' AND ($2::text[] IS NULL OR g.name = ANY($2::text[])) AND coalesce(m.trust, '') <> $1
ORDER BY n.name LIMIT $3;
