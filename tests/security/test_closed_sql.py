"""The runtime's own tables, and what reaches out of the database, are closed to functions, however it is spelled."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from edge_runtime.sql import database, schema
from edge_runtime.sql.access import AccessDenied, AccessRules, examine
from edge_runtime.sql.queries import load
from edge_runtime.sql.tokenizer import tokenize
from tests.support.draws import examples
from tests.support.guest_sql import GENERATION, ask, calls

OWN = "_skerry_functions"
SECRET = "a manifest"


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    with calls(tmp_path_factory.mktemp("db") / "skerry.db") as made:
        made.schema(
            "CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)",
            "CREATE TABLE log (at TEXT, name TEXT)",
            "CREATE VIRTUAL TABLE search USING fts5(name)",
            "CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1)",
            # What a schema change couldn't make: a second look, at the moment of the call, finds these.
            f"CREATE VIEW innocent AS SELECT name AS n, manifest AS m FROM {OWN}",
            "CREATE VIEW deep AS SELECT n FROM innocent",
            f"CREATE TRIGGER spy AFTER INSERT ON log BEGIN DELETE FROM {OWN}; END",
            "CREATE VIEW reader AS SELECT readfile('/etc/passwd') AS r",
            "CREATE TRIGGER writer AFTER DELETE ON log BEGIN SELECT writefile('/tmp/x', 'x'); END",
            "CREATE TABLE vectors (id INTEGER PRIMARY KEY, v F32_BLOB(2))",
            "CREATE INDEX near ON vectors (libsql_vector_idx(v))",
            "CREATE TABLE computed (a, b GENERATED ALWAYS AS (hex(a)) VIRTUAL)",
        )
        made.database.rows(load("insert_function"), ("f", 1, "0" * 64, SECRET, "0" * 64))
        made.database.rows("INSERT INTO items (name) VALUES ('mine')")
        yield made


def state(db):
    return schema.own(db.database), db.database.rows("SELECT * FROM sqlite_sequence")


SPELLINGS = [
    OWN,
    OWN.upper(),
    f'"{OWN}"',
    f"[{OWN}]",
    f"`{OWN}`",
    f"'{OWN}'",
    f"main.{OWN}",
    f'"MAIN" . "{OWN}"',
    f"main/**/.{OWN}",
    f"{OWN} AS items",
    f"{OWN} NOT INDEXED",
]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM {}",
        "SELECT count(*) FROM {}",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM {})",
        "SELECT (SELECT max(version) FROM {})",
        "WITH x AS (SELECT * FROM {}) SELECT * FROM x",
        "WITH RECURSIVE x(n) AS (SELECT 1 UNION SELECT version FROM {}) SELECT * FROM x",
        "SELECT name FROM items UNION ALL SELECT name FROM {}",
        "SELECT * FROM items JOIN {} USING (name)",
        "INSERT INTO items (name) SELECT name FROM {}",
        "UPDATE items SET name = 'x' WHERE name IN (SELECT name FROM {})",
        "DELETE FROM items WHERE EXISTS (SELECT 1 FROM {})",
        "SELECT * FROM items ORDER BY (SELECT version FROM {})",
        "EXPLAIN SELECT * FROM {}",
        "EXPLAIN QUERY PLAN SELECT * FROM {}",
    ],
)
def test_reading_the_runtimes_tables(db, statement):
    before = state(db)
    for own in SPELLINGS:
        answer = db.one(statement.format(own))
        assert answer["error"]["code"] == "sql_closed", (own, answer)
    assert state(db) == before


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {}",
        "DELETE FROM {} WHERE version = 1",
        "UPDATE {} SET version = 2",
        "UPDATE OR REPLACE {} SET name = i.name FROM items AS i",
        "INSERT INTO {} VALUES ('g', 1, 'a', 'b', 'c')",
        "INSERT INTO {} SELECT name, 1, '', '', '' FROM items WHERE true ON CONFLICT DO NOTHING",
        "REPLACE INTO {} VALUES ('f', 2, '', '', '')",
        "WITH x AS (SELECT 1) DELETE FROM {}",
        "DELETE FROM {} RETURNING *",
        "EXPLAIN DELETE FROM {}",
    ],
)
def test_writing_the_runtimes_tables(db, statement):
    before = state(db)
    for own in SPELLINGS[:9]:
        for grant in ("read", "write"):
            assert db.one(statement.format(own), grant=grant)["error"]["code"] == "sql_closed", own
    assert state(db) == before


@pytest.mark.parametrize("table", ["_skerry_meta", "_skerry_changes", "_skerry_release", "_skerry_functions"])
def test_every_table_of_the_runtime_is_closed(db, table):
    assert db.one(f"SELECT * FROM {table}")["error"]["code"] == "sql_closed"
    assert db.one(f"SELECT rowid FROM {table} INDEXED BY sqlite_autoindex_{table}_1")["error"]
    assert db.one(f"DELETE FROM {table}")["error"]["code"] == "sql_closed"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT n FROM innocent",
        "SELECT 1 FROM deep",
        "SELECT * FROM items WHERE name IN deep",
        "INSERT INTO log VALUES (1, 'x')",
        "INSERT INTO log SELECT 1, name FROM items",
        "SELECT r FROM reader",
        "DELETE FROM log WHERE at = 1",
        "SELECT readfile('/etc/passwd')",
        "SELECT \"readfile\"('/etc/passwd')",
        "SELECT READFILE/**/ ('/etc/passwd')",
        "SELECT writefile('/tmp/x', name) FROM items",
        "INSERT INTO items (name) VALUES (readfile('/etc/passwd'))",
        "UPDATE items SET name = (SELECT data FROM fsdir('/etc'))",
        "SELECT * FROM fsdir('.')",
        "SELECT * FROM (SELECT 1) LIMIT (SELECT length(readfile('/etc/passwd')))",
        "SELECT load_extension('x')",
        "SELECT sha3_query('SELECT * FROM _skerry_meta', 256)",
        "SELECT fts3_tokenizer('simple', x'00')",
        "SELECT hex(fts3_tokenizer('simple'))",
        "SELECT sqlite3mc_config('cipher')",
        "SELECT sqlite3mc_codec_data('salt')",
        "SELECT rtreecheck('boxes')",
        "SELECT lsmode(1)",
        "SELECT sqlite_log(1, 'x')",
        # These leave their memory: write past it, free what isn't theirs, tell what was in it before.
        "SELECT * FROM vector_top_k('near', x'0000803f00000040', 0)",
        "SELECT vector_extract(x'010203040000')",
        "SELECT vector_distance_cos(v, vector32('[1, 2]')) FROM vectors",
        "INSERT INTO vectors (v) VALUES (x'00')",
        *(f"SELECT {function}('x', 4294967296)" for function in ("padc", "padl", "padr", "replicate")),
        "SELECT sum(1) FILTER (WHERE readfile('x') IS NULL) OVER () FROM items",
        "SELECT * FROM sqlite_dbpage",
        "SELECT * FROM \"sqlite_dbpage\"('main')",
        "SELECT * FROM 'SQLITE_DBPAGE' WHERE pgno = 2",
        "UPDATE sqlite_dbpage SET data = zeroblob(4096) WHERE pgno = 2",
        "INSERT INTO sqlite_dbpage VALUES (2, zeroblob(4096))",
        "SELECT * FROM dbstat",
        "SELECT * FROM [dbstat] JOIN json_each('[]')",
        "SELECT sql FROM sqlite_stmt",
        "SELECT * FROM carray(1, 2)",
        "SELECT * FROM pragma_function_list",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM pragma_integrity_check",
        "SELECT * FROM pragma_optimize",
        "SELECT * FROM pragma_table_info('items') JOIN pragma_user_version",
        "UPDATE sqlite_sequence SET seq = 1",
        "UPDATE main.'sqlite_sequence' SET seq = 1",
        "DELETE FROM SQLITE_SEQUENCE",
        "INSERT INTO libsql_vector_meta_shadow VALUES ('x', x'00')",
        "DELETE FROM 'libsql_vector_meta_shadow' WHERE name = 'near'",
        "WITH x AS (SELECT 1) INSERT INTO [sqlite_sequence] VALUES ('items', 1)",
        "UPDATE search_data SET block = x'00'",
        "DELETE FROM boxes_node",
        "REPLACE INTO 'search_idx' VALUES (1, x'00', 1)",
    ],
)
def test_views_triggers_functions_and_virtual_tables(db, statement):
    before = state(db)
    for grant in ("read", "write"):
        error = db.one(statement, grant=grant)["error"]
        # SQLite has locks of its own on a few of these.
        own = error["message"].startswith(("unsafe use of", "table sqlite_dbpage may not be modified"))
        assert error["code"] == "sql_closed" or own, error
    assert state(db) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_schema SET sql = ''",
        "DELETE FROM sqlite_master",
        "INSERT INTO sqlite_schema VALUES ('table', 'x', 'x', 2, '')",
        "UPDATE temp.sqlite_schema SET sql = ''",
        "DELETE FROM sqlite_temp_master",
        "SELECT * FROM temp._skerry_meta",
        "SELECT * FROM other._skerry_meta",
    ],
)
def test_the_schema_is_not_written(db, statement):
    assert db.one(statement)["error"]["code"] in ("sql_closed", "sql_invalid")


@pytest.mark.parametrize(
    "statement",
    [
        # Definitions only: names and columns of the runtime's tables are in the source code for everyone to read.
        "SELECT name, sql FROM sqlite_schema",
        "SELECT name FROM sqlite_master WHERE name LIKE '_skerry_%'",
        "SELECT * FROM pragma_table_info('items')",
        "SELECT seq FROM sqlite_sequence",
        "SELECT 'sqlite_dbpage', '_skerry_meta', 'readfile(1)' -- _skerry_meta",
        "INSERT INTO items (name) VALUES ('_skerry_functions'), ('sqlite_sequence')",
        "UPDATE items SET name = name || 'sqlite_sequence'",
        "SELECT value FROM json_each('[1, 2]')",
        "SELECT highlight(search, 0, '<', '>') FROM search WHERE search MATCH 'a' ORDER BY bm25(search)",
        "INSERT INTO search (name) VALUES ('a text')",
        "INSERT INTO search (search) VALUES ('optimize')",
        "INSERT INTO boxes VALUES (1, 0, 1)",
        "SELECT upper(name), json_object('a', 1) ->> 'a', strftime('%Y', 'now'), group_concat(name, ',') FROM items",
        "SELECT row_number() OVER (ORDER BY id), sum(id) OVER (ROWS 1 PRECEDING), median(id) FROM items",
        "SELECT count(block) FROM search_data",
        "SELECT b FROM computed WHERE a REGEXP 'x' OR a GLOB 'x*' OR a LIKE 'y'",
        "SELECT abs(-1), round(2.5), coalesce(NULL, 1), iif(1, 2, 3), random() IS NULL",
    ],
)
def test_what_stays_open(db, statement):
    assert "error" not in db.one(statement)


def test_explain_shows_no_address_of_the_process(db):
    assert db.one("EXPLAIN SELECT * FROM json_each('[]')")["error"]["code"] == "sql_closed"
    assert "error" not in db.one("EXPLAIN QUERY PLAN SELECT * FROM json_each('[]')")
    assert "vtab" not in str(db.one("EXPLAIN SELECT * FROM items"))


def test_a_blob_in_a_statement_or_a_default_hides_nothing(db, capfd):
    db.schema("CREATE TABLE IF NOT EXISTS defaults (a, b DEFAULT x'ff')")
    assert "error" not in db.one("INSERT INTO defaults (a) VALUES (x'fe')")
    blobs = ", ".join("x'ff'" for _ in range(30))
    assert db.one(f"SELECT {blobs}, version FROM {OWN}")["error"]["code"] == "sql_closed"
    assert db.one(f"INSERT INTO defaults (a) SELECT readfile('/etc/passwd') || {blobs.replace(',', ' ||')}")["error"]
    assert db.one("SELECT a FROM defaults")["rows"] == [[{"$blob": "/g=="}]]


def test_guests_see_no_release_but_their_own(db):
    call = db.new()
    ask(call, "SELECT 1")
    assert db.database.rows(load("read_generation"))[0][0] == GENERATION
    call.rollback()


SOURCES = st.recursive(
    st.sampled_from([*SPELLINGS[:9], "items", "log", "deep", "search", "json_each('[1]')", "(VALUES (1, 'x'))"]),
    lambda inner: (
        st.builds("(SELECT * FROM {})".format, inner)
        | st.builds("({} JOIN {} ON true)".format, inner, inner)
        | st.builds("(WITH c AS (SELECT * FROM {}) SELECT * FROM c, {})".format, inner, inner)
        | st.builds("(SELECT 1 AS name UNION ALL SELECT count(*) FROM {})".format, inner)
        | st.builds("(SELECT (SELECT group_concat(quote(m)) FROM innocent) AS name FROM {})".format, inner)
    ),
    max_leaves=4,
)
STATEMENTS = st.sampled_from(
    [
        "SELECT * FROM {} LIMIT 3",
        "SELECT max(quote(name)) FROM {}",
        "INSERT INTO log SELECT 1, name FROM {}",
        "UPDATE items SET name = 'x' WHERE EXISTS (SELECT 1 FROM {})",
        "UPDATE items SET name = s.name FROM {} AS s RETURNING *",
        "DELETE FROM items WHERE name IN (SELECT name FROM {})",
        "WITH RECURSIVE r (n) AS (SELECT 1 UNION SELECT n + 1 FROM r, {} WHERE n < 3) SELECT * FROM r",
    ]
)


@given(STATEMENTS, SOURCES, st.sampled_from(["read", "write"]))
@settings(max_examples=examples(100))
def test_no_composition_reads_or_changes_what_is_the_runtimes(db, statement, source, grant):
    before = schema.own(db.database)
    call = db.new(grant)
    answer = ask(call, statement.format(source))
    call.rollback()
    assert schema.own(db.database) == before
    # Not every one is an error: what SQLite leaves out of the program, since nothing asks for it, is not touched.
    assert SECRET not in str(answer)
    if "error" not in answer:
        event("ran")


def test_the_tables_of_another_database_are_closed_where_one_is_attached():
    """No statement of a guest can attach one; a second look, at the moment of the call, doesn't count on that."""
    with database.in_memory() as opened:
        opened.rows("ATTACH ':memory:' AS other")
        opened.rows("CREATE TABLE other.items (x)")
        sql = "SELECT x FROM other.items"
        with pytest.raises(AccessDenied, match="another database"):
            examine(opened, AccessRules.read(opened), sql, tokenize(sql))
