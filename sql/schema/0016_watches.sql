-- What operators ask nodes about their records. A row is deleted when its operator has gone, and counts for nothing once
-- `expires_at` has passed, which the replica `viewer` renews. Replicas read all rows with every announcement.
CREATE TABLE IF NOT EXISTS watches (
    id UUID PRIMARY KEY,
    viewer TEXT NOT NULL,
    operator TEXT NOT NULL,
    node_id UUID,
    group_ids JSONB,
    question JSONB NOT NULL,
    rate FLOAT8 NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

-- Records that came to a replica which hasn't the connection of the operator who watches. Each sender counts `seq` up
-- from 1, and the viewer reads what is behind the last one that it has of each sender; rows are deleted later.
CREATE TABLE IF NOT EXISTS watched_records (
    viewer TEXT NOT NULL,
    sender TEXT NOT NULL,
    seq INT8 NOT NULL,
    sent_at TIMESTAMPTZ NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (viewer, sender, seq)
);
