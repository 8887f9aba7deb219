-- A token that was exchanged: old_secret_hash is the secret before, which is good until old_ends_at. Sessions that began
-- before rotated_at end then, too.
ALTER TABLE operators ADD COLUMN IF NOT EXISTS old_secret_hash TEXT NOT NULL DEFAULT '';

ALTER TABLE operators ADD COLUMN IF NOT EXISTS rotated_at TIMESTAMPTZ;

ALTER TABLE operators ADD COLUMN IF NOT EXISTS old_ends_at TIMESTAMPTZ;

-- When each operator last asked for something, written at most once a minute: apart from its row, which every write of
-- an operator reads.
CREATE TABLE IF NOT EXISTS operator_uses (
    operator_id UUID PRIMARY KEY,
    last_used_at TIMESTAMPTZ NOT NULL
);
