-- Stored times that are ahead, because a clock was wrong: the rows are locked, but for those that another transaction
-- has locked, and then changed.

-- In which tables there are any. $1: what is further ahead isn't believed; $2 is that for the leases of syncs.
-- name: found
SELECT EXISTS (SELECT 1 FROM node_presence WHERE offline = false AND last_seen_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE offline = true AND last_seen_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE overdue = false AND confirmed_at > $1)
        OR EXISTS (SELECT 1 FROM node_presence WHERE overdue = true AND confirmed_at > $1) AS presence,
    EXISTS (SELECT 1 FROM nodes WHERE joined_at > $1) OR EXISTS (SELECT 1 FROM nodes WHERE synced_at > $1) AS nodes,
    EXISTS (SELECT 1 FROM syncs WHERE status = 'running' AND lease_until > $2) AS syncs,
    EXISTS (SELECT 1 FROM join_tokens WHERE created_at > $1 AND attempt IS NULL) AS tokens;

-- Lock when nodes were seen and confirmed.
-- name: lock_presence
SELECT node_id::text AS id FROM node_presence WHERE last_seen_at > $1 OR confirmed_at > $1 LIMIT $2
FOR NO KEY UPDATE SKIP LOCKED;

-- Put right when nodes were seen and confirmed.
-- name: presence
UPDATE node_presence
SET last_seen_at = CASE WHEN last_seen_at > $1 THEN $2 ELSE last_seen_at END,
    last_sync_at = CASE WHEN last_sync_at > $1 THEN $3 ELSE last_sync_at END,
    confirmed_at = CASE WHEN confirmed_at > $1 THEN $3 ELSE confirmed_at END
WHERE node_id = ANY($4::text[]::uuid[]);

-- Lock nodes by when they joined and reached their targets.
-- name: lock_nodes
SELECT id::text AS id FROM nodes WHERE joined_at > $1 OR synced_at > $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Put right when nodes joined and reached their targets.
-- name: nodes
UPDATE nodes
SET joined_at = CASE WHEN joined_at > $1 THEN $2 ELSE joined_at END,
    synced_at = CASE WHEN synced_at > $1 THEN $3 ELSE synced_at END,
    state_since = CASE WHEN state_since > $1 THEN $2 ELSE state_since END
WHERE id = ANY($4::text[]::uuid[]);

-- Lock open syncs by when their leases end.
-- name: lock_syncs
SELECT id::text AS id FROM syncs WHERE status = 'running' AND lease_until > $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED;

-- Put right until when nothing need be heard of open syncs.
-- name: syncs
UPDATE syncs SET lease_until = $1 WHERE id = ANY($2::text[]::uuid[]);

-- Lock join tokens that weren't used.
-- name: lock_tokens
SELECT id::text AS id FROM join_tokens WHERE created_at > $1 AND attempt IS NULL LIMIT $2
FOR NO KEY UPDATE SKIP LOCKED;

-- Put right how long join tokens are good for.
-- name: tokens
UPDATE join_tokens SET expires_at = $1::timestamptz + (expires_at - created_at), created_at = $1
WHERE id = ANY($2::text[]::uuid[]);
