-- A group by name.
-- name: group
SELECT id, release_id, generation FROM groups WHERE name = $1;

-- What a release of a group goes by: the newest release, which is that of the open rollout, unless this only rehearses
-- it, or else the group's own; its floor, 0 without one; the group's own release; how releases go out; the highest floor
-- of releases that nodes may have run; the number of the newest schema change, and the number of the next release.
-- name: to_release
SELECT g.id, coalesce(p.id, r.id) AS release_id, coalesce(p.schema_floor, r.schema_floor, 0) AS schema_floor,
    r.id AS own_id, r.number AS own_number, coalesce(r.schema_floor, 0) AS own_floor, g.policy,
    b.number AS open_number, o.policy AS open_policy, coalesce(o.rehearsal_only, false) AS open_rehearses,
    (SELECT coalesce(max(h.schema_floor), 0) FROM releases AS h WHERE h.group_id = g.id AND NOT EXISTS (
        SELECT 1 FROM rollouts AS u WHERE u.release_id = h.id AND u.state <> 'done'
            AND NOT EXISTS (SELECT 1 FROM rollout_nodes AS s WHERE s.release_id = h.id)
    )) AS highest_floor,
    (SELECT coalesce(max(c.number), 0) FROM schema_changes AS c) AS newest_change,
    (SELECT coalesce(max(n.number), 0) + 1 FROM releases AS n WHERE n.group_id = g.id) AS next_number
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN rollouts AS o ON o.group_id = g.id AND o.state IN ('running', 'paused')
    LEFT JOIN releases AS b ON b.id = o.release_id
    LEFT JOIN releases AS p ON p.id = o.release_id AND NOT o.rehearsal_only
WHERE g.name = $1;

-- Lock a group.
-- name: lock_group
SELECT id FROM groups WHERE id = $1 FOR NO KEY UPDATE;

-- The number of the newest schema change.
-- name: newest_change
SELECT coalesce(max(number), 0) FROM schema_changes;

-- A release's number.
-- name: number
SELECT number FROM releases WHERE id = $1;

-- The functions of releases.
-- name: functions
SELECT release_id, name, version, sha256 FROM release_functions
WHERE release_id = ANY($1::text[]::uuid[]) ORDER BY release_id, name;

-- Those of these versions that exist, with the bytes that the manifests of the counted ones ($3) have together. Where
-- these are more than $4, the manifests stay where they are.
-- name: versions
WITH found AS (
    SELECT v.name, v.version, v.sha256, v.manifest, w.counted
    FROM function_versions AS v
        JOIN unnest($1::text[], $2::text[]::int8[], $3::text[]::bool[]) AS w (name, version, counted)
            ON v.name = w.name AND v.version = w.version
), size AS (
    SELECT coalesce(sum(octet_length(c.manifest::text)), 0)::int8 AS bytes FROM found AS c WHERE c.counted
)
SELECT f.name, f.version, f.sha256, s.bytes, CASE WHEN s.bytes <= $4::int8 THEN f.manifest END AS manifest
FROM found AS f CROSS JOIN size AS s;

-- The generation that the next release or move will take.
-- name: next_generation
SELECT generation + 1 FROM generations WHERE id = 1;

-- Add a release with its functions, and make it the target of its group, by the next generation.
-- name: make
WITH taken AS (
    UPDATE generations SET generation = generation + 1 WHERE id = 1 RETURNING generation
), added AS (
    INSERT INTO releases (id, group_id, number, generation, schema_floor, rollback_to, reason, created_by, created_at,
        traceparent)
    SELECT $1::uuid, $2::uuid, $3::int8, t.generation, $4::int8, $5::int8, $6::text, $7::text, $8::timestamptz, $9::text
    FROM taken AS t RETURNING id
), contents AS (
    INSERT INTO release_functions (release_id, name, version, sha256)
    SELECT $1::uuid, f.name, f.version, f.sha256
    FROM unnest($10::text[], $11::text[]::int8[], $12::text[]) AS f (name, version, sha256) RETURNING name
)
UPDATE groups SET release_id = $1::uuid, generation = t.generation FROM taken AS t WHERE groups.id = $2::uuid
RETURNING t.generation;

