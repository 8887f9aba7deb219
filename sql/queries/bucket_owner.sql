-- What the metadata say of the bucket.
-- name: state
SELECT owner::text AS owner, counter, step::text AS step, held_since, held_reason, sweep_problem,
    access_key::text AS key, restored_at
FROM artifact_store WHERE id = 1;

-- Set the id of this control, if it has none.
-- name: name_owner
UPDATE artifact_store SET owner = $1 WHERE id = 1 AND owner IS NULL;

-- Take the next step, after which an artifact is needed.
-- name: step
UPDATE artifact_store SET counter = counter + 1, step = $1 WHERE id = 1;

-- Set the counter above the bucket's, which is ahead, and hold all deletions.
-- name: hold_above
UPDATE artifact_store SET counter = GREATEST(counter, $1) + 1, step = $2, held_since = $3, held_reason = $4 WHERE id = 1;

-- Go on from the metadata's own counter, or from $1 where it is above that, and hold all deletions.
-- name: begin_anew
UPDATE artifact_store SET counter = LEAST(counter, $1) + 1, step = $2, held_since = $3, held_reason = $4 WHERE id = 1;

-- Record that the metadata turned out to be restored.
-- name: note_restored
UPDATE artifact_store SET restored_at = $1 WHERE id = 1;

-- Hold all deletions.
-- name: hold
UPDATE artifact_store SET held_since = $1, held_reason = $2 WHERE id = 1;

-- Resume deletions.
-- name: resume
UPDATE artifact_store SET held_since = NULL, held_reason = '' WHERE id = 1;

-- Store why the last sweep failed, or ''.
-- name: sweep_problem
UPDATE artifact_store SET sweep_problem = $1 WHERE id = 1;

-- How many objects of the bucket no row knows.
-- name: count_unknown
SELECT count(*) FROM unknown_objects;

-- Since when no row was seen to know these objects.
-- name: unknown_since
SELECT key, since FROM unknown_objects WHERE key = ANY($1::text[]);

-- Remember objects that no row knows.
-- name: note_unknown
INSERT INTO unknown_objects (key, since) SELECT u.key, $2::timestamptz FROM unnest($1::text[]) AS u (key)
ON CONFLICT (key) DO NOTHING;

-- Forget objects that were deleted, or that a row knows.
-- name: forget_unknown
DELETE FROM unknown_objects WHERE key = ANY($1::text[]);

-- Forget objects that were deleted by somebody else.
-- name: forget_old
DELETE FROM unknown_objects WHERE since < $1;
