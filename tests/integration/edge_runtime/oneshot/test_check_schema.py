"""`check schema`: what control accepts is what nodes can apply, on tables that have rows."""

import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from edge_runtime.oneshot import check_schema
from edge_runtime.oneshot.check_schema import RegisteredChange, SchemaCheckRequest, check
from edge_runtime.oneshot.sample_rows import fill
from edge_runtime.sql import database
from tests.support.deadlines import scaled

ROOT = Path(__file__).parents[4]
SHOP = [
    "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, "
    "age INTEGER CHECK (age BETWEEN 0 AND 150), state TEXT NOT NULL CHECK (state IN ('on', 'off')), "
    "data TEXT CHECK (json_valid(data)))",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, user INTEGER NOT NULL REFERENCES users, total REAL) STRICT;"
    "CREATE INDEX orders_user ON orders (user)",
    "CREATE TABLE lines (o INTEGER REFERENCES orders (id), n INTEGER, note BLOB, PRIMARY KEY (o, n)) WITHOUT ROWID",
]


def checked(sql, earlier=SHOP, amends=None):
    changes = [RegisteredChange(number, text) for number, text in enumerate(earlier, 1)]
    return check(SchemaCheckRequest(sql, changes, amends))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE more (x)",
        "ALTER TABLE users ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "CREATE UNIQUE INDEX u ON users (email, state); DROP INDEX orders_user",
        "CREATE TRIGGER t AFTER INSERT ON orders BEGIN UPDATE users SET age = age + 1 WHERE id = new.user; END",
        "CREATE TABLE users2 AS SELECT * FROM users; DROP TABLE lines; DROP TABLE orders; DROP TABLE users",
        "INSERT INTO users (id, email, state) VALUES (1, 'a', 'on'), (2, 'b', 'off')",
    ],
)
def test_a_good_change(sql):
    answer = checked(sql)
    assert (answer["ok"], answer["empty"], answer["warnings"]) == (True, [], [])


@pytest.mark.parametrize(
    ("sql", "code", "statement", "says"),
    [
        ("CREATE TABLE a (x); CREATE TABLE users (x)", "schema_invalid", "CREATE TABLE users (x)", "already exists"),
        ("SELECT 1; INSERT INTO nowhere VALUES (1)", "schema_invalid", "INSERT INTO nowhere", "no such table"),
        ("ALTER TABLE users ADD COLUMN x NOT NULL", "schema_invalid", "ALTER TABLE users ADD", "NOT NULL"),
        ("ALTER TABLE users ADD COLUMN x CHECK (x > 1) DEFAULT 0", "schema_invalid", "ALTER TABLE", "CHECK"),
        (
            "CREATE TABLE n (id INTEGER, name TEXT NOT NULL); INSERT INTO n (id) SELECT id FROM users",
            "schema_invalid",
            "INSERT INTO n",
            "NOT NULL constraint failed: n.name",
        ),
        ("CREATE TABLE a (x); PRAGMA user_version = 1;", "schema_not_allowed", "PRAGMA user_version = 1;", "PRAGMA"),
        ("BEGIN; CREATE TABLE a (x); COMMIT", "schema_not_allowed", "BEGIN;", "BEGIN"),
        ("DROP TABLE _skerry_meta", "schema_closed", "DROP TABLE _skerry_meta", "_skerry_"),
        ("CREATE VIEW v AS SELECT readfile('x')", "schema_closed", "CREATE VIEW v", "readfile"),
        (
            "CREATE TABLE a (x) -- c\n;CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1",
            "schema_invalid",
            "CREATE T",
            "END",
        ),
        ("", "schema_invalid", "", "no statement"),
        ("CREATE TABLE a (x REFERENCES users (age))", "schema_invalid", "", "foreign key mismatch"),
        ("CREATE TABLE a (x DEFAULT ?)", "schema_invalid", "CREATE TABLE a", "parameter"),
        (
            "CREATE TABLE b (x REFERENCES users (id)); INSERT INTO b VALUES (7)",
            "schema_invalid",
            "",
            "no parent",
        ),
    ],
)
def test_a_bad_change_is_refused_with_its_statement(sql, code, statement, says):
    answer = checked(sql)
    assert (answer["ok"], answer["code"]) == (False, code), answer
    assert answer["statement"].startswith(statement)
    assert says in answer["message"]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE UNIQUE INDEX u ON users (substr(email, 1, 0))",
        "CREATE TABLE n (t REAL CHECK (t < 10)); INSERT INTO n SELECT total FROM orders",
        "INSERT INTO users (id, email, state) SELECT id, 'x', 'on' FROM users",
    ],
)
def test_what_depends_on_the_rows_is_a_warning(sql):
    answer = checked(sql)
    assert answer["ok"], answer
    assert "constraint failed" in answer["warnings"][0]["message"]
    assert answer["warnings"][0]["statement"] in sql


