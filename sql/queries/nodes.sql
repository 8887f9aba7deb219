-- Take the next generation.
-- name: take_generation
UPDATE generations SET generation = generation + 1 WHERE id = 1 RETURNING generation;

-- Whether the node has used a credential that was made since a time.
-- name: credential_used
SELECT EXISTS (
    SELECT 1 FROM credentials WHERE node_id = $1 AND created_at >= $2 AND first_used_at IS NOT NULL
);

-- Add a credential, which may replace another one.
-- name: add_credential
INSERT INTO credentials (id, node_id, secret_hash, created_at, replaces) VALUES ($1, $2, $3, $4, $5);

-- Revoke all credentials of a node.
-- name: revoke_credentials
UPDATE credentials SET revoked_at = $2 WHERE node_id = $1 AND revoked_at IS NULL RETURNING id::text AS id;

-- Revoke the credentials of a node that were never used, except one.
-- name: revoke_unused
UPDATE credentials SET revoked_at = $3
WHERE node_id = $1 AND id <> $2 AND revoked_at IS NULL AND first_used_at IS NULL
RETURNING id::text AS id;

-- A node by its name.
-- name: find_by_name
SELECT id FROM nodes WHERE name = $1;

-- A node's name and group, as a join returns them.
-- name: name_and_group
SELECT n.name, g.name AS group_name, n.removed_at FROM nodes n JOIN groups g ON g.id = n.group_id WHERE n.id = $1;

-- Add a node.
-- name: add
INSERT INTO nodes (id, name, labels, capabilities, protocol, group_id, state, state_since, joined_at)
VALUES ($1, $2, $3, $4, $5, $6, 'online', $7, $7);

-- Add a node's presence: it was seen for the first time.
-- name: add_presence
INSERT INTO node_presence (node_id, last_seen_at, confirmed_at) VALUES ($1, $2, $2);

-- Reset the presence of a node that has joined again, so that it isn't overdue at once.
-- name: rejoin_presence
UPDATE node_presence SET last_seen_at = $2, confirmed_at = $2, offline = false WHERE node_id = $1;

-- Reset a node that has joined again: its new disk is empty. Without labels it keeps those that it has.
-- name: rejoin
UPDATE nodes SET labels = CASE WHEN $2::jsonb = '{}' THEN labels ELSE $2 END, capabilities = $3, protocol = $4, joined_at = $5, schema_version = 0,
    schema_changes = '[]', database_id = '', digest = '', confirmed_generation = 0, failed_generation = 0,
    retry_at = NULL, error_code = '', error_message = '', error_at = NULL, capabilities_digest = '', ran_generation = 0,
    state = 'online',
    state_since = CASE WHEN state = 'online' THEN state_since ELSE $5 END
WHERE id = $1;

-- Forget the functions that a node reported.
-- name: forget_functions
DELETE FROM node_functions WHERE node_id = $1;

-- Whether two processes poll as a node in turn.
-- name: is_cloned
SELECT cloned FROM node_presence WHERE node_id = $1;

-- Lock a node.
-- name: lock
SELECT id FROM nodes WHERE id = $1 FOR NO KEY UPDATE;

-- Move a node to a group.
-- name: move
UPDATE nodes SET group_id = $2, generation = $3, release_id = NULL, moved_generation = NULL WHERE id = $1;

-- Let a node try its failed generation again at once.
-- name: retry
UPDATE nodes SET retry_at = NULL, failed_generation = 0 WHERE id = $1;

-- Remove a node; its name can be used again.
-- name: remove
UPDATE nodes SET removed_at = $2, name = name || '~' || id::text, state = 'offline', state_since = $2, release_id = NULL,
    restore_id = NULL
WHERE id = $1;

-- Record that no credential of a node is valid any more.
-- name: set_revoked
UPDATE nodes SET state = 'revoked', state_since = $2 WHERE id = $1 AND state <> 'revoked';

-- End the open sync of a node without a result.
-- name: end_syncs
UPDATE syncs SET status = 'superseded', ended_at = $2 WHERE node_id = $1 AND status = 'running';

-- Clear the warnings of a node.
-- name: clear_warnings
UPDATE warnings SET cleared_at = $2 WHERE node_id = $1 AND cleared_at IS NULL;

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
