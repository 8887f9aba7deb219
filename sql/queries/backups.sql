-- Backups of nodes' databases: their histories, and what nodes tell of them.

-- Whether one history of a node has ended.
-- name: ended
SELECT ended_at IS NOT NULL FROM backups WHERE node_id = $1 AND lineage = $2;

-- Lock a node that wasn't removed.
-- name: lock_node
SELECT id FROM nodes WHERE id = $1 AND removed_at IS NULL FOR NO KEY UPDATE;

-- End the history of a node that goes on, for another one takes its place.
-- name: end
UPDATE backups SET ended_at = $2 WHERE node_id = $1 AND ended_at IS NULL;

-- Begin a history of a node.
-- name: begin
INSERT INTO backups (node_id, lineage, begun_at, told_at) VALUES ($1, $2, $3, $3);

-- The histories of a node, the newest one first.
-- name: lineages
SELECT lineage FROM backups WHERE node_id = $1 ORDER BY begun_at DESC, lineage;

-- A release of a node's group, by its number.
-- name: release_of_node
SELECT r.id FROM nodes AS n JOIN releases AS r ON r.group_id = n.group_id WHERE n.id = $1 AND r.number = $2;

-- The last transaction before a node's flip to a release.
-- name: boundary
SELECT lineage, transaction_id AS transaction FROM boundaries WHERE node_id = $1 AND release_id = $2;

-- Write how far the histories of nodes have come, as they tell, one element of each array for each node; ''
-- leaves a time as it was. What was reached doesn't go back: an older report may come late.
-- name: tell
UPDATE backups AS b
SET reached = greatest(b.reached, u.reached::int8),
    reached_at = greatest(b.reached_at, nullif(u.reached_at, '')::timestamptz),
    pending = u.pending::int8, error = u.error,
    told_at = greatest(b.told_at, u.told_at::timestamptz)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS u (node_id, lineage, reached, reached_at, pending, error, told_at)
WHERE b.node_id = u.node_id::uuid AND b.lineage = u.lineage;

-- Add the same for nodes without any history that goes on, which have got no place for a file yet.
-- name: tell_first
INSERT INTO backups (node_id, lineage, begun_at, reached, reached_at, pending, error, told_at)
SELECT n.id, u.lineage, u.told_at::timestamptz, u.reached::int8, nullif(u.reached_at, '')::timestamptz,
    u.pending::int8, u.error, u.told_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS u (node_id, lineage, reached, reached_at, pending, error, told_at)
    JOIN nodes AS n ON n.id = u.node_id::uuid
WHERE n.removed_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM backups AS b WHERE b.node_id = n.id AND (b.ended_at IS NULL OR b.lineage = u.lineage)
)
ON CONFLICT DO NOTHING;

-- Write the transactions before nodes' flips to releases, one element of each array for each flip.
-- name: write_boundaries
INSERT INTO boundaries (node_id, release_id, lineage, transaction_id, at)
SELECT u.node_id::uuid, u.release_id::uuid, u.lineage, u.transaction_id::int8, $5
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS u (node_id, release_id, lineage, transaction_id)
ON CONFLICT (node_id, release_id) DO UPDATE
SET lineage = excluded.lineage, transaction_id = excluded.transaction_id, at = excluded.at;

-- The history of a node that goes on and of which the store has something.
-- name: open_history
SELECT lineage FROM backups WHERE node_id = $1 AND ended_at IS NULL;

-- Histories with shipments that weren't merged, which weren't looked at since $1.
-- name: merge_due
SELECT b.node_id::text AS node_id, b.lineage, b.merged, coalesce(p.last_seen_at, b.begun_at) AS seen_at
FROM backups AS b LEFT JOIN node_presence AS p ON p.node_id = b.node_id
WHERE b.ended_at IS NULL AND b.reached > b.merged AND (b.merged_at IS NULL OR b.merged_at < $1)
ORDER BY coalesce(b.merged_at, '2000-01-01T00:00:00Z'::timestamptz) LIMIT $2;

-- Note that a history was looked at, and that its shipments up to a transaction were merged.
-- name: note_merged
UPDATE backups SET merged_at = $3, merged = greatest(merged, $4) WHERE node_id = $1 AND lineage = $2;

-- The transactions of a history before releases, and those to which nodes are to be brought back.
-- name: cuts
SELECT transaction_id FROM boundaries WHERE node_id = $1 AND lineage = $2
UNION ALL
SELECT transaction_id FROM restores WHERE lineage = $2 AND state = 'ordered';

