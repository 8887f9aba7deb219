-- The runtime's own tables in the libsql file. Guests and schema changes can't touch them.

-- Which file this is: another id means that the node's disk was lost or exchanged.
CREATE TABLE IF NOT EXISTS _skerry_meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    database_id TEXT NOT NULL,
    format INTEGER NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

-- The applied schema changes, without a gap; a revision is the one that was applied.
CREATE TABLE IF NOT EXISTS _skerry_changes (
    number INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT;

-- The release that the file is at. `applied` counts releases that were ever applied: it changes with every one.
CREATE TABLE IF NOT EXISTS _skerry_release (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    release_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    applied INTEGER NOT NULL,
    applied_at TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS _skerry_functions (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    manifest TEXT NOT NULL,
    manifest_digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
