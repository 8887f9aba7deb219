-- What the nodes of a group told of what they can run: of those that told the same, the first by name and their number.
-- name: told
SELECT t.abi, t.manifest, t.nodes, t.name
FROM (
    SELECT u.abi, u.manifest, u.name, count(*) OVER (PARTITION BY u.abi, u.manifest) AS nodes,
        row_number() OVER (PARTITION BY u.abi, u.manifest ORDER BY u.name) AS place
    FROM (
        SELECT n.name, coalesce((n.capabilities -> 'abi')::text, 'null') AS abi,
            coalesce((n.capabilities -> 'manifest')::text, 'null') AS manifest
        FROM nodes n JOIN groups g ON g.id = n.group_id
        WHERE g.name = $1 AND n.removed_at IS NULL
    ) AS u
) AS t
WHERE t.place <= $2 ORDER BY t.abi, t.manifest, t.name;

-- What a node told.
-- name: told_by
SELECT name, capabilities FROM nodes WHERE id = $1;

-- The manifests of a group's release.
-- name: manifests
SELECT f.name, v.manifest
FROM groups g JOIN release_functions f ON f.release_id = g.release_id
    JOIN function_versions v ON v.name = f.name AND v.version = f.version
WHERE g.id = $1;
