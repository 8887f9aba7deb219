-- Registered schema changes with what their check found, and whom they reach.

-- Schema changes above one number, up to another, whose check found something.
-- name: found
SELECT n.number, n.losses, n.stalls FROM (
    SELECT DISTINCT ON (number) number, losses, stalls FROM schema_changes
    WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC
) AS n
WHERE n.losses <> '[]'::jsonb OR n.stalls <> '[]'::jsonb ORDER BY n.number;

-- A group and the floor of its release.
-- name: group_floor
SELECT g.id::text AS id, coalesce(r.schema_floor, 0) AS schema_floor
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id WHERE g.name = $1;

-- The groups whose releases include a change.
-- name: groups_with
SELECT g.id::text FROM groups AS g JOIN releases AS r ON r.id = g.release_id WHERE r.schema_floor >= $1;

-- A node that may be moved to a group, and the floor of the group's release.
-- name: moving
SELECT n.name, n.schema_version, coalesce(r.schema_floor, 0) AS schema_floor
FROM nodes AS n JOIN groups AS g ON g.id = $2 LEFT JOIN releases AS r ON r.id = g.release_id
WHERE n.id = $1;