-- Add a release with its functions, and leave its group's target as it is: a rollout brings it to nodes.
-- name: add
WITH taken AS (
    UPDATE generations SET generation = generation + 1 WHERE id = 1 RETURNING generation
), added AS (
    INSERT INTO releases (id, group_id, number, generation, schema_floor, rollback_to, reason, created_by, created_at,
        traceparent)
    SELECT $1::uuid, $2::uuid, $3::int8, t.generation, $4::int8, $5::int8, $6::text, $7::text, $8::timestamptz, $9::text
    FROM taken AS t RETURNING id
), contents AS (
    INSERT INTO release_functions (release_id, name, version, sha256)
    SELECT $1::uuid, f.name, f.version, f.sha256
    FROM unnest($10::text[], $11::text[]::int8[], $12::text[]) AS f (name, version, sha256) RETURNING name
)
SELECT generation FROM taken;

-- Releases, newest first, before a generation and id; of some groups ($3), if given.
-- name: releases
SELECT r.id, g.name AS group_name, r.number, r.generation, r.schema_floor, r.rollback_to, r.reason, r.created_by,
    r.created_at, o.state, o.policy, o.rehearsal_only
FROM releases r JOIN groups g ON g.id = r.group_id LEFT JOIN rollouts AS o ON o.release_id = r.id
WHERE g.deleted_at IS NULL AND (r.generation, r.id::text) < ($1, $2) AND ($3::text[] IS NULL OR g.name = ANY($3::text[]))
ORDER BY r.generation DESC, r.id::text DESC LIMIT $4;

-- A release of a group by its number.
-- name: release
SELECT r.id, g.name AS group_name, r.number, r.generation, r.schema_floor, r.rollback_to, r.reason, r.created_by,
    r.created_at, o.state, o.policy, o.rehearsal_only
FROM releases r JOIN groups g ON g.id = r.group_id LEFT JOIN rollouts AS o ON o.release_id = r.id
WHERE g.name = $1 AND r.number = $2;

-- The release of a group that one ($2), which was made at a time ($3), has changed: the newest one before it whose rollout
-- wasn't stopped by then, or only rehearsed it.
-- name: before
SELECT r.id, g.name AS group_name, r.number, r.generation, r.schema_floor, r.rollback_to, r.reason, r.created_by,
    r.created_at, o.state, o.policy, o.rehearsal_only
FROM releases r JOIN groups g ON g.id = r.group_id LEFT JOIN rollouts AS o ON o.release_id = r.id
WHERE g.name = $1 AND r.number < $2 AND (o.release_id IS NULL OR o.state = 'done'
    OR (NOT o.rehearsal_only AND (o.ended_at IS NULL OR o.ended_at >= $3)))
ORDER BY r.number DESC LIMIT 1;

-- Let so many failing nodes of a group whose target is a release ($3) try again at once.
-- name: retry
UPDATE nodes SET retry_at = NULL, failed_generation = 0
WHERE id IN (
    SELECT n.id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    WHERE g.id = $1 AND n.removed_at IS NULL
        AND $3::uuid = CASE WHEN n.generation > g.generation THEN coalesce(n.release_id, g.release_id) ELSE g.release_id END
        AND n.state <> 'revoked' AND n.error_code <> '' AND n.failed_generation > 0
        AND n.confirmed_generation < greatest(n.generation, g.generation)
    LIMIT $2
)
RETURNING id::text AS id;

-- Schema changes above one number, up to another, under their newest names.
-- name: changes_between
SELECT DISTINCT ON (number) number, name FROM schema_changes
WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC;

-- The functions that have a probe, of the releases of groups, of open rollouts, and of nodes alone; each version once.
-- name: probed
SELECT DISTINCT ON (v.name, v.version) v.name, v.version, v.sha256, v.size, v.artifact_id::text AS artifact_id,
    v.manifest
FROM (
    SELECT h.release_id FROM groups AS h WHERE h.release_id IS NOT NULL
    UNION SELECT o.release_id FROM rollouts AS o WHERE o.state IN ('running', 'paused')
    UNION SELECT n.release_id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    WHERE n.release_id IS NOT NULL AND n.generation > g.generation
) AS t JOIN release_functions AS f ON f.release_id = t.release_id
    JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
WHERE v.manifest ->> 'probe' IS NOT NULL
ORDER BY v.name, v.version;
