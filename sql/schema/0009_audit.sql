-- The audit log says who made a change in what call, and what it changed; its rows are sealed by a chain of hashes.

-- actor_kind: operator, node or control; the column `operator` has the name of each. `subject` is what was changed.
ALTER TABLE audit ADD COLUMN IF NOT EXISTS actor_kind TEXT NOT NULL DEFAULT 'operator';

ALTER TABLE audit ADD COLUMN IF NOT EXISTS address TEXT NOT NULL DEFAULT '';

ALTER TABLE audit ADD COLUMN IF NOT EXISTS call_id TEXT NOT NULL DEFAULT '';

-- values_before, values_after: the values that the change has changed, by name, and no others.
ALTER TABLE audit ADD COLUMN IF NOT EXISTS values_before JSONB NOT NULL DEFAULT '{}';

ALTER TABLE audit ADD COLUMN IF NOT EXISTS values_after JSONB NOT NULL DEFAULT '{}';

-- The number of the seal over the row; 0 until it has one.
ALTER TABLE audit ADD COLUMN IF NOT EXISTS seal INT8 NOT NULL DEFAULT 0;

CREATE INDEX IF NOT EXISTS audit_by_operator ON audit (operator, at, id);

CREATE INDEX IF NOT EXISTS audit_by_subject ON audit (subject, at, id);

CREATE INDEX IF NOT EXISTS audit_by_action ON audit (action, at, id);

CREATE INDEX IF NOT EXISTS audit_by_seal ON audit (seal, at, id);

-- A seal over some rows of the audit. Its hash is over all other columns but cut_at, and the next seal has it as
-- previous. cut_at: when the rows were deleted because they were old; only the first seal may have none.
CREATE TABLE IF NOT EXISTS audit_seals (
    number INT8 PRIMARY KEY,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL,
    rows_hash TEXT NOT NULL,
    count INT8 NOT NULL,
    first_at TIMESTAMPTZ NOT NULL,
    last_at TIMESTAMPTZ NOT NULL,
    sealed_at TIMESTAMPTZ NOT NULL,
    cut_at TIMESTAMPTZ
);
