-- What helps after a restore of these metadata from a backup.

-- The generation that a node completed, where it is above that of its target: control gave it, and forgot it since.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS ran_generation INT8 NOT NULL DEFAULT 0;

-- restored_at: when control noticed that the metadata were restored; NULL again once an operator has recovered.
ALTER TABLE artifact_store ADD COLUMN IF NOT EXISTS restored_at TIMESTAMPTZ;

-- The key of the access lists' codes, which nobody has who has the bucket alone.
ALTER TABLE artifact_store ADD COLUMN IF NOT EXISTS access_key UUID NOT NULL DEFAULT gen_random_uuid();

-- Changes of who may come in, until they are in an access list in the bucket. kind: what happened to subject
-- (control/storage/recovery/access_list.py).
CREATE TABLE IF NOT EXISTS access_changes (
    id UUID PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL,
    kind TEXT NOT NULL,
    subject UUID NOT NULL,
    details JSONB NOT NULL DEFAULT '{}'
);

-- The access lists that these metadata know of: noted before one is written, or once it was applied. One that isn't here
-- shows that the metadata were restored.
CREATE TABLE IF NOT EXISTS access_lists (
    name TEXT PRIMARY KEY,
    noted_at TIMESTAMPTZ NOT NULL
);