def test_an_earlier_change_that_fails_is_named():
    answer = checked("CREATE TABLE x (a)", [*SHOP, "CREATE TABLE users (x)"])
    assert answer["code"] == "schema_history_broken"
    assert "Schema change 4" in answer["message"]


@pytest.mark.parametrize(
    ("sql", "ok"),
    [
        ("CREATE UNIQUE INDEX u ON users (state)", True),
        ("DELETE FROM users WHERE rowid NOT IN (SELECT min(rowid) FROM users GROUP BY state);\n"
         "create unique index \"U\" on [users] (STATE) -- amended", True),
        ("CREATE INDEX u ON users (state)", False),
        ("CREATE UNIQUE INDEX u ON users (state); CREATE TABLE more (x)", False),
        ("SELECT 1", False),
    ],
)  # fmt: skip
def test_an_amendment_must_lead_to_the_same_schema(sql, ok):
    # The changes after the amended one don't matter: they aren't run.
    earlier = [*SHOP, "CREATE UNIQUE INDEX u ON users (state)", "DROP INDEX u; CREATE TABLE more (x)"]
    answer = checked(sql, earlier, RegisteredChange(4, "CREATE UNIQUE INDEX u ON users (state)"))
    assert answer["ok"] is ok, answer
    if not ok:
        assert answer["code"] == "schema_amendment_differs"
        assert "index u" in answer["message"] or "table more" in answer["message"]


def test_a_rebuilt_table_is_the_same_schema():
    first = "ALTER TABLE orders RENAME COLUMN total TO sum"
    other = (
        "CREATE TABLE fresh (id INTEGER PRIMARY KEY, user INTEGER NOT NULL REFERENCES users, sum REAL) STRICT;"
        "INSERT INTO fresh SELECT id, user, total FROM orders; DROP TABLE orders; ALTER TABLE fresh RENAME TO orders;"
        "CREATE INDEX orders_user ON orders (user)"
    )
    assert checked(other, SHOP, RegisteredChange(4, first))["ok"]


def test_tables_are_filled_as_well_as_it_can():
    extra = [
        "CREATE TABLE tree (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES tree (id))",
        "CREATE TABLE pair (a TEXT, b INT, PRIMARY KEY (a, b))",
        "CREATE TABLE of_pair (x, y, FOREIGN KEY (x, y) REFERENCES pair)",
        "CREATE TABLE child (c REFERENCES parent (name))",
        "CREATE TABLE parent (name VARCHAR(5) PRIMARY KEY CHECK (length(name) = 5))",
        "CREATE TABLE typed (a INT, b TEXT, c BLOB, d REAL, e ANY) STRICT",
        "CREATE TABLE gen (a, b AS (a + 1), c AS (b) STORED)",
        'CREATE TABLE "odd ""name" ("a ""b" INTEGER UNIQUE NOT NULL)',
        "CREATE TABLE never (x UNIQUE CHECK (0)); CREATE TABLE orphan (x INTEGER NOT NULL REFERENCES never (x))",
        "CREATE TABLE raising (x); CREATE TRIGGER r BEFORE INSERT ON raising BEGIN SELECT RAISE(ABORT, 'no'); END",
        "CREATE VIRTUAL TABLE search USING fts5(x); CREATE VIEW v AS SELECT * FROM tree",
    ]
    with database.in_memory() as opened:
        for text in [*SHOP, *extra]:
            for statement in check_schema.schema_change.split(text):
                opened.rows(statement.sql)
        opened.rows("PRAGMA foreign_keys = ON")
        assert fill(opened) == ["never", "orphan", "raising"]
        for table in ("users", "orders", "lines", "tree", "pair", "of_pair", "typed", "gen", '"odd ""name"'):
            assert opened.rows(f"SELECT count(*) FROM {table}") == [(3,)], table
        assert opened.rows("SELECT count(*) >= 1 FROM child") == [(1,)]
        assert opened.rows("PRAGMA foreign_key_check") == []


