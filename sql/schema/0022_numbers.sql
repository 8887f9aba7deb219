-- What nodes tell of their calls, summed up by group, minute and replica: kept for 48 hours. body: functions with their
-- releases, outcomes and histograms, in msgpack (control/telemetry/tallies.py).
CREATE TABLE IF NOT EXISTS group_minutes (
    group_id UUID NOT NULL,
    minute TIMESTAMPTZ NOT NULL,
    replica UUID NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (group_id, minute, replica)
);

-- The same by hour, of all replicas: kept for 90 days.
CREATE TABLE IF NOT EXISTS group_hours (
    group_id UUID NOT NULL,
    hour TIMESTAMPTZ NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (group_id, hour)
);

-- What each node told last of itself, at most a minute before. group_id: in which group it was then. Sizes are in bytes;
-- the ends of the certificate of its HTTPS and of its credential are unix seconds, 0 where there is none.
CREATE TABLE IF NOT EXISTS node_numbers (
    node_id UUID PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    group_id UUID NOT NULL,
    told_at TIMESTAMPTZ NOT NULL,
    database_bytes INT8 NOT NULL,
    wal_bytes INT8 NOT NULL,
    disk_free_bytes INT8 NOT NULL,
    memory_bytes INT8 NOT NULL,
    certificate_ends INT8 NOT NULL,
    credential_ends INT8 NOT NULL,
    edge TEXT NOT NULL
);
