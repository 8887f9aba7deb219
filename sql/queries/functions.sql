-- Functions that have versions, by name, after a name.
-- name: functions
SELECT f.name, f.last_version, f.created_at, count(*) AS versions
FROM functions f JOIN function_versions v ON v.name = f.name
WHERE f.name > $1 GROUP BY f.name, f.last_version, f.created_at ORDER BY f.name LIMIT $2;

-- One function, if it has versions.
-- name: function
SELECT f.name, f.last_version, f.created_at, count(*) AS versions
FROM functions f JOIN function_versions v ON v.name = f.name
WHERE f.name = $1 GROUP BY f.name, f.last_version, f.created_at;

-- The newest versions' numbers of these functions, of those that have versions.
-- name: newest_of
SELECT f.name, f.last_version FROM functions AS f
WHERE f.name = ANY($1::text[]) AND EXISTS (SELECT 1 FROM function_versions AS v WHERE v.name = f.name);

-- Functions that have versions and aren't among these, by name.
-- name: not_among
SELECT f.name, f.last_version FROM functions AS f
WHERE NOT f.name = ANY($1::text[]) AND EXISTS (SELECT 1 FROM function_versions AS v WHERE v.name = f.name)
ORDER BY f.name LIMIT $2;

-- Functions that have versions and a text in their names: the one that is called so, then those that begin with it.
-- name: named_like
SELECT f.name FROM functions AS f
WHERE strpos(f.name, $1) > 0 AND EXISTS (SELECT 1 FROM function_versions AS v WHERE v.name = f.name)
ORDER BY CASE WHEN f.name = $1 THEN 0 WHEN strpos(f.name, $1) = 1 THEN 1 ELSE 2 END, f.name LIMIT $2;

-- How many groups' newest releases have each of these functions; of these groups ($2), if given.
-- name: in_targets
SELECT f.name, count(*) AS groups
FROM groups AS g JOIN release_functions AS f ON f.release_id = g.release_id
WHERE f.name = ANY($1::text[]) AND ($2::text[] IS NULL OR g.name = ANY($2::text[]))
GROUP BY f.name;

-- Groups whose newest release has the function; of these groups ($2), if given.
-- name: targets
SELECT g.name AS "group", r.number AS release, f.version
FROM groups AS g JOIN releases AS r ON r.id = g.release_id JOIN release_functions AS f ON f.release_id = r.id
WHERE f.name = $1 AND ($2::text[] IS NULL OR g.name = ANY($2::text[]))
ORDER BY g.name LIMIT $3;

-- Versions whose artifact's sha256 is from $1 on, and before $2.
-- name: with_artifact
SELECT v.name, v.version, v.sha256
FROM artifacts AS a JOIN function_versions AS v ON v.artifact_id = a.id
WHERE a.sha256 >= $1 AND a.sha256 < $2
ORDER BY v.name, v.version DESC LIMIT $3;

-- Whether the function has a version.
-- name: has_versions
SELECT EXISTS (SELECT 1 FROM function_versions WHERE name = $1);

-- Versions of a function, newest first, below a number.
-- name: versions
SELECT name, version, sha256, size, manifest::text AS manifest, created_by, created_at FROM function_versions
WHERE name = $1 AND version < $2 ORDER BY version DESC LIMIT $3;

-- One version.
-- name: version
SELECT name, version, sha256, size, manifest::text AS manifest, created_by, created_at FROM function_versions
WHERE name = $1 AND version = $2;

-- Take the number of the function's next version; a number is never used twice.
-- name: next_version
INSERT INTO functions (name, last_version, created_at) VALUES ($1, 1, $2)
ON CONFLICT (name) DO UPDATE SET last_version = functions.last_version + 1 RETURNING last_version;

-- Add a version.
-- name: add
INSERT INTO function_versions (name, version, artifact_id, sha256, size, manifest, manifest_digest, created_by,
    created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- The groups whose target has this version, or any version, of the function.
-- name: groups_with
SELECT g.id, g.name FROM groups g JOIN release_functions f ON f.release_id = g.release_id
WHERE f.name = $1 AND ($2::int8 IS NULL OR f.version = $2) ORDER BY g.name;

-- The releases with this version, or any version, of the function that aren't their group's, but that nodes have from a
-- rollout, or may get from one that is open.
-- name: rolled_out_with
SELECT g.name AS group_name, r.number, f.version
FROM release_functions AS f JOIN releases AS r ON r.id = f.release_id JOIN groups AS g ON g.id = r.group_id
WHERE f.name = $1 AND ($2::int8 IS NULL OR f.version = $2) AND r.id IS DISTINCT FROM g.release_id AND (
    r.id IN (SELECT o.release_id FROM rollouts AS o WHERE o.state IN ('running', 'paused'))
    OR r.id IN (
        SELECT n.release_id FROM nodes AS n
        WHERE n.release_id IS NOT NULL AND n.group_id = g.id AND n.generation > g.generation AND n.removed_at IS NULL
    )
)
ORDER BY g.name, r.number LIMIT $3;

-- The groups with a release, of which this or an earlier one has this version, or any version, of the function.
-- name: groups_once_with
SELECT g.id, g.release_id, g.generation FROM groups g
WHERE g.release_id IS NOT NULL AND EXISTS (
    SELECT 1 FROM releases r JOIN release_functions f ON f.release_id = r.id
    WHERE r.group_id = g.id AND f.name = $1 AND ($2::int8 IS NULL OR f.version = $2)
)
ORDER BY g.name;

-- The releases that have this version, or any version, of the function, and that a rollback of their group would go to:
-- the newest one before the target that a node has run, and that which `skerry rollback` chooses (groups in $4, numbers
-- in $5).
-- name: needed_by
SELECT g.name AS group_name, r.number, f.version
FROM release_functions f JOIN releases r ON r.id = f.release_id JOIN groups g ON g.id = r.group_id
    JOIN releases t ON t.id = g.release_id
WHERE f.name = $1 AND ($2::int8 IS NULL OR f.version = $2) AND (
    r.number = (
        SELECT max(p.number) FROM releases p
        WHERE p.group_id = g.id AND p.number < t.number AND p.reached_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM rollouts AS o WHERE o.release_id = p.id AND o.state <> 'done')
    )
    OR (g.id::text, r.number::text) IN (SELECT u.id, u.number FROM unnest($4::text[], $5::text[]) AS u (id, number))
)
ORDER BY g.name LIMIT $3;

-- Delete a version, or all, of a function.
-- name: delete
DELETE FROM function_versions WHERE name = $1 AND ($2::int8 IS NULL OR version = $2)
RETURNING version, artifact_id::text AS artifact_id;
