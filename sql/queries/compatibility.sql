-- Revoked nodes get no release, so what they can run keeps none from being made.

-- The next digest after $2 of nodes' capabilities in a group, with the capabilities; there are few digests.
-- name: next_capabilities
SELECT capabilities_digest AS digest, capabilities FROM nodes
WHERE group_id = $1::text::uuid AND capabilities_digest > $2 AND removed_at IS NULL AND state <> 'revoked'
ORDER BY capabilities_digest LIMIT 1;

-- The first nodes of a group by name that have capabilities with this digest, and how many there are.
-- name: with_digest
SELECT n.name, (
    SELECT count(*) FROM nodes AS m
    WHERE m.group_id = $1::text::uuid AND m.capabilities_digest = $2 AND m.removed_at IS NULL AND m.state <> 'revoked'
) AS nodes
FROM nodes AS n
WHERE n.group_id = $1::text::uuid AND n.capabilities_digest = $2 AND n.removed_at IS NULL AND n.state <> 'revoked'
ORDER BY n.name LIMIT $3;

-- Capabilities that nodes of a group sent without a digest, as they do when they join: for each, the first nodes by
-- name, and how many there are.
-- name: without_digest
SELECT t.capabilities, t.nodes, t.name
FROM (
    SELECT u.capabilities, u.name, count(*) OVER (PARTITION BY u.capabilities) AS nodes,
        row_number() OVER (PARTITION BY u.capabilities ORDER BY u.name) AS place
    FROM (
        SELECT n.name, n.capabilities::text AS capabilities FROM nodes AS n
        WHERE n.group_id = $1::text::uuid AND n.capabilities_digest = '' AND n.removed_at IS NULL
            AND n.state <> 'revoked'
    ) AS u
) AS t
WHERE t.place <= $2 ORDER BY t.capabilities, t.name;

-- A node's capabilities.
-- name: node_capabilities
SELECT name, schema_version, capabilities FROM nodes WHERE id = $1;

-- The schema changes above one number, up to another, that have steps.
-- name: stepped
SELECT n.number FROM (
    SELECT DISTINCT ON (number) number, sql FROM schema_changes
    WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC
) AS n
WHERE n.sql LIKE '%-- skerry: %' ORDER BY n.number;

-- The floor of a group's release, 0 without one.
-- name: floor
SELECT coalesce(max(r.schema_floor), 0) FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE g.id = $1;

-- The manifests of a group's release.
-- name: manifests
SELECT f.name, v.manifest
FROM groups g JOIN release_functions f ON f.release_id = g.release_id
    JOIN function_versions v ON v.name = f.name AND v.version = f.version
WHERE g.id = $1;
