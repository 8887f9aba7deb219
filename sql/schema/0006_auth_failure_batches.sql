-- The batch of counts that each replica wrote last: where a COMMIT's answer is lost, it is tried again and adds nothing.
CREATE TABLE IF NOT EXISTS auth_failure_batches (
    replica UUID PRIMARY KEY,
    batch UUID NOT NULL,
    written_at TIMESTAMPTZ NOT NULL
);
