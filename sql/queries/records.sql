-- Refused authentications, newest first, before a minute, address and reason.
-- name: auth_failures
SELECT minute, address, reason, count, first_at, last_at FROM auth_failures
WHERE $1::timestamptz IS NULL OR (minute, address, reason) < ($1, $2, $3)
ORDER BY minute DESC, address DESC, reason DESC LIMIT $4;

-- The nodes with a name or an id; removed nodes have logs too.
-- name: nodes
SELECT id FROM nodes WHERE name = $1 OR id = $2;

-- The log of syncs, newest first, before a time and id; of some nodes ($3), with one status ($4), of some groups ($5), if
-- given.
-- name: syncs
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
-- name: sync
SELECT s.id, n.name AS node, g.name AS group_name, r.number AS release, s.generation, s.status, s.step, s.started_at,
    s.lease_until, s.ended_at, s.error_code, s.error_message, s.late_status, s.folded
FROM syncs s JOIN nodes n ON n.id = s.node_id LEFT JOIN releases r ON r.id = s.release_id
    JOIN groups g ON g.id = coalesce(r.group_id, n.group_id)
WHERE s.id = $1;
