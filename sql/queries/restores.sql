-- Restores of nodes: orders, what came of them, and what nodes' backups have.

-- Lock a node that is to bring something back.
-- name: lock_node
SELECT id, state, protocol, restore_id FROM nodes WHERE id = $1 AND removed_at IS NULL FOR NO KEY UPDATE;

-- Order a restore.
-- name: add
INSERT INTO restores (id, node_id, from_node_id, lineage, transaction_id, state_at, before_release, undo_id, hold, state,
    made_by, made_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'ordered', $10, $11);

-- Hold a node for a restore. What failed on the way to its target is no failure of it any more.
-- name: hold
UPDATE nodes SET restore_id = $2, state = CASE WHEN state = 'syncing' THEN 'online' ELSE state END,
    state_since = CASE WHEN state = 'syncing' THEN $3 ELSE state_since END, failed_generation = 0, retry_at = NULL,
    error_code = '', error_message = '', error_at = NULL
WHERE id = $1;

-- Let a node go that was held for a restore; it gets plans again.
-- name: let_go
UPDATE nodes SET restore_id = NULL WHERE id = $1 AND restore_id = $2 RETURNING id;

-- Expect a node to be confirmed from now on: until now it wasn't to be.
-- name: expect
UPDATE node_presence SET confirmed_at = greatest(confirmed_at, $2), overdue = false WHERE node_id = $1;

-- Cancel the restore of a node that is removed.
-- name: abandon
UPDATE restores SET state = 'cancelled', ended_at = $2 WHERE node_id = $1 AND state IN ('ordered', 'held');

-- End a restore.
-- name: end
UPDATE restores SET state = $2, ended_at = $3 WHERE id = $1;

-- Write what a node has told ($4) of a restore; an end ($3) is NULL for one that goes on.
-- name: tell
UPDATE restores SET state = $2, ended_at = $3, told_at = $4, code = $5, message = $6, release_number = $7, kept = $8,
    kept_lineage = $9, kept_transaction = $10, release_id = (SELECT x.id FROM releases AS x WHERE x.id = $11)
WHERE id = $1;

-- A restore.
-- name: restore
SELECT r.id, n.name AS node, f.name AS from_node, r.node_id, r.from_node_id, r.lineage, r.transaction_id, r.state_at,
    x.number AS before_release, r.undo_id, r.hold, r.state, r.code, r.message, r.release_number,
    y.name AS release_group, r.kept, r.kept_lineage,
    r.kept_transaction, r.made_by, r.made_at, r.told_at, r.ended_at
FROM restores AS r JOIN nodes AS n ON n.id = r.node_id LEFT JOIN nodes AS f ON f.id = r.from_node_id
    LEFT JOIN releases AS x ON x.id = r.before_release LEFT JOIN releases AS z ON z.id = r.release_id
    LEFT JOIN groups AS y ON y.id = z.group_id
WHERE r.id = $1;

-- The restores of a node, the newest first, before a time and id ($2, $3), if given.
-- name: of_node
SELECT r.id, n.name AS node, f.name AS from_node, r.node_id, r.from_node_id, r.lineage, r.transaction_id, r.state_at,
    x.number AS before_release, r.undo_id, r.hold, r.state, r.code, r.message, r.release_number,
    y.name AS release_group, r.kept, r.kept_lineage,
    r.kept_transaction, r.made_by, r.made_at, r.told_at, r.ended_at
FROM restores AS r JOIN nodes AS n ON n.id = r.node_id LEFT JOIN nodes AS f ON f.id = r.from_node_id
    LEFT JOIN releases AS x ON x.id = r.before_release LEFT JOIN releases AS z ON z.id = r.release_id
    LEFT JOIN groups AS y ON y.id = z.group_id
WHERE r.node_id = $1 AND ($2::timestamptz IS NULL OR (r.made_at, r.id) < ($2, $3::uuid))
ORDER BY r.made_at DESC, r.id DESC LIMIT $4;

-- The last restore of each of these nodes.
-- name: last_of
SELECT r.id, n.name AS node, f.name AS from_node, r.node_id, r.from_node_id, r.lineage, r.transaction_id, r.state_at,
    x.number AS before_release, r.undo_id, r.hold, r.state, r.code, r.message, r.release_number,
    y.name AS release_group, r.kept, r.kept_lineage,
    r.kept_transaction, r.made_by, r.made_at, r.told_at, r.ended_at
