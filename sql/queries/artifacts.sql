-- The artifact of these bytes, if it is in the store.
-- name: ready
SELECT id::text AS id, size, abi, memory_pages FROM artifacts WHERE sha256 = $1 AND state = 'ready';

-- Put off the sweep of an artifact that no version uses.
-- name: touch
UPDATE artifacts SET state_since = $2 WHERE id = $1 AND state = 'ready'
    AND NOT EXISTS (SELECT 1 FROM function_versions v WHERE v.artifact_id = $1);

-- Begin an upload: the row is there before the object.
-- name: begin
INSERT INTO artifacts (id, sha256, size, abi, memory_pages, state, created_at, state_since)
VALUES ($1, $2, $3, $4, $5, 'uploading', $6, $6);

-- Mark an upload as complete, unless it was given up meanwhile.
-- name: set_ready
UPDATE artifacts SET state = 'ready', state_since = $2 WHERE id = $1 AND state = 'uploading' RETURNING id;

-- Give up these uploads, unless they are complete; returns those that are to be deleted.
-- name: give_up
UPDATE artifacts SET state = 'deleting', state_since = $2 WHERE id = ANY($1::text[]::uuid[]) AND state = 'uploading'
RETURNING sha256, id::text AS id;

-- Uploads that began too long ago.
-- name: stale_uploads
SELECT id::text AS id FROM artifacts WHERE state = 'uploading' AND state_since < $1 LIMIT $2;

-- Artifacts that no version has used for too long.
-- name: stale
SELECT a.id::text AS id FROM artifacts AS a WHERE a.state = 'ready' AND a.state_since < $1
    AND NOT EXISTS (SELECT 1 FROM function_versions v WHERE v.artifact_id = a.id)
LIMIT $2;

-- Lock those of these artifacts that no other transaction has locked.
-- name: lock_free
SELECT id::text AS id FROM artifacts WHERE id = ANY($1::text[]::uuid[]) AND state = $2 AND state_since < $3
FOR NO KEY UPDATE SKIP LOCKED;

-- Mark those of these artifacts that no version uses, to be deleted; returns them.
-- name: release_unused
UPDATE artifacts SET state = 'deleting', state_since = $2 WHERE id = ANY($1::text[]::uuid[]) AND state = 'ready'
    AND NOT EXISTS (SELECT 1 FROM function_versions v WHERE v.artifact_id = artifacts.id)
RETURNING sha256, id::text AS id;

-- Artifacts that were marked to be deleted a while ago, and are still there.
-- name: deleting
SELECT sha256, id::text AS id FROM artifacts WHERE state = 'deleting' AND state_since < $1 ORDER BY state_since LIMIT $2;

-- Delete the row of an artifact whose object is deleted.
-- name: forget
DELETE FROM artifacts WHERE id = $1 AND state = 'deleting';

-- Which of these rows exist.
-- name: known
SELECT id::text AS id FROM artifacts WHERE id = ANY($1::text[]::uuid[]);

-- The artifact, for a node whose target has it, or its group's open rollout, or for which a sync with it was ever opened:
-- what the node says that it runs gives it nothing. Of a database that is brought back, the release may be older than the
-- log of syncs, or another group's: so a node that has a backup gets what releases of its group had, and one that is to
-- adopt a database, those of its group of then.
-- name: for_node
SELECT a.id::text AS id FROM artifacts a WHERE a.sha256 = $1 AND a.state = 'ready' AND (
    EXISTS (
        SELECT 1 FROM nodes n JOIN groups g ON g.id = n.group_id JOIN release_functions f
            ON f.release_id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
        WHERE n.id = $2 AND f.sha256 = $1
    )
    OR EXISTS (
        SELECT 1 FROM nodes n JOIN rollouts o ON o.group_id = n.group_id AND o.state IN ('running', 'paused')
            JOIN release_functions f ON f.release_id = o.release_id
        WHERE n.id = $2 AND f.sha256 = $1
    )
    OR EXISTS (
        SELECT 1 FROM release_functions f
        WHERE f.release_id IN (SELECT s.release_id FROM syncs s WHERE s.node_id = $2) AND f.sha256 = $1
    )
    OR EXISTS (
        SELECT 1 FROM nodes n LEFT JOIN restores o ON o.id = n.restore_id AND o.state = 'ordered'
            JOIN nodes m ON m.id = coalesce(o.from_node_id, n.id) JOIN releases r ON r.group_id = m.group_id
            JOIN release_functions f ON f.release_id = r.id
        WHERE n.id = $2 AND f.sha256 = $1 AND r.reached_at IS NOT NULL
            AND EXISTS (SELECT 1 FROM backups b WHERE b.node_id = m.id)
    )
);

-- Artifacts whose bytes must be in the store, by id, after an id; with $3, those that the releases of groups, of open
-- rollouts, and of nodes alone need.
-- name: ready_after
SELECT id::text AS id, sha256, size FROM artifacts WHERE state = 'ready' AND artifacts.id > $1 AND (
    NOT $3::bool OR artifacts.id IN (
        SELECT v.artifact_id FROM (
            SELECT h.release_id FROM groups AS h WHERE h.release_id IS NOT NULL
            UNION SELECT o.release_id FROM rollouts AS o WHERE o.state IN ('running', 'paused')
            UNION SELECT n.release_id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
            WHERE n.release_id IS NOT NULL AND n.generation > g.generation
        ) AS t JOIN release_functions AS f ON f.release_id = t.release_id
            JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
    )
)
ORDER BY artifacts.id LIMIT $2;

-- How many of them there are, and their bytes together.
-- name: ready_total
SELECT count(*) AS artifacts, coalesce(sum(size), 0)::int8 AS size FROM artifacts WHERE state = 'ready' AND (
    NOT $1::bool OR artifacts.id IN (
        SELECT v.artifact_id FROM (
            SELECT h.release_id FROM groups AS h WHERE h.release_id IS NOT NULL
            UNION SELECT o.release_id FROM rollouts AS o WHERE o.state IN ('running', 'paused')
            UNION SELECT n.release_id FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
            WHERE n.release_id IS NOT NULL AND n.generation > g.generation
        ) AS t JOIN release_functions AS f ON f.release_id = t.release_id
            JOIN function_versions AS v ON v.name = f.name AND v.version = f.version
    )
);

-- Whether an artifact's bytes must still be in the store.
-- name: still_ready
SELECT EXISTS (SELECT 1 FROM artifacts WHERE id = $1 AND state = 'ready');

-- The versions that are made of an artifact, as NAME@VERSION.
-- name: used_by
SELECT name || '@' || version::text FROM function_versions WHERE artifact_id = $1 ORDER BY name, version DESC LIMIT $2;
