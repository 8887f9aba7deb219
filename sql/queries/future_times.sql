-- Stored times that are too far ahead, because a clock was wrong: rows that no other transaction has locked are locked
-- and then corrected.

-- Which tables have such times: later than $1, or than $2 for the leases of syncs.
-- name: found
SELECT EXISTS (SELECT 1 FROM node_presence WHERE offline = false AND last_seen_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE offline = true AND last_seen_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE overdue = false AND confirmed_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE overdue = true AND confirmed_at > $1) AS presence,
    EXISTS (SELECT 1 FROM nodes WHERE joined_at > $1) OR EXISTS (SELECT 1 FROM nodes WHERE synced_at > $1) AS nodes,
    EXISTS (SELECT 1 FROM syncs WHERE status = 'running' AND lease_until > $2) AS syncs,
    EXISTS (SELECT 1 FROM join_tokens WHERE created_at > $1 AND attempt IS NULL) AS tokens;

-- Nodes' presence with times later than $1, each by its index.
-- name: find_presence
(SELECT node_id::text AS id FROM node_presence WHERE offline = false AND last_seen_at > $1 LIMIT $2)
UNION (SELECT node_id::text AS id FROM node_presence WHERE offline = true AND last_seen_at > $1 LIMIT $2)
UNION (SELECT node_id::text AS id FROM node_presence WHERE overdue = false AND confirmed_at > $1 LIMIT $2)
UNION (SELECT node_id::text AS id FROM node_presence WHERE overdue = true AND confirmed_at > $1 LIMIT $2);

-- Lock those of these rows that no other transaction has locked.
-- name: lock_presence
SELECT node_id::text AS id FROM node_presence
WHERE node_id = ANY($2::text[]::uuid[]) AND (last_seen_at > $1 OR confirmed_at > $1) FOR NO KEY UPDATE SKIP LOCKED;

-- Correct when nodes were seen and confirmed.
-- name: presence
UPDATE node_presence
SET last_seen_at = CASE WHEN last_seen_at > $1 THEN $2 ELSE last_seen_at END,
    last_sync_at = CASE WHEN last_sync_at > $1 THEN $3 ELSE last_sync_at END,
    confirmed_at = CASE WHEN confirmed_at > $1 THEN $3 ELSE confirmed_at END
WHERE node_id = ANY($4::text[]::uuid[]);

-- Nodes that joined, or reached their targets, later than $1, each by its index.
-- name: find_nodes
(SELECT id::text AS id FROM nodes WHERE joined_at > $1 LIMIT $2)
UNION (SELECT id::text AS id FROM nodes WHERE synced_at > $1 LIMIT $2);

-- Lock those of these nodes that no other transaction has locked.
-- name: lock_nodes
SELECT id::text AS id FROM nodes
WHERE id = ANY($2::text[]::uuid[]) AND (joined_at > $1 OR synced_at > $1) FOR NO KEY UPDATE SKIP LOCKED;

-- Correct when nodes joined and reached their targets.
-- name: nodes
UPDATE nodes
SET joined_at = CASE WHEN joined_at > $1 THEN $2 ELSE joined_at END,
    synced_at = CASE WHEN synced_at > $1 THEN $3 ELSE synced_at END,
    state_since = CASE WHEN state_since > $1 THEN $2 ELSE state_since END
WHERE id = ANY($4::text[]::uuid[]);

-- Open syncs whose leases end later than $1.
-- name: find_syncs
SELECT id::text AS id FROM syncs WHERE status = 'running' AND lease_until > $1 LIMIT $2;

-- Lock those of these syncs that no other transaction has locked.
-- name: lock_syncs
SELECT id::text AS id FROM syncs
WHERE id = ANY($2::text[]::uuid[]) AND status = 'running' AND lease_until > $1 FOR NO KEY UPDATE SKIP LOCKED;

-- Correct the ends of open syncs' leases.
-- name: syncs
UPDATE syncs SET lease_until = $1 WHERE id = ANY($2::text[]::uuid[]);

-- Unused join tokens that were made later than $1.
-- name: find_tokens
SELECT id::text AS id FROM join_tokens WHERE created_at > $1 AND attempt IS NULL LIMIT $2;

-- Lock those of these join tokens that no other transaction has locked.
-- name: lock_tokens
SELECT id::text AS id FROM join_tokens
WHERE id = ANY($2::text[]::uuid[]) AND created_at > $1 AND attempt IS NULL FOR NO KEY UPDATE SKIP LOCKED;

-- Correct how long join tokens are valid.
-- name: tokens
UPDATE join_tokens SET expires_at = $1::timestamptz + (expires_at - created_at), created_at = $1
WHERE id = ANY($2::text[]::uuid[]);
