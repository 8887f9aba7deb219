-- Whether releases have arrived at all nodes of their groups. Revoked ones get none: they don't count; nor do nodes that
-- have a release of their own as their target.

-- The releases of groups that haven't arrived at all nodes.
-- name: under_way
SELECT r.id::text AS id, g.id::text AS group_id, g.name AS group_name, r.number, r.created_at,
    r.failed_at IS NOT NULL AS failed
FROM groups AS g JOIN releases AS r ON r.id = g.release_id
WHERE r.arrived_at IS NULL;

-- How many nodes a group has, how many run its target, and of the others: how many have failed since its release was
-- made ($2), and how many are offline or held.
-- name: standing
SELECT count(*) AS nodes,
    count(*) FILTER (WHERE n.confirmed_generation >= GREATEST(n.generation, g.generation)) AS arrived,
    count(*) FILTER (WHERE n.confirmed_generation < GREATEST(n.generation, g.generation)
        AND n.error_code <> '' AND n.error_at >= $2) AS failed,
    count(*) FILTER (WHERE n.confirmed_generation < GREATEST(n.generation, g.generation)
        AND (n.error_code = '' OR n.error_at < $2) AND (n.state = 'offline' OR n.restore_id IS NOT NULL)) AS away
FROM groups AS g JOIN nodes AS n ON n.group_id = g.id
WHERE g.id = $1::text::uuid AND n.removed_at IS NULL AND n.state <> 'revoked'
    AND (n.release_id IS NULL OR n.generation <= g.generation);

-- The codes of the errors of a group's nodes that have failed since its release was made, the most frequent first.
-- name: codes
SELECT n.error_code AS code, count(*) AS nodes
FROM groups AS g JOIN nodes AS n ON n.group_id = g.id
WHERE g.id = $1::text::uuid AND n.removed_at IS NULL AND n.state <> 'revoked'
    AND (n.release_id IS NULL OR n.generation <= g.generation)
    AND n.error_code <> '' AND n.error_at >= $2
    AND n.confirmed_generation < GREATEST(n.generation, g.generation)
GROUP BY n.error_code ORDER BY nodes DESC, code LIMIT 5;

-- Record that a release has arrived at all nodes of its group, if that isn't known yet.
-- name: mark_arrived
UPDATE releases SET arrived_at = $2 WHERE id = $1::text::uuid AND arrived_at IS NULL RETURNING number;

-- Record that no node is on its way to a release and some have failed, if that isn't known yet.
-- name: mark_failed
UPDATE releases SET failed_at = $2 WHERE id = $1::text::uuid AND failed_at IS NULL RETURNING number;
