-- Add a group.
-- name: add
INSERT INTO groups (id, name, created_at) VALUES ($1, $2, $3);

-- Groups with their release and the number of their nodes, by name, after a name; of these names ($2), if given.
-- name: groups
SELECT g.name, g.generation, g.release_id, r.number, r.schema_floor,
    (SELECT count(*) FROM nodes n WHERE n.group_id = g.id AND n.removed_at IS NULL) AS nodes, g.policy, g.backup
FROM groups g LEFT JOIN releases r ON r.id = g.release_id
WHERE g.deleted_at IS NULL AND g.name > $1 AND ($2::text[] IS NULL OR g.name = ANY($2::text[]))
ORDER BY g.name LIMIT $3;

-- Lock a group, and read its policy.
-- name: policy
SELECT id, policy FROM groups WHERE name = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- Set the policy of a group; NULL: it has none.
-- name: set_policy
UPDATE groups SET policy = $2 WHERE id = $1;

-- Lock a group, and read how its nodes are backed up.
-- name: backup
SELECT id, backup FROM groups WHERE name = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- Set how the nodes of a group are backed up; NULL: they aren't.
-- name: set_backup
UPDATE groups SET backup = $2 WHERE id = $1;

-- Some nodes of a group.
-- name: nodes
SELECT name FROM nodes WHERE group_id = $1 AND removed_at IS NULL ORDER BY name LIMIT $2;

-- Some join tokens with which nodes could still join a group.
-- name: join_tokens
SELECT id::text FROM join_tokens
WHERE group_id = $1 AND attempt IS NULL AND revoked_at IS NULL AND expires_at > $2
    AND (rejoin IS NULL OR rejoin_node IS NOT NULL)
ORDER BY created_at LIMIT $3;

-- Some operators with valid tokens, who have a grant for a group of this name.
-- name: operators
SELECT name FROM operators
WHERE revoked_at IS NULL AND issuer IS NULL AND (expires_at IS NULL OR expires_at > $2) AND grants IS NOT NULL
    AND EXISTS (SELECT 1 FROM jsonb_array_elements(grants) AS g (item) WHERE g.item ->> 'group' = $1)
ORDER BY name LIMIT $3;

-- Delete a group; its name can be used again.
-- name: delete
UPDATE groups SET deleted_at = $2, release_id = NULL, name = name || '~' || id::text WHERE id = $1;
