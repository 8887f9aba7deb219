-- What one replica at a time does by the clock: states, warnings, expired syncs, retention.

-- Take or keep the lease; answers a row when it is held.
-- name: take_lease
INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR leases.expires_at <= $4
RETURNING name;

-- Give the leases back.
-- name: drop_leases
DELETE FROM leases WHERE holder = $1;

-- Nodes that count as online and were not seen since a time.
-- name: unseen
SELECT n.id::text FROM nodes AS n JOIN node_presence AS p ON p.node_id = n.id
WHERE n.removed_at IS NULL AND n.state = 'online' AND COALESCE(p.last_seen_at, n.joined_at) < $1 LIMIT $2;

-- Nodes that count as offline and were seen since a time.
-- name: seen_again
SELECT n.id::text FROM nodes AS n JOIN node_presence AS p ON p.node_id = n.id
WHERE n.removed_at IS NULL AND n.state = 'offline' AND p.last_seen_at >= $1 LIMIT $2;

-- Change the state of nodes that are still in the one that they were read in.
-- name: change_states
UPDATE nodes SET state = $3, state_since = $4 WHERE id = ANY($1::text[]::uuid[]) AND state = $2;

-- Nodes without the warning that were not confirmed at target since a time.
-- name: overdue
SELECT n.id::text AS id, GREATEST(n.synced_at, p.last_sync_at, n.joined_at) AS confirmed_at
FROM nodes AS n JOIN node_presence AS p ON p.node_id = n.id
WHERE n.removed_at IS NULL AND GREATEST(n.synced_at, p.last_sync_at, n.joined_at) < $1
    AND NOT EXISTS (SELECT 1 FROM warnings AS w WHERE w.node_id = n.id AND w.kind = 'overdue' AND w.cleared_at IS NULL)
LIMIT $2;

-- Open warnings whose nodes were confirmed since a time, or were removed.
-- name: overdue_no_more
SELECT w.id::text FROM warnings AS w JOIN nodes AS n ON n.id = w.node_id JOIN node_presence AS p ON p.node_id = n.id
WHERE w.kind = 'overdue' AND w.cleared_at IS NULL
    AND (n.removed_at IS NOT NULL OR GREATEST(n.synced_at, p.last_sync_at, n.joined_at) >= $1)
LIMIT $2;

-- Warn of nodes; one element of each array a node.
-- name: warn
INSERT INTO warnings (id, node_id, kind, message, since)
SELECT u.id::uuid, u.node_id::uuid, 'overdue', u.message, $4
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, node_id, message)
ON CONFLICT (node_id, kind) WHERE cleared_at IS NULL DO NOTHING;

-- Clear warnings.
-- name: clear_warnings
UPDATE warnings SET cleared_at = $2 WHERE id = ANY($1::text[]::uuid[]) AND cleared_at IS NULL;

-- Open syncs whose lease has passed.
-- name: expired
SELECT id::text AS id, node_id::text AS node_id, generation, step, lease_until
FROM syncs WHERE status = 'running' AND lease_until <= $1 ORDER BY lease_until LIMIT $2;

-- The log of syncs is kept for a time.
-- name: old_syncs
DELETE FROM syncs WHERE id IN (SELECT s.id FROM syncs AS s WHERE s.started_at < $1 AND s.status <> 'running' LIMIT $2);

-- The record of refused authentications is kept for a time.
-- name: old_auth_failures
DELETE FROM auth_failures WHERE (minute, address, reason) IN
    (SELECT f.minute, f.address, f.reason FROM auth_failures AS f WHERE f.minute < $1 LIMIT $2);

-- The audit log is kept for a time.
-- name: old_audit
DELETE FROM audit WHERE id IN (SELECT a.id FROM audit AS a WHERE a.at < $1 LIMIT $2);

-- Warnings that were cleared are kept for a time.
-- name: old_warnings
DELETE FROM warnings WHERE id IN (SELECT w.id FROM warnings AS w WHERE w.cleared_at < $1 LIMIT $2);

-- Answers under an idempotency key are kept for a day.
-- name: old_idempotency
DELETE FROM idempotency WHERE (operator, key) IN
    (SELECT i.operator, i.key FROM idempotency AS i WHERE i.created_at < $1 LIMIT $2);

-- Join tokens are forgotten some time after they have expired.
-- name: old_join_tokens
DELETE FROM join_tokens WHERE id IN (SELECT t.id FROM join_tokens AS t WHERE t.expires_at < $1 LIMIT $2);
