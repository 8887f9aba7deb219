-- Syncs: what they change about a node, and the log of them (R 4.4, 5.3, 6.4).

-- Nodes with their targets: a node's own release while its generation is above its group's, else the group's.
-- name: nodes
SELECT n.id::text AS id, n.removed_at IS NOT NULL AS removed, n.state, n.state_since, n.schema_version, n.schema_changes::text AS schema_changes,
    n.database_id, n.digest, n.confirmed_generation, n.failures, n.failed_generation, n.retry_at,
    n.error_code, n.error_message, n.error_at, n.synced_at,
    n.capabilities_digest, n.protocol, n.syncs_folded, n.ran_generation, n.epoch,
    coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)::text AS release_id,
    GREATEST(n.generation, g.generation) AS target_generation, n.restore_id IS NOT NULL AS held
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
WHERE n.id = ANY($1::text[]::uuid[]);

-- Lock nodes that no other transaction has locked.
-- name: lock_free_nodes
SELECT id::text AS id FROM nodes WHERE id = ANY($1::text[]::uuid[]) FOR NO KEY UPDATE SKIP LOCKED;

-- Lock the open syncs of nodes that no other transaction has locked.
-- name: lock_free_syncs
SELECT id::text AS id FROM syncs WHERE status = 'running' AND node_id = ANY($1::text[]::uuid[]) FOR NO KEY UPDATE SKIP LOCKED;

-- The functions that nodes reported.
-- name: node_functions
SELECT node_id::text AS node_id, name, version, sha256, manifest_digest
FROM node_functions WHERE node_id = ANY($1::text[]::uuid[]);

-- Write nodes back, one element of each array for each node. '' is NULL for a time; for schema_changes and capabilities
-- it leaves what is stored.
-- name: save_nodes
UPDATE nodes AS n
SET state = u.state,
    state_since = u.state_since::timestamptz,
    schema_version = u.schema_version::int8,
    schema_changes = COALESCE(NULLIF(u.schema_changes, '')::jsonb, n.schema_changes),
    database_id = u.database_id,
    digest = u.digest,
    confirmed_generation = u.confirmed_generation::int8,
    failures = u.failures::int8,
    failed_generation = u.failed_generation::int8,
    retry_at = NULLIF(u.retry_at, '')::timestamptz,
    error_code = u.error_code,
    error_message = u.error_message,
    error_at = NULLIF(u.error_at, '')::timestamptz,
    synced_at = NULLIF(u.synced_at, '')::timestamptz,
    capabilities = COALESCE(NULLIF(u.capabilities, '')::jsonb, n.capabilities),
    capabilities_digest = u.capabilities_digest,
    protocol = u.protocol::int8,
    syncs_folded = u.syncs_folded::int8,
    ran_generation = u.ran_generation::int8
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[]
) AS u (
    id, state, state_since, schema_version, schema_changes, database_id, digest, confirmed_generation, failures,
    failed_generation, retry_at, error_code, error_message, error_at, synced_at, capabilities, capabilities_digest,
    protocol, syncs_folded, ran_generation
)
WHERE n.id = u.id::uuid;

-- Delete the functions that nodes reported before.
-- name: delete_functions
DELETE FROM node_functions WHERE node_id = ANY($1::text[]::uuid[]);

-- Add the functions that nodes report.
-- name: insert_functions
INSERT INTO node_functions (node_id, name, version, sha256, manifest_digest)
SELECT u.node_id::uuid, u.name, u.version::int8, u.sha256, u.manifest_digest
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS u (node_id, name, version, sha256, manifest_digest);

-- The open syncs of nodes; a node has one at most.
-- name: open_syncs
SELECT id::text AS id, node_id::text AS node_id, generation, step, lease_until
FROM syncs WHERE status = 'running' AND node_id = ANY($1::text[]::uuid[]);

-- Syncs by id.
-- name: syncs
SELECT id::text AS id, node_id::text AS node_id, release_id::text AS release_id, generation, status, step, lease_until,
    late_status
FROM syncs WHERE id = ANY($1::text[]::uuid[]);

-- Open syncs, one element of each array for each sync.
-- name: insert_syncs
INSERT INTO syncs (id, node_id, release_id, generation, status, started_at, lease_until)
SELECT u.id::uuid, u.node_id::uuid, u.release_id::uuid, u.generation::int8, 'running', $5, $6
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS u (id, node_id, release_id, generation);

-- The newest ended sync of each node that has at least $4 of them for a generation since a time. One element of each
-- array for each node and its generation.
-- name: full
SELECT w.node_id::text AS node_id, (array_agg(s.id::text ORDER BY s.started_at DESC, s.id DESC))[1] AS newest
FROM unnest($1::text[], $2::text[]) AS w (node_id, generation)
    JOIN syncs AS s ON s.node_id = w.node_id::uuid AND s.generation = w.generation::int8
