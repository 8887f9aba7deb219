-- The monitor, which one replica at a time runs: states, warnings, expired syncs, deletion of old logs.

-- Take or renew a lease; returns a row if this replica then has it.
-- name: take_lease
INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR leases.expires_at <= $4
RETURNING name;

-- Which replica has a lease, and until when.
-- name: lease
SELECT holder, expires_at FROM leases WHERE name = $1;

-- Take the lease of a replica that hasn't renewed it; returns a row if this replica then has it.
-- name: take_over_lease
UPDATE leases SET holder = $2, expires_at = $3 WHERE name = $1 AND holder = $4 AND expires_at = $5 RETURNING name;

-- Give a replica's leases back.
-- name: drop_leases
DELETE FROM leases WHERE holder = $1;

-- Nodes that don't count as offline and were not seen since a time.
-- name: unseen
SELECT node_id::text AS id FROM node_presence WHERE offline = false AND last_seen_at < $1 LIMIT $2;

-- Nodes that count as offline and were seen since a time.
-- name: seen_again
SELECT node_id::text AS id FROM node_presence WHERE offline = true AND last_seen_at >= $1 LIMIT $2;

-- Lock the presence of nodes that count as online and weren't seen since a time, where no other transaction has locked
-- it.
-- name: lock_unseen
SELECT node_id::text AS id FROM node_presence
WHERE node_id = ANY($1::text[]::uuid[]) AND offline = false AND last_seen_at < $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Lock the presence of nodes that count as offline and were seen since a time, where no other transaction has locked
-- it.
-- name: lock_seen_again
SELECT node_id::text AS id FROM node_presence
WHERE node_id = ANY($1::text[]::uuid[]) AND offline = true AND last_seen_at >= $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Lock nodes that no other transaction has locked.
-- name: lock_free
SELECT id::text AS id, state, removed_at IS NOT NULL AS removed FROM nodes
WHERE id = ANY($1::text[]::uuid[]) FOR NO KEY UPDATE SKIP LOCKED;

-- Change the state of nodes.
-- name: change_states
UPDATE nodes SET state = $2, state_since = $3 WHERE id = ANY($1::text[]::uuid[]);

-- Make offline nodes revoked whose credentials have all been revoked: by a version that had no such state, or when who
-- may come in was read again after a restore.
-- name: find_revoked
UPDATE nodes SET state = 'revoked', state_since = coalesce(
    (SELECT max(c.revoked_at) FROM credentials AS c WHERE c.node_id = nodes.id), nodes.state_since
)
WHERE id IN (
    SELECT n.id FROM nodes AS n
    WHERE n.removed_at IS NULL AND n.state = 'offline'
        AND EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = n.id)
        AND NOT EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = n.id AND c.revoked_at IS NULL)
    LIMIT $1
)
RETURNING id::text AS id;

-- Make revoked nodes offline that have a good credential after all: it was read again after a restore.
-- name: find_good
UPDATE nodes SET state = 'offline', state_since = $1
WHERE id IN (
    SELECT n.id FROM nodes AS n
    WHERE n.removed_at IS NULL AND n.state = 'revoked'
        AND EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = n.id AND c.revoked_at IS NULL)
    LIMIT $2
)
RETURNING id::text AS id;

-- Set whether nodes count as offline.
-- name: set_offline
UPDATE node_presence SET offline = $2 WHERE node_id = ANY($1::text[]::uuid[]);

-- Nodes that don't count as overdue and were not confirmed at target since a time.
-- name: overdue
SELECT node_id::text AS id FROM node_presence WHERE overdue = false AND confirmed_at < $1 LIMIT $2;

-- Nodes that count as overdue and were confirmed since a time.
-- name: overdue_no_more
SELECT node_id::text AS id FROM node_presence WHERE overdue = true AND confirmed_at >= $1 LIMIT $2;

-- Lock the presence of nodes that don't count as overdue and weren't confirmed since a time, and the nodes, to which
-- warnings refer, where no other transaction has locked them.
-- name: lock_overdue
SELECT p.node_id::text AS id, p.confirmed_at,
    n.removed_at IS NOT NULL OR n.state = 'revoked' OR n.restore_id IS NOT NULL AS gone
FROM node_presence AS p JOIN nodes AS n ON n.id = p.node_id
WHERE p.node_id = ANY($1::text[]::uuid[]) AND p.overdue = false AND p.confirmed_at < $2
FOR NO KEY UPDATE OF p, n SKIP LOCKED;

-- Lock the presence of nodes that count as overdue and were confirmed since a time, where no other transaction has
-- locked it.
-- name: lock_overdue_no_more
SELECT node_id::text AS id FROM node_presence
WHERE node_id = ANY($1::text[]::uuid[]) AND overdue = true AND confirmed_at >= $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Nodes that don't count as cloned, and as which two processes have polled in turn since before a time, and after it.
-- name: crossing
SELECT node_id::text AS id FROM node_presence
WHERE cloned = false AND crossed_at >= $1 AND crossed_since < $1 AND crossings >= 4 LIMIT $2;

