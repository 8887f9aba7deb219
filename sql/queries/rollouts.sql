-- Rollouts: where they stand, their nodes, their rehearsals, and what their gates say.

-- The rollout of a group's release, by number.
-- name: by_number
SELECT o.release_id, o.group_id, g.name AS group_name, r.number, g.release_id AS group_release_id,
    o.policy, o.state, o.step, o.step_since, o.waits_for, o.waits_since, o.reason, o.attempt, o.rehearsal_only,
    o.forgiven, o.measured_from, o.told_at, o.made_at, o.ended_at, r.created_by
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id JOIN groups AS g ON g.id = o.group_id
WHERE g.name = $1 AND r.number = $2;

-- The rollout of a release.
-- name: by_release
SELECT o.release_id, o.group_id, g.name AS group_name, r.number, g.release_id AS group_release_id,
    o.policy, o.state, o.step, o.step_since, o.waits_for, o.waits_since, o.reason, o.attempt, o.rehearsal_only,
    o.forgiven, o.measured_from, o.told_at, o.made_at, o.ended_at, r.created_by
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id JOIN groups AS g ON g.id = o.group_id
WHERE o.release_id = $1;

-- The open rollout of a group.
-- name: open_of
SELECT o.release_id, o.group_id, g.name AS group_name, r.number, g.release_id AS group_release_id,
    o.policy, o.state, o.step, o.step_since, o.waits_for, o.waits_since, o.reason, o.attempt, o.rehearsal_only,
    o.forgiven, o.measured_from, o.told_at, o.made_at, o.ended_at, r.created_by
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id JOIN groups AS g ON g.id = o.group_id
WHERE o.group_id = $1 AND o.state IN ('running', 'paused');

-- Rollouts, the newest first, before a time and id ($1, $2); of some groups ($3), open ones alone ($4), if given.
-- name: rollouts
SELECT o.release_id, o.group_id, g.name AS group_name, r.number, g.release_id AS group_release_id,
    o.policy, o.state, o.step, o.step_since, o.waits_for, o.waits_since, o.reason, o.attempt, o.rehearsal_only,
    o.forgiven, o.measured_from, o.told_at, o.made_at, o.ended_at, r.created_by
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id JOIN groups AS g ON g.id = o.group_id
WHERE g.deleted_at IS NULL AND ($1::timestamptz IS NULL OR (o.made_at, o.release_id) < ($1, $2::uuid))
    AND ($3::text[] IS NULL OR g.name = ANY($3::text[])) AND (NOT $4::bool OR o.state IN ('running', 'paused'))
ORDER BY o.made_at DESC, o.release_id DESC LIMIT $5;

-- The open rollouts.
-- name: all_open
SELECT release_id FROM rollouts WHERE state IN ('running', 'paused') ORDER BY made_at, release_id;

-- Lock a rollout; returns what must not have changed since it was read.
-- name: lock
SELECT release_id FROM rollouts WHERE release_id = $1 FOR NO KEY UPDATE;

-- Add a rollout.
-- name: add
INSERT INTO rollouts (release_id, group_id, policy, state, step, step_since, waits_for, waits_since, reason,
    rehearsal_only, forgiven, measured_from, made_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- Write where a rollout stands.
-- name: save
UPDATE rollouts SET state = $2, step = $3, step_since = $4, waits_for = $5, waits_since = $6, reason = $7,
    rehearsal_only = $8, forgiven = $9, measured_from = $10, attempt = $11, told_at = $12, ended_at = $13
WHERE release_id = $1;

-- The nodes of a group ($1) as a rollout ($2) sees them: with the values of a label ($3), whether their version knows
-- rehearsals ($4), and this attempt's ($5) rehearsals. Held nodes get no release now, as offline ones.
-- name: fleet
SELECT n.id::text AS id, coalesce(n.labels ->> $3::text, '') AS label, n.state IN ('online', 'syncing') AND n.restore_id IS NULL AS online,
    n.protocol >= $4::int8 AS rehearses, h.outcome AS rehearsed,
    CASE WHEN n.release_id = $2::uuid THEN k.step END AS step, k.started_at, n.synced_at,
    n.confirmed_generation >= n.generation AS reached, n.error_code, n.error_at
FROM nodes AS n
    LEFT JOIN rollout_nodes AS k ON k.release_id = $2::uuid AND k.node_id = n.id
    LEFT JOIN rehearsals AS h ON h.release_id = $2::uuid AND h.node_id = n.id AND h.attempt = $5::int8
WHERE n.group_id = $1::uuid AND n.removed_at IS NULL AND n.state <> 'revoked'
ORDER BY n.id;

-- How many nodes a rollout has started, with those that have left since.
-- name: started
SELECT count(*) FROM rollout_nodes WHERE release_id = $1;

-- Store what a node has found in its rehearsal; a repeated report changes nothing.
-- name: tell_rehearsal
INSERT INTO rehearsals (release_id, node_id, attempt, outcome, code, message, report, told_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (release_id, node_id, attempt) DO NOTHING;

-- What the gates of all steps said last.
-- name: gates
SELECT step, gate, outcome, measured, allowed, before, calls, why, measured_at FROM rollout_gates
WHERE release_id = $1 ORDER BY step, gate;

-- Forget what gates said: the rollout begins again.
-- name: forget_gates
DELETE FROM rollout_gates WHERE release_id = $1;

-- Forget the nodes that a rollout has started and that have another target now: it begins again, and they fill no step.
-- name: forget_left
DELETE FROM rollout_nodes WHERE release_id = $1::uuid
    AND node_id NOT IN (SELECT n.id FROM nodes AS n WHERE n.release_id = $1::uuid);

-- The number of a group's newest release.
-- name: newest
SELECT coalesce(max(number), 0) FROM releases WHERE group_id = $1;