FROM unnest($1::text[]) AS u (id), LATERAL (
        SELECT o.id FROM restores AS o WHERE o.node_id = u.id::uuid ORDER BY o.made_at DESC, o.id DESC LIMIT 1
    ) AS l JOIN restores AS r ON r.id = l.id JOIN nodes AS n ON n.id = r.node_id
    LEFT JOIN nodes AS f ON f.id = r.from_node_id LEFT JOIN releases AS x ON x.id = r.before_release
    LEFT JOIN releases AS z ON z.id = r.release_id LEFT JOIN groups AS y ON y.id = z.group_id;

-- The releases that a node has gone to, each with the last transaction before that; and with '' and 0 for those, restores
-- after which it had one.
-- name: arrivals
SELECT x.id AS release_id, g.name AS group_name, x.number, b.lineage, b.transaction_id, b.at
FROM boundaries AS b JOIN releases AS x ON x.id = b.release_id JOIN groups AS g ON g.id = x.group_id
WHERE b.node_id = $1
UNION ALL
SELECT x.id AS release_id, g.name AS group_name, x.number, '' AS lineage, 0 AS transaction_id, r.told_at AS at
FROM restores AS r JOIN releases AS x ON x.id = r.release_id JOIN groups AS g ON g.id = x.group_id
WHERE r.node_id = $1 AND r.state IN ('held', 'done') AND r.told_at IS NOT NULL;

-- The release to which a node went right after a transaction of a lineage.
-- name: release_after
SELECT release_id FROM boundaries WHERE node_id = $1 AND lineage = $2 AND transaction_id = $3
ORDER BY at DESC, release_id LIMIT 1;

-- The last moment of a node's data that is at the store.
-- name: newest_at
SELECT max(reached_at) FROM backups WHERE node_id = $1;

-- A node that was removed, by its id.
-- name: removed
SELECT n.id, n.name, n.group_id, g.name AS group_name FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
WHERE n.id = $1 AND n.removed_at IS NOT NULL;

-- The restore that a node carries out, or at which it is held; NULL if there is none.
-- name: held_for
SELECT restore_id FROM nodes WHERE id = $1;

-- A release, by its id.
-- name: release
SELECT g.name AS group_name, x.number FROM releases AS x JOIN groups AS g ON g.id = x.group_id WHERE x.id = $1;

-- Nodes by name, after a name ($1), that are backed up or were; of some groups ($2), or one node ($3), if given. With the history that goes
-- on, the last proven restore, and when their group's interval is 0: it isn't backed up.
-- name: backups
SELECT n.id, n.name, g.name AS group_name, coalesce((g.backup ->> 'interval')::float8, 0) AS interval,
    coalesce((g.backup ->> 'retention')::int8, 0) AS retention, b.lineage, b.reached, b.reached_at, b.told_at, coalesce(b.pending, 0) AS pending, coalesce(b.error, '') AS error,
    p.proven_at, p.drilled_at, coalesce(b.drill_error, '') AS drill_error, coalesce(p.at_store, 0)::int8 AS at_store
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    LEFT JOIN backups AS b ON b.node_id = n.id AND b.ended_at IS NULL
    LEFT JOIN LATERAL (
        SELECT count(*) AS histories, max(o.proven_at) AS proven_at, max(o.drilled_at) AS drilled_at,
            sum(o.at_store) AS at_store
        FROM backups AS o WHERE o.node_id = n.id
    ) AS p ON true
WHERE n.removed_at IS NULL AND n.name > $1 AND ($2::text[] IS NULL OR g.name = ANY($2::text[]))
    AND ($3::uuid IS NULL OR n.id = $3) AND (g.backup IS NOT NULL OR p.histories > 0)
ORDER BY n.name LIMIT $4;

-- The histories of a node's databases, the newest first; $2 at most.
-- name: histories
SELECT lineage, begun_at, ended_at, reached, reached_at, told_at, pending, error, at_store, proven, proven_at, drilled_at,
    drill_error
FROM backups WHERE node_id = $1 ORDER BY begun_at DESC, lineage LIMIT $2;
