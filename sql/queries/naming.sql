-- Names and labels of nodes, and the end of groups.

-- Give a node another name.
-- name: rename
UPDATE nodes SET name = $2 WHERE id = $1;

-- Give the tokens with which a node may join again its new name.
-- name: rename_in_tokens
UPDATE join_tokens SET rejoin = $2 WHERE rejoin_node = $1 AND attempt IS NULL;

-- A node's labels.
-- name: labels
SELECT labels FROM nodes WHERE id = $1;

-- Give a node other labels.
-- name: label
UPDATE nodes SET labels = $2 WHERE id = $1;

-- Some nodes of a group.
-- name: nodes_of_group
SELECT name FROM nodes WHERE group_id = $1 AND removed_at IS NULL ORDER BY name LIMIT $2;

-- Some join tokens with which nodes could still join a group.
-- name: tokens_of_group
SELECT id::text FROM join_tokens
WHERE group_id = $1 AND attempt IS NULL AND revoked_at IS NULL AND expires_at > $2
    AND (rejoin IS NULL OR rejoin_node IS NOT NULL)
ORDER BY created_at LIMIT $3;

-- Some operators with tokens that are good, who have a grant for a group of this name.
-- name: operators_of_group
SELECT name FROM operators
WHERE revoked_at IS NULL AND issuer IS NULL AND (expires_at IS NULL OR expires_at > $2) AND grants IS NOT NULL
    AND EXISTS (SELECT 1 FROM jsonb_array_elements(grants) AS g (item) WHERE g.item ->> 'group' = $1)
ORDER BY name LIMIT $3;

-- Delete a group; its name can be used again.
-- name: delete_group
UPDATE groups SET deleted_at = $2, release_id = NULL, name = name || '~' || id::text WHERE id = $1;