-- Histories whose retention wasn't looked at since $1; none of which a node is to bring something back.
-- name: sweep_due
SELECT b.node_id::text AS node_id, b.lineage, coalesce(b.ended_at, n.removed_at) AS ended_at,
    (g.backup ->> 'retention')::int8 AS retention,
    n.id IS NULL OR n.removed_at IS NOT NULL OR EXISTS (
        SELECT 1 FROM backups AS o
        WHERE o.node_id = b.node_id AND o.ended_at IS NULL AND o.lineage <> b.lineage AND o.proven > 0
    ) AS replaced
FROM backups AS b LEFT JOIN nodes AS n ON n.id = b.node_id LEFT JOIN groups AS g ON g.id = n.group_id
WHERE (b.swept_at IS NULL OR b.swept_at < $1)
    AND NOT EXISTS (SELECT 1 FROM restores AS r WHERE r.lineage = b.lineage AND r.state = 'ordered')
ORDER BY coalesce(b.swept_at, '2000-01-01T00:00:00Z'::timestamptz) LIMIT $2;

-- Note that the retention of a history was looked at, and how many bytes the store has of it.
-- name: note_swept
UPDATE backups SET swept_at = $3, at_store = $4 WHERE node_id = $1 AND lineage = $2;

-- Forget the boundaries in a history of which the store has nothing any more.
-- name: forget_boundaries
DELETE FROM boundaries WHERE node_id = $1 AND lineage = $2;

-- Forget such a history.
-- name: forget
DELETE FROM backups WHERE node_id = $1 AND lineage = $2;

-- Histories that weren't tried since $1, or not since $2 if nothing has come to them: first those of long ago.
-- name: drill_due
SELECT b.node_id::text AS node_id, b.lineage
FROM backups AS b JOIN nodes AS n ON n.id = b.node_id
WHERE b.ended_at IS NULL AND n.removed_at IS NULL AND b.reached > 0 AND (
    b.drilled_at IS NULL OR b.drilled_at < $2
    OR (b.drilled_at < $1 AND (b.reached > b.proven OR b.drill_error <> ''))
)
ORDER BY coalesce(b.drilled_at, '2000-01-01T00:00:00Z'::timestamptz) LIMIT $3;

-- Keep what a drill has found: the last transaction that was restored and works (0: none is), and what was wrong.
-- name: keep_drill
UPDATE backups SET drilled_at = $3, drill_error = $5,
    proven = CASE WHEN $4::int8 > 0 THEN $4::int8 ELSE proven END,
    proven_at = CASE WHEN $4::int8 > 0 THEN $3::timestamptz ELSE proven_at END
WHERE node_id = $1 AND lineage = $2;

-- Those of these versions of functions that have a probe.
-- name: probed
SELECT v.name, v.version, v.sha256, v.size, v.artifact_id::text AS artifact_id, v.manifest
FROM unnest($1::text[], $2::text[]::int8[]) AS f (name, version)
    JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
WHERE v.manifest ->> 'probe' IS NOT NULL ORDER BY v.name, v.version;

-- All revisions of these schema changes.
-- name: changes
SELECT number, checksum, sql FROM schema_changes WHERE number = ANY($1::text[]::int8[]);

-- The backups of each group whose nodes are backed up: counts of nodes and the worst values, at the time $1; a history
-- that wasn't proven since $2 is late; the store may be behind a node by $3 seconds and $4 intervals.
-- name: of_groups
SELECT g.name AS group_name, count(b.node_id) AS nodes, count(*) - count(b.node_id) AS missing,
    count(CASE WHEN b.error <> '' THEN 1 END) AS failing,
    greatest(0, coalesce(
        extract(epoch FROM max(b.told_at - coalesce(b.reached_at, b.begun_at))), 0
    ))::float8 AS lag,
    coalesce(max(b.pending), 0)::int8 AS pending, coalesce(sum(b.at_store), 0)::int8 AS at_store,
    greatest(0, coalesce(
        extract(epoch FROM max($1::timestamptz - coalesce(b.proven_at, b.begun_at))), 0
    ))::float8 AS unproven,
    count(CASE WHEN coalesce(b.proven_at, b.begun_at) < $2 THEN 1 END) AS unproven_nodes,
    count(CASE WHEN b.drill_error <> '' THEN 1 END) AS failed_drills,
    count(
        CASE WHEN extract(epoch FROM b.told_at - coalesce(b.reached_at, b.begun_at))::float8
            > greatest($3::float8, $4::float8 * (g.backup ->> 'interval')::float8) THEN 1 END
    ) AS late
FROM groups AS g JOIN nodes AS n ON n.group_id = g.id LEFT JOIN backups AS b ON b.node_id = n.id AND b.ended_at IS NULL
WHERE g.backup IS NOT NULL AND n.removed_at IS NULL AND n.state <> 'revoked'
GROUP BY g.name ORDER BY g.name;
