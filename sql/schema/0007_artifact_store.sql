-- Which control the bucket of artifacts belongs to: the bucket has the same owner, counter and step in an object.
-- owner: made when a bucket is first claimed. counter, step: a new pair for each change after which an artifact is
-- needed; a bucket that is ahead of them shows that the metadata were restored. held_since: since when nothing is
-- deleted from the bucket. sweep_problem: why the last sweep failed.
CREATE TABLE IF NOT EXISTS artifact_store (
    id INT8 PRIMARY KEY CHECK (id = 1),
    owner UUID,
    counter INT8 NOT NULL DEFAULT 0,
    step UUID NOT NULL DEFAULT gen_random_uuid(),
    held_since TIMESTAMPTZ,
    held_reason TEXT NOT NULL DEFAULT '',
    sweep_problem TEXT NOT NULL DEFAULT ''
);

INSERT INTO artifact_store (id) VALUES (1) ON CONFLICT (id) DO NOTHING;

-- Objects of the bucket that no row of artifacts knows, and since when: they are kept for days before they go.
CREATE TABLE IF NOT EXISTS unknown_objects (
    key TEXT PRIMARY KEY,
    since TIMESTAMPTZ NOT NULL
);
