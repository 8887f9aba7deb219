-- Heartbeats: when nodes were last seen, and last confirmed at target. One statement for all that were heard of in a
-- second. Whole arrays are cast: element by element costs the server a quarter more.

-- Nodes that were heard of: ids and times.
-- name: seen
UPDATE node_presence AS p
SET last_seen_at = GREATEST(p.last_seen_at, h.at)
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS h (id, at)
WHERE p.node_id = h.id;

-- Nodes that were heard of and at target: ids and times.
-- name: confirmed
UPDATE node_presence AS p
SET last_seen_at = GREATEST(p.last_seen_at, h.at),
    last_sync_at = GREATEST(p.last_sync_at, h.at)
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS h (id, at)
WHERE p.node_id = h.id;
