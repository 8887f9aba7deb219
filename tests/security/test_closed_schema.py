"""The runtime's own tables, and what reaches out of the database, are closed to schema changes, in any spelling."""

import pytest

from edge_runtime.sql import database, run_change, schema, schema_change
from edge_runtime.sql.access import AccessRules


@pytest.fixture(scope="module")
def access_rules():
    with database.in_memory() as opened:
        yield opened, AccessRules.read(opened)


CHANGES = [
    "DROP TABLE _skerry_release",
    'ALTER TABLE "_SKERRY_meta" RENAME TO mine',
    "ALTER TABLE items RENAME TO _skerry_items",
    "CREATE TABLE _skerry_more (x)",
    "CREATE TABLE main.[_skerry_more] (x)",
    "CREATE TABLE '_skerry_more' (x)",
    "CREATE VIEW v AS SELECT * FROM _skerry_functions",
    "CREATE VIEW v AS SELECT * FROM '_skerry_functions'",
    "CREATE INDEX i ON _skerry_functions (version)",
    "CREATE UNIQUE INDEX _skerry_index ON items (name)",
    "CREATE TRIGGER t AFTER INSERT ON items BEGIN UPDATE _skerry_release SET number = 1; END",
    "CREATE TRIGGER t BEFORE UPDATE ON `_skerry_release` BEGIN SELECT RAISE(ABORT, 'no'); END",
    "CREATE TABLE child (x REFERENCES _skerry_functions (name) ON DELETE CASCADE)",
    "CREATE VIRTUAL TABLE f USING fts5(name, content='_skerry_functions')",
    "CREATE VIRTUAL TABLE f USING fts5(name, content=_skerry_functions)",
    'CREATE VIRTUAL TABLE f USING fts4(name, content="_skerry_functions")',
    "CREATE VIRTUAL TABLE f USING dbstat",
    "CREATE VIRTUAL TABLE f USING 'sqlite_dbpage'",
    "CREATE VIRTUAL TABLE f USING fsdir",
    'CREATE VIRTUAL TABLE f USING "sqlite_stmt"',
    "INSERT INTO items SELECT 1, name FROM _skerry_functions",
    "DELETE FROM sqlite_schema",
    'UPDATE "sqlite_sequence" SET seq = 1',
    "DELETE FROM libsql_vector_meta_shadow",
    "CREATE VIEW v AS SELECT * FROM sqlite_dbpage",
    "CREATE VIEW v AS SELECT * FROM 'dbstat'",
    "CREATE VIEW v AS SELECT * FROM pragma_database_list",
    "CREATE VIEW v AS SELECT readfile('/etc/passwd')",
    "CREATE TABLE t AS SELECT \"readfile\"('/etc/passwd')",
    "CREATE TABLE t (a, b AS (replicate(a, 4294967296)))",
    "CREATE INDEX i ON items (libsql_vector_idx(name))",
    "CREATE VIEW v AS SELECT vector_extract(name) FROM items",
    "SELECT writefile /* */ ('/tmp/x', 'x')",
    "INSERT INTO items (name) SELECT data FROM fsdir('/etc')",
    "SELECT load_extension('/tmp/x.so')",
    "SELECT sha3_query('SELECT 1')",
    "CREATE TABLE t (a DEFAULT (readfile('/etc/passwd')))",
    "CREATE TABLE t (a, b AS (readfile(a)))",
    "CREATE TABLE t (a CHECK (writefile('/tmp/x', a)))",
    "CREATE INDEX i ON items (sha3_query(name))",
    "PRAGMA writable_schema = 1",
    "ATTACH '/tmp/x' AS y",
    "VACUUM INTO '/tmp/x'",
    "COMMIT",
    "END",
    "BEGIN",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE a",
    "DETACH main",
    "EXPLAIN SELECT 1",
    "CREATE TEMP TABLE t (x)",
    "CREATE TEMPORARY TRIGGER t AFTER INSERT ON items BEGIN SELECT 1; END",
    "CREATE TABLE temp.t (x)",
    "CREATE FUNCTION f LANGUAGE wasm AS x'00'",
    "\ufeffPRAGMA x",
]


@pytest.mark.parametrize("sql", CHANGES)
def test_a_schema_change_is_refused(access_rules, sql):
    opened, closed = access_rules
    before = schema.own(opened)
    opened.rows("BEGIN")
    try:
        opened.rows("CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)")
        with pytest.raises(schema_change.SchemaChangeRefused) as refused:
            run_change.run_statements(opened, closed, sql)
        assert refused.value.code in ("schema_closed", "schema_not_allowed")
        # The same among others: nothing is run before all are looked at.
        with pytest.raises(schema_change.SchemaChangeRefused):
            run_change.run_statements(opened, closed, f"CREATE TABLE before (x); {sql}; CREATE TABLE after (x)")
        assert opened.in_transaction
        if "temp.t" not in sql:
            assert not opened.rows("SELECT * FROM pragma_table_list WHERE name = 'before'")
    finally:
        opened.rollback()
    assert schema.own(opened) == before


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (note TEXT DEFAULT 'see sqlite_master and the docs') -- not _skerry_meta",
        'CREATE TABLE vacuum_log (pragma TEXT, "begin" TEXT, readfile TEXT)',
        "CREATE VIRTUAL TABLE f USING fts5(a, b, tokenize = 'porter')",
        "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1)",
        "CREATE TABLE t (a CHECK (json_valid(a)), b AS (upper(a)) STORED, c DEFAULT (strftime('%s', 'now')))",
        "CREATE TABLE t (a); CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t WHERE a = 'commit;'; END",
        "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2); CREATE INDEX i ON t (abs(a)); ANALYZE; REINDEX t",
        "CREATE TABLE t (a); ALTER TABLE t ADD COLUMN b TEXT NOT NULL DEFAULT ''; ALTER TABLE t RENAME a TO c",
        "CREATE TABLE t (a); CREATE TABLE n (a, b); INSERT INTO n SELECT a, 1 FROM t; DROP TABLE t; "
        "ALTER TABLE n RENAME TO t",
    ],
)
def test_an_ordinary_schema_change_runs(access_rules, sql):
    opened, closed = access_rules
    opened.rows("BEGIN")
    try:
        run_change.run_statements(opened, closed, sql)
    finally:
        opened.rollback()


def test_a_change_that_got_through_to_the_runtimes_tables_is_seen(access_rules):
    """The last lock: what is in them and what names them is compared, whatever the tokens said."""
    opened, _ = access_rules
    for sql in (
        "UPDATE _skerry_meta SET database_id = 'other'",
        "CREATE VIEW v AS SELECT * FROM _skerry_meta",
        "CREATE INDEX i ON _skerry_functions (version)",
        "CREATE TRIGGER t AFTER INSERT ON _skerry_changes BEGIN SELECT 1; END",
        "ALTER TABLE _skerry_changes ADD COLUMN x TEXT",
        "DROP TABLE _skerry_functions",
    ):
        before = schema.own(opened)
        opened.rows("BEGIN")
        opened.rows(sql)
        assert schema.own(opened) != before, sql
        opened.rollback()
