"""The digest by which nodes with the same schema are told from others, whatever led to it."""

import pytest

from edge_runtime.sql import database, schema


def digest(*sqls: str) -> str:
    """The digest of a new database after these statements."""
    with database.in_memory() as opened:
        for sql in sqls:
            opened.rows(sql)
        return schema.shape_digest(opened)


BASE = "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL DEFAULT 'x', c REAL, UNIQUE (b), CHECK (c > 0))"


@pytest.mark.parametrize(
    "sqls",
    [
        [BASE],
        ["create table if not exists T(\n a integer primary key, -- the key\n \"b\" text not null default 'x', "
         "[c] real, unique(b), check(c>0))"],
        ["CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL DEFAULT 'x', UNIQUE (b), CHECK (1))",
         "DROP TABLE t", BASE],
        ["CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL DEFAULT 'x', c REAL, CHECK (c > 0), UNIQUE (b))"],
        [BASE.replace("c REAL", "d REAL").replace("c > 0", "d > 0"), "ALTER TABLE t RENAME COLUMN d TO c"],
        [BASE.replace("TABLE t", "TABLE u"), "ALTER TABLE u RENAME TO t"],
        [BASE.replace("c REAL", "c REAL, d TEXT"), "ALTER TABLE t DROP COLUMN d"],
    ],
)  # fmt: skip
def test_ways_to_the_same_schema_have_one_digest(sqls: list[str]) -> None:
    assert digest(*sqls) == digest(BASE)


def test_a_column_that_was_added_is_as_one_that_was_there() -> None:
    whole = "CREATE TABLE t (a INTEGER, b TEXT, UNIQUE (a))"
    assert digest("CREATE TABLE t (a INTEGER, UNIQUE (a))", "ALTER TABLE t ADD COLUMN b TEXT") == digest(whole)


@pytest.mark.parametrize(
    "sql",
    [
        BASE.replace("c > 0", "c >= 0"),
        BASE.replace("'x'", "'X'"),
        BASE.replace("c REAL", "c INTEGER"),
        "CREATE TABLE t (a INTEGER PRIMARY KEY, c REAL, b TEXT NOT NULL DEFAULT 'x', UNIQUE (b), CHECK (c > 0))",
        BASE + " STRICT",
        BASE.replace("TABLE t", "TABLE u"),
    ],
)
def test_other_schemas_have_others(sql: str) -> None:
    assert digest(sql) != digest(BASE)


def test_indexes_views_and_triggers_count_and_shadow_tables_do_not() -> None:
    made = {
        digest(BASE),
        digest(BASE, "CREATE INDEX i ON t (c)"),
        digest(BASE, "CREATE INDEX i ON t (c) WHERE b IS NULL"),
        digest(BASE, "CREATE VIEW v AS SELECT a FROM t"),
        digest(BASE, "CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM t; END"),
        digest(BASE, "CREATE VIRTUAL TABLE f USING fts5 (b)"),
    }
    assert len(made) == 6
    with database.in_memory() as opened:
        opened.rows("CREATE VIRTUAL TABLE f USING fts5 (b)")
        before = schema.shape_digest(opened)
        opened.rows("INSERT INTO f VALUES ('text')")
        assert schema.shape_digest(opened) == before