WHERE s.started_at >= $3 AND s.status <> 'running'
GROUP BY w.node_id HAVING count(*) >= $4;

-- Open ended syncs again, for attempts that get no line of their own.
-- name: reopen_syncs
UPDATE syncs
SET status = 'running', step = '', started_at = $2, lease_until = $3, ended_at = NULL, error_code = '',
    error_message = '', late_status = NULL, late_at = NULL, folded = folded + 1
WHERE id = ANY($1::text[]::uuid[]);

-- Count syncs that failed before they began in lines of ended syncs, one element of each array for each line.
-- name: fold_failed_syncs
UPDATE syncs AS s
SET status = 'failed', step = '', started_at = $4, lease_until = $4, ended_at = $4, error_code = u.code,
    error_message = u.message, late_status = NULL, late_at = NULL, folded = s.folded + 1
FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, code, message)
WHERE s.id = u.id::uuid;

-- Record syncs that failed before they began.
-- name: insert_failed_syncs
INSERT INTO syncs
    (id, node_id, release_id, generation, status, started_at, lease_until, ended_at, error_code, error_message)
SELECT u.id::uuid, u.node_id::uuid, u.release_id::uuid, u.generation::int8, 'failed', $7, $7, $7, u.code, u.message
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS u (id, node_id, release_id, generation, code, message);

-- Renew the leases of syncs whose plans are answered again.
-- name: renew_syncs
UPDATE syncs SET lease_until = $2 WHERE status = 'running' AND id = ANY($1::text[]::uuid[]);

-- Renew the leases of syncs whose nodes report a step, one element of each array for each sync.
-- name: go_on
UPDATE syncs AS s SET lease_until = $3, step = u.step
FROM unnest($1::text[], $2::text[]) AS u (id, step)
WHERE s.id = u.id::uuid AND s.status = 'running';

-- End open syncs, one element of each array for each sync.
-- name: end_syncs
UPDATE syncs AS s
SET status = u.status, ended_at = $5, error_code = u.code, error_message = u.message
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS u (id, status, code, message)
WHERE s.id = u.id::uuid AND s.status = 'running';

-- Record that a node runs these releases, where that isn't known yet.
-- name: mark_reached
UPDATE releases SET reached_at = $2 WHERE id = ANY($1::text[]::uuid[]) AND reached_at IS NULL;

-- Record results that were reported after their syncs had ended; of several, the first.
-- name: late
UPDATE syncs AS s SET late_status = u.status, late_at = $3
FROM unnest($1::text[], $2::text[]) AS u (id, status)
WHERE s.id = u.id::uuid AND s.late_status IS NULL;

-- A sync that has ended, where the request that made its release was traced.
-- name: traced
SELECT s.started_at, s.ended_at, s.error_code, r.traceparent, r.number, g.name AS group_name, n.name AS node
FROM syncs AS s JOIN releases AS r ON r.id = s.release_id JOIN groups AS g ON g.id = r.group_id
    JOIN nodes AS n ON n.id = s.node_id
WHERE s.id = $1::text::uuid AND s.ended_at IS NOT NULL AND r.traceparent != '';

-- The nodes with a name or an id; removed nodes have logs too.
-- name: nodes_called
SELECT id FROM nodes WHERE name = $1 OR id = $2;

-- The log of syncs, newest first, before a time and id; of some nodes ($3), with one status ($4), of some groups ($5), if
-- given.
-- name: log
SELECT s.id, n.name AS node, g.name AS group_name, r.number AS release, s.generation, s.status, s.step, s.started_at,
    s.lease_until, s.ended_at, s.error_code, s.error_message, s.late_status, s.folded
FROM syncs s JOIN nodes n ON n.id = s.node_id LEFT JOIN releases r ON r.id = s.release_id
    JOIN groups g ON g.id = coalesce(r.group_id, n.group_id)
WHERE ($1::timestamptz IS NULL OR (s.started_at, s.id) < ($1, $2::uuid))
    AND ($3::text[] IS NULL OR s.node_id = ANY($3::text[]::uuid[]))
    AND ($4::text IS NULL OR s.status = $4)
    AND ($5::text[] IS NULL OR g.name = ANY($5::text[]))
ORDER BY s.started_at DESC, s.id DESC LIMIT $6;

-- One sync of the log.
-- name: logged
SELECT s.id, n.name AS node, g.name AS group_name, r.number AS release, s.generation, s.status, s.step, s.started_at,
    s.lease_until, s.ended_at, s.error_code, s.error_message, s.late_status, s.folded
FROM syncs s JOIN nodes n ON n.id = s.node_id LEFT JOIN releases r ON r.id = s.release_id
    JOIN groups g ON g.id = coalesce(r.group_id, n.group_id)
WHERE s.id = $1;
