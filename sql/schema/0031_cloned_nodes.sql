-- By which processes a node polls (Poll.boot_id): the last one, and the one before. crossings: how often in a row the one
-- before has polled again, which no process does that has ended; crossed_since, crossed_at: the first time and the last.
-- cloned: what the monitor has made of them.
ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS boot_id TEXT NOT NULL DEFAULT '';

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS boot_before TEXT NOT NULL DEFAULT '';

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS crossings INT8 NOT NULL DEFAULT 0;

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS crossed_since TIMESTAMPTZ;

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS crossed_at TIMESTAMPTZ;

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS cloned BOOL NOT NULL DEFAULT false;

CREATE INDEX IF NOT EXISTS node_presence_by_crossing ON node_presence (cloned, crossed_at) WHERE crossed_at IS NOT NULL;
