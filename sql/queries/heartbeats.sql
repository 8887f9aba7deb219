-- Heartbeats: when nodes were last seen, and last confirmed at their targets. One statement for all nodes that were
-- heard of in a second. Whole arrays are cast: to cast each element costs the server a quarter more.

-- Lock rows that no other transaction has locked.
-- name: lock_free
SELECT node_id::text AS id FROM node_presence WHERE node_id = ANY($1::text[]::uuid[]) FOR NO KEY UPDATE SKIP LOCKED;

-- Record when nodes were seen: ids and times. A stored time later than $3 was written by a wrong clock.
-- name: seen
UPDATE node_presence AS p
SET last_seen_at = CASE WHEN p.last_seen_at > $3 THEN h.at ELSE GREATEST(p.last_seen_at, h.at) END,
    last_sync_at = CASE WHEN p.last_sync_at > $3 THEN h.at ELSE p.last_sync_at END,
    confirmed_at = CASE WHEN p.confirmed_at > $3 THEN h.at ELSE p.confirmed_at END
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS h (id, at)
WHERE p.node_id = h.id;

-- Record when nodes were confirmed at their targets: ids and times, and $3 as above.
-- name: confirmed
UPDATE node_presence AS p
SET last_seen_at = CASE WHEN p.last_seen_at > $3 THEN h.at ELSE GREATEST(p.last_seen_at, h.at) END,
    last_sync_at = CASE WHEN p.last_sync_at > $3 THEN h.at ELSE GREATEST(p.last_sync_at, h.at) END,
    confirmed_at = CASE WHEN p.confirmed_at > $3 THEN h.at ELSE GREATEST(p.confirmed_at, h.at) END
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS h (id, at)
WHERE p.node_id = h.id;
