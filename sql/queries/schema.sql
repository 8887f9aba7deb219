-- The newest revision of each change, by number, after a number.
-- name: changes
SELECT DISTINCT ON (number) number, revision, name, sql, checksum, created_by, created_at, planned_at, withdrawn,
    losses, stalls
FROM schema_changes
WHERE number > $1 ORDER BY number, revision DESC LIMIT $2;

-- The newest revisions of a change, up to a number of them, the newest first.
-- name: revisions
SELECT number, revision, name, sql, checksum, created_by, created_at, planned_at, withdrawn, losses, stalls
FROM schema_changes
WHERE number = $1 ORDER BY revision DESC LIMIT $2;

-- The number of each change and of its newest revision.
-- name: numbers
SELECT number, max(revision) AS revision FROM schema_changes GROUP BY number ORDER BY number;

-- Register a revision of a change.
-- name: add
INSERT INTO schema_changes (number, revision, name, sql, checksum, created_by, created_at, withdrawn, losses,
    stalls)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
RETURNING number, revision, name, sql, checksum, created_by, created_at, planned_at, withdrawn, losses, stalls;

-- Lock all revisions of a change, the newest first: no plan gets one of them meanwhile.
-- name: lock
SELECT number, revision, name, sql, checksum, created_by, created_at, planned_at, withdrawn, losses, stalls
FROM schema_changes
WHERE number = $1 ORDER BY revision DESC FOR NO KEY UPDATE;

-- The first change after a number that wasn't withdrawn.
-- name: next
SELECT n.number FROM (
    SELECT DISTINCT ON (number) number, withdrawn FROM schema_changes
    WHERE number > $1 ORDER BY number, revision DESC
) AS n
WHERE NOT n.withdrawn ORDER BY n.number LIMIT 1;

-- Whether a node was given a release with a change, by a replica of an earlier version, which doesn't write planned_at.
-- name: synced
SELECT EXISTS (
    SELECT 1 FROM syncs AS s JOIN releases AS r ON r.id = s.release_id
    WHERE r.schema_floor >= $1 AND s.error_code <> 'history_mismatch'
        AND s.started_at >= (SELECT min(created_at) FROM schema_changes WHERE number = $1)
);

-- An open rollout whose release has a change.
-- name: rolled_out
SELECT g.name AS group_name, r.number FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id
    JOIN groups AS g ON g.id = o.group_id
WHERE o.state IN ('running', 'paused') AND r.schema_floor >= $1 ORDER BY g.name LIMIT 1;
