-- What gates of rollouts measure: nodes' calls of the hour before, and what gates said last.

-- How many nodes a rollout has started, how many of them before $2, and of how many the hour before is known.
-- name: started
SELECT count(*) AS nodes, count(*) FILTER (WHERE started_at < $2) AS earlier, count(before) AS told
FROM rollout_nodes WHERE release_id = $1;

-- The hours before of nodes that a rollout has started, without some nodes ($2).
-- name: hours_before
SELECT node_id::text AS node_id, before FROM rollout_nodes
WHERE release_id = $1 AND before IS NOT NULL AND NOT (node_id = ANY($2::text[]::uuid[])) LIMIT $3;

-- Store the hours before of nodes that rollouts have started, in hexadecimal, one element of each array for each node;
-- the first one that a node reports is kept.
-- name: store_hours
UPDATE rollout_nodes AS k SET before = decode(u.before, 'hex')
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (release_id, node_id, before)
WHERE k.release_id = u.release_id::uuid AND k.node_id = u.node_id::uuid AND k.before IS NULL;

-- Write what a gate of a step says, unless just that was written since $11.
-- name: save
INSERT INTO rollout_gates AS k (release_id, step, gate, outcome, measured, allowed, before, calls, why, measured_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (release_id, step, gate) DO UPDATE SET outcome = excluded.outcome, measured = excluded.measured,
    allowed = excluded.allowed, before = excluded.before, calls = excluded.calls, why = excluded.why,
    measured_at = excluded.measured_at
WHERE k.measured_at < $11 OR k.outcome <> excluded.outcome OR k.why <> excluded.why OR k.calls <> excluded.calls;