def test_generated_rows_have_their_parents():
    """A column that is part of two foreign keys must fit both; else each change would be told to leave orphans."""
    tables = [
        "CREATE TABLE places (town INTEGER, street INTEGER, PRIMARY KEY (town, street))",
        "CREATE TABLE towns (town INTEGER PRIMARY KEY)",
        "CREATE TABLE houses (town INTEGER NOT NULL REFERENCES towns, street INTEGER NOT NULL, "
        "FOREIGN KEY (town, street) REFERENCES places)",
    ]
    answer = checked("CREATE TABLE more (x)", tables)
    assert (answer["ok"], answer["empty"], answer["warnings"]) == (True, [], [])


def run(asked, program=("-m", "edge_runtime.oneshot.check", "schema")):
    return subprocess.run(
        [sys.executable, *program],
        input=asked if isinstance(asked, bytes) else orjson.dumps(asked),
        cwd=ROOT,
        capture_output=True,
        timeout=scaled(100),
    )


@pytest.mark.usefixtures("programs_by_exec")
def test_the_program_reads_and_prints_json():
    earlier = [{"number": number, "sql": text} for number, text in enumerate(SHOP, 1)]
    good = run({"earlier": earlier, "sql": "CREATE TABLE x (y)", "amends": None})
    assert (good.returncode, good.stderr) == (0, b"")
    assert orjson.loads(good.stdout) == {"ok": True, "empty": [], "warnings": [], "losses": [], "stalls": []}
    bad = run({"earlier": earlier, "sql": "CREATE TABLE users (y)"})
    assert bad.returncode == 0
    assert orjson.loads(bad.stdout)["code"] == "schema_invalid"
    assert run(b"{").returncode == 2
    assert run({"sql": 1}).returncode == 2


def test_a_change_that_never_ends_or_fills_the_memory_is_refused():
    endless = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
    patient = "from edge_runtime.oneshot import check, check_schema; check_schema.SECONDS = 90; check.main(['schema'])"
    greedy = orjson.loads(
        run({"sql": "CREATE TABLE t AS " + endless + "SELECT zeroblob(10000) FROM c"}, ["-c", patient]).stdout
    )
    assert (greedy["ok"], greedy["code"]) == (False, "apply_out_of_memory")
    assert "out of memory" in greedy["message"]
    hurried = "from edge_runtime.oneshot import check, check_schema; check_schema.SECONDS = 0.5; check.main(['schema'])"
    ran = run({"sql": endless + "SELECT count(*) FROM c"}, ["-c", hurried])
    slow = orjson.loads(ran.stdout)
    assert (slow["ok"], slow["code"], ran.stderr) == (False, "schema_too_slow", b"")


def test_data_that_is_no_text_is_no_crash():
    seed = "CREATE TABLE a (x TEXT PRIMARY KEY); INSERT INTO a VALUES (CAST(x'ff' AS TEXT))"
    answer = checked("CREATE TABLE c (x)", [seed, "CREATE TABLE b (x REFERENCES a (x))"])
    assert answer["ok"], answer


def test_hundreds_of_earlier_changes_are_quick():
    table = (
        "CREATE TABLE a{0} (id INTEGER PRIMARY KEY, name TEXT NOT NULL, up INTEGER REFERENCES a{1} (id));"
        "CREATE INDEX i{0} ON a{0} (name); CREATE TRIGGER t{0} AFTER DELETE ON a{0} BEGIN SELECT 1; SELECT 2; END"
    )
    # Of this process alone: the machine may be busy.
    started = time.process_time()
    answer = checked("CREATE TABLE last (x)", [table.format(n, max(0, n - 1)) for n in range(200)])
    assert answer == {"ok": True, "empty": [], "warnings": [], "losses": [], "stalls": []}
    assert time.process_time() - started < 5


def test_what_nodes_can_lose_is_told():
    sql = "DROP TABLE lines; ALTER TABLE users DROP COLUMN age"
    assert [(loss["table"], loss["statement"]) for loss in checked(sql)["losses"]] == [
        ("users", "ALTER TABLE users DROP COLUMN age"),
        ("lines", "DROP TABLE lines;"),
    ]


