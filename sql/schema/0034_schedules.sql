-- What each node told last of its functions' schedules: a list of lines, each with its `function`, its `cron` (empty for
-- calls after releases), `last_run` and `next_run` (unix seconds, 0 if there is none), `last_status`, `late` (seconds)
-- and `failures`.
ALTER TABLE node_numbers ADD COLUMN IF NOT EXISTS schedules JSONB NOT NULL DEFAULT '[]';
