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
SELECT lineage, transaction_id FROM boundaries WHERE node_id = $1 AND release_id = $2;