-- Nodes that count as cloned, and as which one process alone has polled since a time.
-- name: crossing_no_more
SELECT node_id::text AS id FROM node_presence WHERE cloned = true AND crossed_at < $1 LIMIT $2;

-- Lock the presence of nodes that don't count as cloned, and as which two processes have polled in turn since before a
-- time, and the nodes, to which warnings refer, where no other transaction has locked them.
-- name: lock_crossing
SELECT p.node_id::text AS id FROM node_presence AS p JOIN nodes AS n ON n.id = p.node_id
WHERE p.node_id = ANY($1::text[]::uuid[]) AND p.cloned = false AND p.crossed_since < $2 AND p.crossings >= 4
FOR NO KEY UPDATE OF p, n SKIP LOCKED;

-- Lock the presence of nodes that count as cloned, and as which one process alone has polled since a time, where no other
-- transaction has locked it.
-- name: lock_crossing_no_more
SELECT node_id::text AS id FROM node_presence
WHERE node_id = ANY($1::text[]::uuid[]) AND cloned = true AND crossed_at < $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Set whether nodes count as cloned.
-- name: set_cloned
UPDATE node_presence SET cloned = $2 WHERE node_id = ANY($1::text[]::uuid[]);

-- Set whether nodes count as overdue.
-- name: set_overdue
UPDATE node_presence SET overdue = $2 WHERE node_id = ANY($1::text[]::uuid[]);

-- Add warnings of nodes, of one kind ($5); one element of each array for each node.
-- name: warn
INSERT INTO warnings (id, node_id, kind, message, since)
SELECT u.id::uuid, u.node_id::uuid, $5::text, u.message, $4
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, node_id, message)
ON CONFLICT (node_id, kind) WHERE cleared_at IS NULL DO NOTHING;

-- Clear the warnings of nodes of one kind.
-- name: clear_warnings
UPDATE warnings SET cleared_at = $2
WHERE node_id = ANY($1::text[]::uuid[]) AND kind = $3 AND cleared_at IS NULL;

-- Open syncs whose lease has passed.
-- name: expired
SELECT id::text AS id, node_id::text AS node_id, generation, step, lease_until
FROM syncs WHERE status = 'running' AND lease_until <= $1 ORDER BY lease_until, syncs.id LIMIT $2;

-- Delete old lines of the log of syncs.
-- name: old_syncs
DELETE FROM syncs WHERE id IN (SELECT s.id FROM syncs AS s WHERE s.started_at < $1 AND s.status <> 'running' LIMIT $2);

-- Delete old records of refused authentications.
-- name: old_auth_failures
DELETE FROM auth_failures WHERE (minute, address, reason) IN
    (SELECT f.minute, f.address, f.reason FROM auth_failures AS f WHERE f.minute < $1 LIMIT $2);

-- Delete warnings that were cleared long ago.
-- name: old_warnings
DELETE FROM warnings WHERE id IN (SELECT w.id FROM warnings AS w WHERE w.cleared_at < $1 LIMIT $2);

-- Delete old answers that were kept under idempotency keys.
-- name: old_idempotency
DELETE FROM idempotency WHERE (operator, key) IN
    (SELECT i.operator, i.key FROM idempotency AS i WHERE i.created_at < $1 LIMIT $2);

-- Delete leases that ended long ago: their replicas are gone.
-- name: old_leases
DELETE FROM leases WHERE name IN (SELECT l.name FROM leases AS l WHERE l.expires_at < $1 LIMIT $2);

-- Delete join tokens that expired long ago.
-- name: old_join_tokens
DELETE FROM join_tokens WHERE id IN (SELECT t.id FROM join_tokens AS t WHERE t.expires_at < $1 LIMIT $2);

-- Delete sessions that were begun long ago.
-- name: old_sessions
DELETE FROM sessions WHERE id IN (SELECT s.id FROM sessions AS s WHERE s.made_at < $1 LIMIT $2);

-- Delete codes for signing in that were made long ago.
-- name: old_codes
DELETE FROM sign_in_codes WHERE code_hash IN (SELECT c.code_hash FROM sign_in_codes AS c WHERE c.made_at < $1 LIMIT $2);

-- Delete logins that were begun long ago.
-- name: old_logins
DELETE FROM logins WHERE id IN (SELECT l.id FROM logins AS l WHERE l.made_at < $1 LIMIT $2);

-- Delete records of the last batches of counts of replicas that are gone.
-- name: old_batches
DELETE FROM auth_failure_batches WHERE replica IN
    (SELECT b.replica FROM auth_failure_batches AS b WHERE b.written_at < $1 LIMIT $2);

-- Delete credentials that were revoked long ago.
-- name: old_credentials
DELETE FROM credentials WHERE id IN (SELECT c.id FROM credentials AS c WHERE c.revoked_at < $1 LIMIT $2);

-- What some nodes are called.
-- name: names
SELECT name FROM nodes WHERE id = ANY($1::text[]::uuid[]) ORDER BY name;
