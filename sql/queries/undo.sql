-- Undoing releases with nodes' data: which nodes of a group these have reached, and restores of many nodes at once.

-- The nodes of a group ($1), as an undo of its releases above a number ($2) sees them. runs: a node is at one of these
-- releases; going: it is on its way to one.
-- name: nodes
SELECT n.id::text AS id, n.name, n.state, n.protocol, s.state AS restore_state,
    coalesce(n.confirmed_generation >= greatest(n.generation, g.generation)
        AND CASE WHEN n.generation > g.generation THEN coalesce(o.number, t.number) ELSE t.number END > $2, false) AS runs,
    y.number AS going, (SELECT max(b.reached_at) FROM backups AS b WHERE b.node_id = n.id) AS newest_at
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    LEFT JOIN releases AS t ON t.id = g.release_id LEFT JOIN releases AS o ON o.id = n.release_id
    LEFT JOIN restores AS s ON s.id = n.restore_id
    LEFT JOIN (
        SELECT w.node_id, x.number FROM syncs AS w JOIN releases AS x ON x.id = w.release_id
        WHERE w.status = 'running' AND x.group_id = $1 AND x.number > $2
    ) AS y ON y.node_id = n.id
WHERE n.group_id = $1 AND n.removed_at IS NULL
ORDER BY n.name;

-- When nodes of a group came to its releases above a number, and the last transaction before that; '' and 0 if it isn't
-- known.
-- name: reached
SELECT n.id::text AS node_id, r.id AS release_id, r.number, b.lineage, b.transaction_id, b.at
FROM nodes AS n JOIN boundaries AS b ON b.node_id = n.id JOIN releases AS r ON r.id = b.release_id
WHERE n.group_id = $1 AND n.removed_at IS NULL AND r.group_id = $1 AND r.number > $2
UNION ALL
SELECT n.id::text AS node_id, r.id AS release_id, r.number, '' AS lineage, 0 AS transaction_id,
    min(CASE WHEN s.late_status = 'succeeded' THEN s.late_at ELSE s.ended_at END) AS at
FROM nodes AS n JOIN syncs AS s ON s.node_id = n.id JOIN releases AS r ON r.id = s.release_id
WHERE n.group_id = $1 AND n.removed_at IS NULL AND r.group_id = $1 AND r.number > $2
    AND s.started_at >= (SELECT min(f.created_at) FROM releases AS f WHERE f.group_id = $1 AND f.number > $2)
    AND (s.status = 'succeeded' OR s.late_status = 'succeeded')
    AND NOT EXISTS (SELECT 1 FROM boundaries AS b WHERE b.node_id = n.id AND b.release_id = r.id)
GROUP BY n.id, r.id, r.number;

-- The states to which nodes of a group have gone back, by restores that they have carried out.
-- name: restored
SELECT s.node_id::text AS node_id, s.lineage, s.transaction_id, s.state_at, s.told_at
FROM nodes AS n JOIN restores AS s ON s.node_id = n.id
WHERE n.group_id = $1 AND n.removed_at IS NULL AND s.state IN ('held', 'done') AND s.told_at IS NOT NULL;

-- Lock nodes that are to bring something back.
-- name: lock
SELECT id::text AS id FROM nodes WHERE id = ANY($1::text[]::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- End the restores at which nodes are held.
-- name: end_held
UPDATE restores SET state = 'done', ended_at = $2
WHERE state = 'held' AND id IN (SELECT n.restore_id FROM nodes AS n WHERE n.id = ANY($1::text[]::uuid[]));

-- Order the restores of an undo, one element of each array for each node; by somebody, at a time.
-- name: order
INSERT INTO restores (id, node_id, lineage, transaction_id, state_at, before_release, undo_id, hold, state, made_by, made_at)
SELECT u.id::uuid, u.node_id::uuid, u.lineage, u.transaction_id::int8, u.state_at::timestamptz, u.before_release::uuid, $7,
    false, 'ordered', $8, $9
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS u (id, node_id, lineage, transaction_id, state_at, before_release);

-- Record the nodes that an undo leaves as they are, and why; '' for a release that isn't known.
-- name: leave
INSERT INTO restores (id, node_id, lineage, transaction_id, state_at, before_release, undo_id, hold, state, code, message,
    made_by, made_at, ended_at)
SELECT u.id::uuid, u.node_id::uuid, '', 0, $8, nullif(u.before_release, '')::uuid, $6, false, 'failed', u.code, u.message,
    $7, $8, $8
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS u (id, node_id, before_release, code, message);

-- Hold nodes for their restores. What failed on the way to their target is no failure of them any more.
-- name: hold
UPDATE nodes SET restore_id = u.id::uuid, state = CASE WHEN nodes.state = 'syncing' THEN 'online' ELSE nodes.state END,
    state_since = CASE WHEN nodes.state = 'syncing' THEN $3 ELSE nodes.state_since END, failed_generation = 0,
    retry_at = NULL, error_code = '', error_message = '', error_at = NULL
FROM unnest($1::text[], $2::text[]) AS u (id, node_id)
WHERE nodes.id = u.node_id::uuid;

-- End the syncs of nodes.
-- name: end_syncs
UPDATE syncs SET status = 'superseded', ended_at = $2 WHERE node_id = ANY($1::text[]::uuid[]) AND status = 'running';

-- How many restores of an undo there are by what came of them; 'left' for nodes that it left as they were.
-- name: counts
SELECT CASE WHEN state = 'failed' AND lineage = '' THEN 'left' ELSE state END AS outcome, count(*) AS nodes
FROM restores WHERE undo_id = $1 GROUP BY 1;

-- The restores of an undo ($1) by node, after a node's name ($2).
-- name: restores
SELECT r.id, n.name AS node, NULL::text AS from_node, r.node_id, r.from_node_id, r.lineage, r.transaction_id, r.state_at,
    x.number AS before_release, r.undo_id, r.hold, r.state, r.code, r.message, r.release_number,
    y.name AS release_group, r.kept, r.kept_lineage, r.kept_transaction, r.made_by, r.made_at, r.told_at, r.ended_at
FROM restores AS r JOIN nodes AS n ON n.id = r.node_id LEFT JOIN releases AS x ON x.id = r.before_release
    LEFT JOIN releases AS z ON z.id = r.release_id LEFT JOIN groups AS y ON y.id = z.group_id
WHERE r.undo_id = $1 AND n.name > $2 ORDER BY n.name LIMIT $3;

-- The number of the newest rollback of a group that took nodes' data back from a release with a number, and its id.
-- name: of_release
SELECT r.id, r.number FROM releases AS r
WHERE r.group_id = $1 AND r.rollback_to < $2 AND r.number > $2
    AND EXISTS (SELECT 1 FROM restores AS s WHERE s.undo_id = r.id)
ORDER BY r.number DESC LIMIT 1;
