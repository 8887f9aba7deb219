-- Nodes' own releases, which take the place of their groups': a rollout starts some nodes with them.

-- Lock those of these nodes that are in a release's group.
-- name: lock
SELECT n.id::text AS id FROM nodes AS n JOIN releases AS r ON r.group_id = n.group_id
WHERE r.id = $1::uuid AND n.id = ANY($2::text[]::uuid[]) AND n.removed_at IS NULL
ORDER BY n.id FOR NO KEY UPDATE OF n;

-- Give nodes a release of their own by a generation, and record the step of its rollout that starts them.
-- name: start
WITH started AS (
    UPDATE nodes SET release_id = $1::uuid, generation = $4::int8,
        moved_generation = coalesce(nodes.moved_generation, nodes.generation)
    WHERE id = ANY($2::text[]::uuid[]) RETURNING id
)
INSERT INTO rollout_nodes (release_id, node_id, step, generation, started_at)
SELECT $1::uuid, s.id, $3::int8, $4::int8, $5::timestamptz FROM started AS s
ON CONFLICT (release_id, node_id) DO UPDATE
SET step = excluded.step, generation = excluded.generation, started_at = excluded.started_at;

-- Lock the nodes that have a release of their own as their target, and don't run it.
-- name: lock_unreached
SELECT n.id::text AS id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
WHERE n.release_id = $1::uuid AND n.generation > g.generation AND n.confirmed_generation < n.generation
ORDER BY n.id FOR NO KEY UPDATE OF n;

-- Make the group's release the target of nodes again, by a generation; their rollout hasn't started them.
-- name: give_back
WITH given AS (
    UPDATE nodes SET release_id = NULL, generation = $3::int8,
        moved_generation = coalesce(nodes.moved_generation, nodes.generation)
    WHERE id = ANY($2::text[]::uuid[]) RETURNING id
)
DELETE FROM rollout_nodes WHERE release_id = $1::uuid AND node_id IN (SELECT g.id FROM given AS g);

-- A node's own release.
-- name: own_of
SELECT release_id FROM nodes WHERE id = $1::uuid;

-- Lock a group.
-- name: lock_group
SELECT id FROM groups WHERE id = $1::uuid FOR NO KEY UPDATE;

-- Lock the nodes of a group whose generation isn't that of their last move.
-- name: lock_owners
SELECT id::text AS id FROM nodes
WHERE group_id = $1::uuid AND (release_id IS NOT NULL OR moved_generation IS NOT NULL)
ORDER BY id FOR NO KEY UPDATE;

-- Make a release the target of its group by a generation, which becomes the release's.
-- name: to_group
WITH released AS (
    UPDATE releases SET generation = $3::int8 WHERE id = $1::uuid RETURNING id
)
UPDATE groups SET release_id = r.id, generation = $3::int8 FROM released AS r WHERE groups.id = $2::uuid;

-- Leave nodes without a release of their own. Their group gets a newer generation than any of theirs.
-- name: clear
UPDATE nodes SET release_id = NULL, generation = coalesce(nodes.moved_generation, nodes.generation),
    moved_generation = NULL
WHERE id = ANY($1::text[]::uuid[]);

-- Whether there is a replica, whose mark is kept until later than $1, of a version that doesn't know own releases.
-- name: unknown_to_some
SELECT EXISTS (SELECT 1 FROM leases WHERE name LIKE 'mark %' AND expires_at > $1 AND NOT own_targets);
