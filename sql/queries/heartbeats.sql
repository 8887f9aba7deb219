-- Heartbeats: when nodes were last seen, and last confirmed at their targets. One statement for all nodes that were
-- heard of in a second. Whole arrays are cast: to cast each element costs the server a quarter more.

-- Lock rows that no other transaction has locked.
-- name: lock_free
SELECT node_id::text AS id FROM node_presence WHERE node_id = ANY($1::text[]::uuid[]) FOR NO KEY UPDATE SKIP LOCKED;

-- Record when nodes were seen: ids, times, and by which process each has polled ('' where that isn't known). A stored time
-- later than $4 was written by a wrong clock.
-- name: seen
UPDATE node_presence AS p
SET last_seen_at = CASE WHEN p.last_seen_at > $4 THEN h.at ELSE GREATEST(p.last_seen_at, h.at) END,
    last_sync_at = CASE WHEN p.last_sync_at > $4 THEN h.at ELSE p.last_sync_at END,
    confirmed_at = CASE WHEN p.confirmed_at > $4 THEN h.at ELSE p.confirmed_at END,
    boot_id = CASE WHEN h.boot = '' THEN p.boot_id ELSE h.boot END,
    boot_before = CASE WHEN h.boot IN ('', p.boot_id) THEN p.boot_before ELSE p.boot_id END,
    crossings = CASE
        WHEN h.boot IN ('', p.boot_id) THEN p.crossings WHEN h.boot = p.boot_before THEN p.crossings + 1 ELSE 0
    END,
    crossed_since = CASE
        WHEN h.boot NOT IN ('', p.boot_id) AND h.boot = p.boot_before AND p.crossings = 0 THEN h.at ELSE p.crossed_since
    END,
    crossed_at = CASE WHEN h.boot NOT IN ('', p.boot_id) AND h.boot = p.boot_before THEN h.at ELSE p.crossed_at END
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[], $3::text[]) AS h (id, at, boot)
WHERE p.node_id = h.id;

-- Record when nodes were confirmed at their targets, likewise.
-- name: confirmed
UPDATE node_presence AS p
SET last_seen_at = CASE WHEN p.last_seen_at > $4 THEN h.at ELSE GREATEST(p.last_seen_at, h.at) END,
    last_sync_at = CASE WHEN p.last_sync_at > $4 THEN h.at ELSE GREATEST(p.last_sync_at, h.at) END,
    confirmed_at = CASE WHEN p.confirmed_at > $4 THEN h.at ELSE GREATEST(p.confirmed_at, h.at) END,
    boot_id = CASE WHEN h.boot = '' THEN p.boot_id ELSE h.boot END,
    boot_before = CASE WHEN h.boot IN ('', p.boot_id) THEN p.boot_before ELSE p.boot_id END,
    crossings = CASE
        WHEN h.boot IN ('', p.boot_id) THEN p.crossings WHEN h.boot = p.boot_before THEN p.crossings + 1 ELSE 0
    END,
    crossed_since = CASE
        WHEN h.boot NOT IN ('', p.boot_id) AND h.boot = p.boot_before AND p.crossings = 0 THEN h.at ELSE p.crossed_since
    END,
    crossed_at = CASE WHEN h.boot NOT IN ('', p.boot_id) AND h.boot = p.boot_before THEN h.at ELSE p.crossed_at END
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[], $3::text[]) AS h (id, at, boot)
WHERE p.node_id = h.id;