def test_the_check_of_foreign_keys_counts_where_a_node_makes_it():
    family = [
        "CREATE TABLE codes (code TEXT PRIMARY KEY); CREATE TABLE uses (code REFERENCES codes); CREATE TABLE alone (x)"
    ]
    told = [(stall["table"], stall["message"]) for stall in checked("ALTER TABLE codes ADD COLUMN n", family)["stalls"]]
    assert told == [("uses", "the foreign keys of each row of uses are checked")]
    assert checked("ALTER TABLE alone ADD COLUMN n", family)["stalls"] == []


def test_a_trigger_of_before_that_deletes_is_found_on_generated_rows():
    trigger = "CREATE TRIGGER tidy AFTER UPDATE ON users BEGIN DELETE FROM lines; END"
    [loss] = checked("UPDATE users SET age = age", [*SHOP, trigger])["losses"]
    assert (loss["table"], loss["statement"]) == ("lines", "")
    assert "fewer rows" in loss["message"]


def test_an_amendment_is_compared_with_the_schema_before_the_change():
    made = "CREATE TABLE more (x)"
    amended = f"{made}; INSERT INTO more VALUES (1); DELETE FROM more"
    assert checked(amended, [*SHOP, made], RegisteredChange(4, made))["losses"] == []


VIEWS = "CREATE VIEW adults AS SELECT id FROM users WHERE age > 17; CREATE TABLE log (x, y)"
LOGS = "CREATE TRIGGER logs AFTER {event} ON users BEGIN INSERT INTO log VALUES (1, 2); END"


@pytest.mark.parametrize(
    ("earlier", "sql", "statement"),
    [
        ([], "DROP TABLE log", ""),
        ([], "CREATE VIEW both AS SELECT missing FROM users", 'SELECT * FROM "both"'),
        ([], "DROP TABLE lines; DROP TABLE orders; DROP TABLE users", 'SELECT * FROM "adults"'),
        ([LOGS.format(event="INSERT")], "DROP TABLE log", 'INSERT OR REPLACE INTO "users"'),
        ([LOGS.format(event="UPDATE OF age")], "DROP TABLE log", 'UPDATE "users"'),
        ([LOGS.format(event="DELETE")], "DROP TABLE log", 'DELETE FROM "users"'),
        ([], "CREATE TRIGGER t AFTER DELETE ON users BEGIN INSERT INTO log VALUES (1); END", 'DELETE FROM "users"'),
        ([], "CREATE TRIGGER t INSTEAD OF DELETE ON adults BEGIN DELETE FROM gone; END", 'DELETE FROM "adults"'),
        # Refusals are what these are for.
        ([], "CREATE TRIGGER t BEFORE DELETE ON users BEGIN SELECT RAISE(ABORT, 'they stay'); END", ""),
        ([], "CREATE TRIGGER t BEFORE UPDATE ON users BEGIN SELECT RAISE(ROLLBACK, 'they stay'); END", ""),
        ([], "CREATE TRIGGER t AFTER INSERT ON users BEGIN UPDATE users SET age = 999 WHERE id = new.id; END", ""),
        # What one of them does is undone before the next.
        (
            ["CREATE TRIGGER t AFTER DELETE ON lines BEGIN DELETE FROM users; END"],
            "CREATE TRIGGER u AFTER UPDATE ON users BEGIN INSERT INTO log VALUES (json('{'), 1); END",
            'UPDATE "users"',
        ),
        # What fails already isn't the change's fault.
        (["CREATE VIEW broken AS SELECT missing FROM users"], "CREATE TABLE a (x)", ""),
        ([], "CREATE TRIGGER t AFTER INSERT ON users BEGIN UPDATE users SET age = 3 WHERE id = new.id; END", ""),
    ],
)
def test_views_and_triggers_are_run_once(earlier, sql, statement):
    warnings = checked(sql, [*SHOP, VIEWS, *earlier])["warnings"]
    assert [warning["statement"][: len(statement)] for warning in warnings] == [statement] * bool(statement), warnings
    assert all(warning["message"].startswith("after it, this fails: ") for warning in warnings)


def test_a_table_without_rows_is_told_where_the_change_names_it():
    unfit = "CREATE TABLE strange (x CHECK (x = 'a very' || ' special' || ' value'))"
    assert checked("CREATE TABLE other (y)", [unfit])["warnings"] == []
    [warning] = checked("CREATE UNIQUE INDEX i ON Strange (x)", [unfit])["warnings"]
    assert "no rows could be generated for strange" in warning["message"]


def test_a_view_without_an_end_is_selected():
    view = "CREATE VIEW n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert checked(view)["warnings"] == []
