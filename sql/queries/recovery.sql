-- What nodes run that the metadata don't know, as after a restore from a backup.

-- The counter of generations.
-- name: generation
SELECT generation FROM generations WHERE id = 1;

-- Nodes that completed a generation above the counter ($1), but none above $2, by group: how many, and the highest.
-- name: ahead
SELECT g.name, count(*) AS nodes, max(n.ran_generation) AS generation
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
WHERE n.removed_at IS NULL AND n.ran_generation > $1 AND n.ran_generation <= $2
GROUP BY g.name ORDER BY g.name;

-- Nodes that say that they completed a generation above a number.
-- name: not_believed
SELECT name, ran_generation AS generation FROM nodes WHERE removed_at IS NULL AND ran_generation > $1 ORDER BY name LIMIT $2;

-- Groups with nodes that aren't at their target: how many, and the release that this is.
-- name: behind
SELECT g.name, r.number AS release, count(*) AS nodes
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    JOIN releases AS r ON r.id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
WHERE n.removed_at IS NULL AND n.confirmed_generation < greatest(n.generation, g.generation)
GROUP BY g.name, r.number ORDER BY g.name, r.number;

-- Versions that nodes run and the metadata don't know, with how many nodes and one of them.
-- name: unknown_versions
SELECT f.name, f.version, f.sha256, count(*) AS nodes, min(n.name) AS node,
    f.version > coalesce(k.last_version, 0) AS after_backup
FROM node_functions AS f JOIN nodes AS n ON n.id = f.node_id LEFT JOIN functions AS k ON k.name = f.name
WHERE n.removed_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM function_versions AS v
    WHERE v.name = f.name AND v.version = f.version AND v.sha256 = f.sha256 AND v.manifest_digest = f.manifest_digest
)
GROUP BY f.name, f.version, f.sha256, k.last_version ORDER BY f.name, f.version, f.sha256 LIMIT $1;

-- Functions of which nodes run a later version than the last that was made, but none that is more than $1 later.
-- name: later_versions
SELECT f.name, coalesce(k.last_version, 0) AS known, max(f.version) AS version
FROM node_functions AS f JOIN nodes AS n ON n.id = f.node_id LEFT JOIN functions AS k ON k.name = f.name
WHERE n.removed_at IS NULL AND f.version > coalesce(k.last_version, 0)
    AND f.version <= coalesce(k.last_version, 0) + $1
GROUP BY f.name, k.last_version ORDER BY f.name;

-- Histories of schema changes that nodes have which refuse every plan: of each, how many nodes and one of them.
-- name: histories
SELECT n.schema_changes::text AS schema_changes, count(*) AS nodes, min(n.name) AS node
FROM nodes AS n
WHERE n.removed_at IS NULL AND (n.schema_version > $1 OR n.error_code = 'history_mismatch')
GROUP BY n.schema_changes::text ORDER BY count(*) DESC LIMIT $2;

-- How many nodes there are, and how many of them weren't heard of since a time.
-- name: unheard
SELECT count(*) AS nodes,
    coalesce(sum(CASE WHEN p.last_seen_at IS NULL OR p.last_seen_at < $1 THEN 1 ELSE 0 END), 0)::int8 AS unheard
FROM nodes AS n LEFT JOIN node_presence AS p ON p.node_id = n.id WHERE n.removed_at IS NULL;

-- Addresses whose credentials weren't known, or not good, since a time.
-- name: refused
SELECT address, reason, sum(count)::int8 AS count, max(last_at) AS last_at FROM auth_failures
WHERE last_at >= $1 AND reason IN ('unknown', 'wrong_secret', 'revoked')
GROUP BY address, reason ORDER BY max(last_at) DESC, address LIMIT $2;

-- Let the next generation be above a number.
-- name: jump
UPDATE generations SET generation = $1 WHERE id = 1 AND generation < $1;

-- Let the next versions of functions be above numbers, one element of each array for each function.
-- name: jump_versions
INSERT INTO functions (name, last_version, created_at)
SELECT u.name, u.version::int8, $3::timestamptz FROM unnest($1::text[], $2::text[]) AS u (name, version)
ON CONFLICT (name) DO UPDATE SET last_version = greatest(functions.last_version, excluded.last_version);

-- When the metadata turned out to be restored; NULL where they weren't, or recovery was done since.
-- name: restored_at
SELECT restored_at FROM artifact_store WHERE id = 1;

-- Recovery was done.
-- name: recovered
UPDATE artifact_store SET restored_at = NULL WHERE id = 1;
