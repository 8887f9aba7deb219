-- A group by name.
-- name: group
SELECT id, release_id, generation FROM groups WHERE name = $1;

-- Lock a group.
-- name: lock_group
SELECT id FROM groups WHERE id = $1 FOR NO KEY UPDATE;

-- Add a group.
-- name: add_group
INSERT INTO groups (id, name, created_at) VALUES ($1, $2, $3);

-- Groups with their release and the number of their nodes, by name, after a name; of these names ($2), if given.
-- name: groups
SELECT g.name, g.generation, g.release_id, r.number, r.schema_floor,
    (SELECT count(*) FROM nodes n WHERE n.group_id = g.id AND n.removed_at IS NULL) AS nodes
FROM groups g LEFT JOIN releases r ON r.id = g.release_id
WHERE g.deleted_at IS NULL AND g.name > $1 AND ($2::text[] IS NULL OR g.name = ANY($2::text[]))
ORDER BY g.name LIMIT $3;

-- The number of the newest schema change.
-- name: newest_change
SELECT coalesce(max(number), 0) FROM schema_changes;

-- A release's floor.
-- name: floor
SELECT schema_floor FROM releases WHERE id = $1;

-- A release's number.
-- name: number
SELECT number FROM releases WHERE id = $1;

-- The functions of releases.
-- name: functions
SELECT release_id, name, version, sha256 FROM release_functions
WHERE release_id = ANY($1::text[]::uuid[]) ORDER BY release_id, name;

-- Those of these versions that exist.
-- name: versions
SELECT v.name, v.version, v.sha256
FROM function_versions v JOIN unnest($1::text[], $2::text[]::int8[]) AS w (name, version)
    ON v.name = w.name AND v.version = w.version;

-- The manifests of versions.
-- name: manifests
SELECT v.name, v.manifest
FROM function_versions v JOIN unnest($1::text[], $2::text[]::int8[]) AS w (name, version)
    ON v.name = w.name AND v.version = w.version;

-- How many bytes the manifests of versions have together.
-- name: manifest_bytes
SELECT coalesce(sum(octet_length(v.manifest::text)), 0)::int8
FROM function_versions v JOIN unnest($1::text[], $2::text[]::int8[]) AS w (name, version)
    ON v.name = w.name AND v.version = w.version;

-- The number of the group's next release.
-- name: next_number
SELECT coalesce(max(number), 0) + 1 FROM releases WHERE group_id = $1;

-- The generation that the next release or move will take.
-- name: next_generation
SELECT generation + 1 FROM generations WHERE id = 1;

-- Take the next generation.
-- name: take_generation
UPDATE generations SET generation = generation + 1 WHERE id = 1 RETURNING generation;

-- Add a release.
-- name: add
INSERT INTO releases (id, group_id, number, generation, schema_floor, rollback_to, reason, created_by, created_at,
    traceparent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- Add the functions of a release.
-- name: add_functions
INSERT INTO release_functions (release_id, name, version, sha256)
SELECT $1, name, version, sha256
FROM unnest($2::text[], $3::text[]::int8[], $4::text[]) AS f (name, version, sha256);

-- Make a release the target of its group.
-- name: set_target
UPDATE groups SET release_id = $2, generation = $3 WHERE id = $1;

-- Releases, newest first, before a generation and id; of some groups ($3), if given.
-- name: releases
SELECT r.id, g.name AS group_name, r.number, r.generation, r.schema_floor, r.rollback_to, r.reason, r.created_by,
    r.created_at
FROM releases r JOIN groups g ON g.id = r.group_id
WHERE g.deleted_at IS NULL AND (r.generation, r.id::text) < ($1, $2) AND ($3::text[] IS NULL OR g.name = ANY($3::text[]))
ORDER BY r.generation DESC, r.id::text DESC LIMIT $4;

-- A release of a group by its number.
-- name: release
SELECT r.id, g.name AS group_name, r.number, r.generation, r.schema_floor, r.rollback_to, r.reason, r.created_by,
    r.created_at
FROM releases r JOIN groups g ON g.id = r.group_id WHERE g.name = $1 AND r.number = $2;

-- Let so many failing nodes of a group try again at once.
-- name: retry
UPDATE nodes SET retry_at = NULL, failed_generation = 0
WHERE id IN (
    SELECT n.id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    WHERE g.id = $1 AND n.removed_at IS NULL AND n.state <> 'revoked' AND n.error_code <> '' AND n.failed_generation > 0
        AND n.confirmed_generation < greatest(n.generation, g.generation)
    LIMIT $2
)
RETURNING id::text AS id;

-- Schema changes above one number, up to another, under their newest names.
-- name: changes_between
SELECT DISTINCT ON (number) number, name FROM schema_changes
WHERE number > $1 AND number <= $2 ORDER BY number, revision DESC;

-- The functions of groups' releases that have a probe, each version once.
-- name: probed
SELECT DISTINCT ON (v.name, v.version) v.name, v.version, v.sha256, v.size, v.artifact_id::text AS artifact_id,
    v.manifest
FROM groups AS g JOIN release_functions AS f ON f.release_id = g.release_id
    JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
WHERE v.manifest ->> 'probe' IS NOT NULL
ORDER BY v.name, v.version;
