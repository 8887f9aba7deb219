-- The W3C traceparent of the request that made a release, where that was traced: the syncs of the release are part of its
-- trace.
ALTER TABLE releases ADD COLUMN IF NOT EXISTS traceparent TEXT NOT NULL DEFAULT '';
