-- What plans are made of: releases and schema changes.

-- Releases by id, without their functions.
-- name: releases
SELECT id::text AS id, number, schema_floor, traceparent FROM releases WHERE id = ANY($1::text[]::uuid[]);

-- The functions of releases by id, with their manifests and artifacts, each with its release.
-- name: release_functions
SELECT r.id::text AS id, r.number, r.schema_floor, r.traceparent, f.name, f.version, f.sha256, v.size,
    v.artifact_id::text AS artifact_id, v.manifest, v.manifest_digest
FROM releases AS r JOIN release_functions AS f ON f.release_id = r.id
    JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
WHERE r.id = ANY($1::text[]::uuid[])
ORDER BY f.name;

-- Every revision of every schema change, without its text.
-- name: revisions
SELECT number, revision, name, checksum, planned_at IS NOT NULL AS planned FROM schema_changes;

-- The texts of schema changes from one number to another.
-- name: texts
SELECT number, revision, sql FROM schema_changes WHERE number BETWEEN $1 AND $2;

-- Revisions that a plan contains for the first time, one element of each array for each.
-- name: mark_planned
UPDATE schema_changes AS c SET planned_at = $3
FROM unnest($1::text[], $2::text[]) AS u (number, revision)
WHERE c.number = u.number::int8 AND c.revision = u.revision::int8 AND c.planned_at IS NULL;
