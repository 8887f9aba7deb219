-- The schema as the last release left it, by a digest of each definition.
CREATE TABLE IF NOT EXISTS _skerry_schema (
    type TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (type, name)
) STRICT, WITHOUT ROWID
