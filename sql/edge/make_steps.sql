-- The steps of schema changes that run before or after a release's transaction, as far as they are needed: those before
-- it until it is committed, those after it until they are done. `after`, `start` and `bound` are keys of a table: the
-- rows above `start` up to `after` are done, of those up to `bound`.
CREATE TABLE IF NOT EXISTS _skerry_steps (
    number INTEGER NOT NULL,
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('before', 'after', 'undo')),
    target TEXT NOT NULL,
    key TEXT NOT NULL,
    sql TEXT NOT NULL,
    "after" INTEGER,
    start INTEGER,
    bound INTEGER,
    done INTEGER NOT NULL,
    PRIMARY KEY (number, step)
) STRICT
