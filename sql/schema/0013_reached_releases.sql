-- When a node reported that it runs a release, for the first time: a rollback would go to the newest one of these.
ALTER TABLE releases ADD COLUMN IF NOT EXISTS reached_at TIMESTAMPTZ;

UPDATE releases AS r SET reached_at = s.ended_at
FROM (SELECT release_id, min(ended_at) AS ended_at FROM syncs WHERE status = 'succeeded' GROUP BY release_id) AS s
WHERE s.release_id = r.id AND r.reached_at IS NULL;
