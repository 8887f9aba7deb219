-- Backups of nodes' databases: their histories, and what nodes tell of them.

-- Whether one history of a node has ended.
-- name: ended
SELECT ended_at IS NOT NULL FROM backups WHERE node_id = $1 AND lineage = $2;

-- Lock a node that wasn't removed.
-- name: lock_node
SELECT id FROM nodes WHERE id = $1 AND removed_at IS NULL FOR NO KEY UPDATE;

-- End the history of a node that goes on, for another one takes its place.
-- name: end
UPDATE backups SET ended_at = $2 WHERE node_id = $1 AND ended_at IS NULL;

-- Begin a history of a node.
-- name: begin
INSERT INTO backups (node_id, lineage, begun_at, told_at) VALUES ($1, $2, $3, $3);

-- The histories of a node, the newest one first.
-- name: lineages
SELECT lineage FROM backups WHERE node_id = $1 ORDER BY begun_at DESC, lineage;

-- A release of a node's group, by its number.
-- name: release_of_node
SELECT r.id FROM nodes AS n JOIN releases AS r ON r.group_id = n.group_id WHERE n.id = $1 AND r.number = $2;

-- The last transaction before a node's flip to a release.
-- name: boundary
SELECT lineage, transaction_id AS transaction FROM boundaries WHERE node_id = $1 AND release_id = $2;

-- Write how far the histories of nodes have come, as they tell, one element of each array for each node, at one time; ''
-- leaves a time as it was. What was reached doesn't go back: an older report may come late.
-- name: tell
UPDATE backups AS b
SET reached = greatest(b.reached, u.reached::int8),
    reached_at = greatest(b.reached_at, nullif(u.reached_at, '')::timestamptz),
    pending = u.pending::int8, error = u.error, told_at = $7
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS u (node_id, lineage, reached, reached_at, pending, error)
WHERE b.node_id = u.node_id::uuid AND b.lineage = u.lineage;

-- Add the same for nodes without any history that goes on, which have got no place for a file yet.
-- name: tell_first
INSERT INTO backups (node_id, lineage, begun_at, reached, reached_at, pending, error, told_at)
SELECT n.id, u.lineage, $7, u.reached::int8, nullif(u.reached_at, '')::timestamptz, u.pending::int8, u.error, $7
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS u (node_id, lineage, reached, reached_at, pending, error)
    JOIN nodes AS n ON n.id = u.node_id::uuid
WHERE n.removed_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM backups AS b WHERE b.node_id = n.id AND (b.ended_at IS NULL OR b.lineage = u.lineage)
)
ON CONFLICT DO NOTHING;

-- Write the transactions before nodes' flips to releases, one element of each array for each flip.
-- name: write_boundaries
INSERT INTO boundaries (node_id, release_id, lineage, transaction_id, at)
SELECT u.node_id::uuid, u.release_id::uuid, u.lineage, u.transaction_id::int8, $5
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS u (node_id, release_id, lineage, transaction_id)
ON CONFLICT (node_id, release_id) DO UPDATE
SET lineage = excluded.lineage, transaction_id = excluded.transaction_id, at = excluded.at;
