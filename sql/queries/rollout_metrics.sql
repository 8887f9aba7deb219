-- Rollouts as metrics show them.

-- How many rollouts there are of each state, and of how many of them a gate has failed in the last step.
-- name: states
SELECT o.state, count(*) AS rollouts, count(f.release_id) AS failed
FROM rollouts AS o LEFT JOIN
    (SELECT DISTINCT k.release_id, k.step FROM rollout_gates AS k WHERE k.outcome = 'failed') AS f
    ON f.release_id = o.release_id AND f.step = o.step
GROUP BY o.state;

-- The rollouts that haven't ended.
-- name: open
SELECT o.release_id, g.name AS group_name, r.number, o.policy, o.step, o.waits_for
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id JOIN groups AS g ON g.id = o.group_id
WHERE o.state IN ('running', 'paused') ORDER BY g.name;

-- What the gates of their present steps said last.
-- name: gates
SELECT k.release_id, k.gate, k.outcome, k.measured, k.allowed, k.before, k.calls
FROM rollouts AS o JOIN rollout_gates AS k ON k.release_id = o.release_id AND k.step = o.step
WHERE o.state IN ('running', 'paused') ORDER BY k.gate;
