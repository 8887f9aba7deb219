-- Times of heartbeats grow at the end of their indexes: they are spread by a hash.
CREATE INDEX IF NOT EXISTS node_presence_by_seen_spread ON node_presence (offline, last_seen_at) USING HASH;

DROP INDEX IF EXISTS node_presence_by_seen;

CREATE INDEX IF NOT EXISTS node_presence_by_confirmed_spread ON node_presence (overdue, confirmed_at) USING HASH;

DROP INDEX IF EXISTS node_presence_by_confirmed;

CREATE INDEX IF NOT EXISTS nodes_by_synced_spread ON nodes (synced_at) USING HASH;

DROP INDEX IF EXISTS nodes_by_synced;
