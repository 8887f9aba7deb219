-- Heartbeats: when nodes were last seen, and last confirmed at target.

-- One statement for all nodes that were heard of in a second; '' where there was no confirmation.
-- name: record
UPDATE node_presence AS p
SET last_seen_at = GREATEST(p.last_seen_at, h.seen_at),
    last_sync_at = GREATEST(p.last_sync_at, h.confirmed_at)
FROM (
    SELECT u.id::uuid AS id, u.seen::timestamptz AS seen_at, NULLIF(u.confirmed, '')::timestamptz AS confirmed_at
    FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, seen, confirmed)
) AS h
WHERE p.node_id = h.id;
