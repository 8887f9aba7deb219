-- Registered schema changes with what their check found, and whom they reach.

-- Schema changes above one number, up to another, whose check found something or isn't known.
-- name: found
SELECT n.number, n.losses, n.stalls FROM (
    SELECT DISTINCT ON (number) number, losses, stalls FROM schema_changes
    WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC
) AS n
WHERE n.losses IS NULL OR n.stalls IS NULL OR n.losses <> '[]'::jsonb OR n.stalls <> '[]'::jsonb ORDER BY n.number;

-- The first of those whose check isn't known.
-- name: unchecked
SELECT n.number, n.revision FROM (
    SELECT DISTINCT ON (number) number, revision, losses, stalls FROM schema_changes
    WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC
) AS n
WHERE n.losses IS NULL OR n.stalls IS NULL ORDER BY n.number LIMIT $3;

-- The newest texts of the changes up to a number.
-- name: texts
SELECT DISTINCT ON (number) number, sql FROM schema_changes WHERE number <= $1 ORDER BY number, revision DESC;

-- Keep what the check of a revision found that wasn't looked at when it was registered.
-- name: keep
UPDATE schema_changes SET losses = $3, stalls = $4
WHERE number = $1 AND revision = $2 AND (losses IS NULL OR stalls IS NULL);

-- A group, the floor of its release, the number of the newest schema change, and whether it has a node that isn't
-- revoked.
-- name: group_floor
SELECT g.id::text AS id, coalesce(r.schema_floor, 0) AS schema_floor,
    (SELECT coalesce(max(c.number), 0) FROM schema_changes AS c) AS newest_change,
    EXISTS (
        SELECT 1 FROM nodes AS n WHERE n.group_id = g.id AND n.removed_at IS NULL AND n.state <> 'revoked'
    ) AS has_nodes
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id WHERE g.name = $1;

-- The groups whose nodes get a change with their release, or with that of an open rollout.
-- name: groups_with
SELECT g.id::text FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE r.schema_floor >= $1
UNION
SELECT o.group_id::text FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id
WHERE o.state IN ('running', 'paused') AND r.schema_floor >= $1;

-- A node that may be moved to a group, and the floor of the group's release, or of that of its open rollout, if that is
-- higher.
-- name: moving
SELECT n.name, n.schema_version, greatest(coalesce(r.schema_floor, 0), coalesce(x.schema_floor, 0)) AS schema_floor
FROM nodes AS n JOIN groups AS g ON g.id = $2 LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN rollouts AS o ON o.group_id = g.id AND o.state IN ('running', 'paused')
    LEFT JOIN releases AS x ON x.id = o.release_id
WHERE n.id = $1;
