"""The SQL of a call on a real libsql file: values exact both ways, one transaction, errors told and not swallowed."""

import base64
import math
import struct
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.sql.call_sql import CommitFailed, SqlLimits, StaleRelease, WriteHeld
from tests.support.deadlines import scaled
from tests.support.guest_sql import GENERATION, ask, calls


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with calls(tmp_path_factory.mktemp("db") / "skerry.db") as made:
        made.schema("CREATE TABLE v (n INTEGER PRIMARY KEY, v)", "CREATE TABLE t (t TEXT)")
        yield made


@pytest.fixture
def db(tmp_path):
    with calls(tmp_path / "skerry.db") as made:
        made.schema(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT UNIQUE, price REAL CHECK (price > 0), body BLOB)",
            "CREATE TABLE parts (id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES items (id))",
        )
        yield made


def code(answer):
    assert answer.keys() == {"error"}, answer
    assert answer["error"]["message"]
    return answer["error"]["code"]


def same(left, right):
    if isinstance(left, float):
        return type(right) is float and struct.pack("d", left) == struct.pack("d", right)
    return type(left) is type(right) and left == right


integers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63)]
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
blobs = st.binary().map(lambda data: {"$blob": base64.b64encode(data).decode()})
values = st.none() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts | blobs


@given(st.lists(values, min_size=1, max_size=6))
@example([1.0, 1, -0.0, 1e300, 5e-324, 2.0**63, 1e22])
@example(["\ufeff\uffff\U0010ffff\u2028", "", {"$blob": ""}])
def test_values_go_in_and_out_exactly(shared, wanted):
    selected = shared.one("SELECT " + ", ".join("?" for _ in wanted), *wanted)
    assert all(map(same, selected["rows"][0], wanted)), selected
    assert selected["columns"] == ["?" for _ in wanted]
    shared.one("DELETE FROM v")
    for value in wanted:
        assert shared.one("INSERT INTO v (v) VALUES (?)", value)["changes"] == 1
    stored = [row[0] for row in shared.one("SELECT v FROM v ORDER BY n", grant="read")["rows"]]
    assert len(stored) == len(wanted)
    assert all(map(same, stored, wanted)), stored


@given(integers)
def test_an_integer_is_one_to_sqlite_whatever_its_size(shared, number):
    """Storage class, arithmetic and comparison are a bound integer's, with a TEXT column too."""
    answer = shared.one("SELECT typeof(?1), ?1 - ?1, ?1 = ?2, CAST(?1 AS TEXT), ?2", number, number)
    assert answer["rows"] == [["integer", 0, 1, str(number), number]]
    shared.one("DELETE FROM t")
    for text in (str(number), f"0{number}", f" {number}"):
        shared.one("INSERT INTO t VALUES (?)", text)
    assert shared.one("SELECT t FROM t WHERE t = ?", number)["rows"] == [[str(number)]]


def test_wide_integers_work_wherever_a_parameter_may_be(db):
    big = 2**40
    assert db.one("INSERT INTO items (id, name) VALUES (?, ?)", big, "a")["last_id"] == big
    assert db.one("SELECT name FROM items WHERE id IN (?, ?1) LIMIT ?2", big, big)["rows"] == [["a"]]
    assert db.one("SELECT -?, ?*2, '?', \"id\" -- ?\n FROM items", big, big)["rows"] == [[-big, 2 * big, "?", big]]
    plan = db.one("EXPLAIN QUERY PLAN SELECT name FROM items WHERE id = ?", big)
    assert "PRIMARY KEY" in plan["rows"][0][3]


@pytest.mark.parametrize(
    ("literal", "why"),
    [
        ("9223372036854775808", "64 bits"),
        ("-9223372036854775809", "64 bits"),
        ("18446744073709551616", "64 bits"),
        ('"a\\u0000b"', "NUL"),
        ('{"$blob": "%%"}', "base64"),
        ('{"$blob": "QQ"}', "base64"),
        ('{"$blob": 1}', "object"),
        ('{"$blob": "", "x": 1}', "object"),
        ("[1]", "array"),
    ],
)
def test_a_value_that_would_change_is_an_error(db, literal, why):
    answer = orjson.loads(db.new().execute(b'{"sql": "SELECT ?", "params": [%b]}' % literal.encode()))
    assert code(answer) == "sql_value"
    assert why in answer["error"]["message"]


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"sql": 1}',
        b'{"params": []}',
        b'{"sql": "SELECT 1", "params": {}}',
        b'{"sql": "SELECT 1", "more": 1}',
        b'{"sql": "SELECT ?", "params": [NaN]}',
        b'{"sql": "SELECT ?", "params": [1e999]}',
        b'{"sql": "SELECT ?", "params": ["\\ud800"]}',
        b'{"sql": "SELECT \xff"}',
    ],
)
def test_a_malformed_request_is_an_error(db, request_):
    assert code(orjson.loads(db.new().execute(request_))) == "request_invalid"


def test_infinity_and_broken_text_in_an_answer_are_errors(db, capfd):
    assert code(db.one("SELECT NULL, 9e999")) == "sql_value"
    assert code(db.one("SELECT CAST(x'ff' AS TEXT)")) == "sql_value"
    assert db.one("SELECT x'ff', CAST(x'41' AS TEXT)")["rows"] == [[{"$blob": "/w=="}, "A"]]
    assert db.one("SELECT true, ?", True)["rows"] == [[1, 1]]


def test_a_write_whose_answer_cannot_be_given_is_not_kept(db, capfd):
    for statement in (
        "INSERT INTO items (name) VALUES ('lost') RETURNING 9e999",
        "INSERT INTO items (name) VALUES ('lost') RETURNING CAST(x'ff' AS TEXT)",
    ):
        call = db.new()
        ask(call, "INSERT INTO items (name) VALUES ('before')")
        assert code(ask(call, statement)) == "sql_value"
        assert code(ask(call, "SELECT 1")) == "transaction_ended"
        with pytest.raises(CommitFailed) as failed:
            call.commit()
        assert failed.value.code == "transaction_ended"
    assert db.one("SELECT * FROM items")["rows"] == []


def test_what_was_changed(db):
    assert db.one("INSERT INTO items (name) VALUES ('a'), ('b')") == {
        "columns": [],
        "rows": [],
        "changes": 2,
        "last_id": 2,
    }
    returned = db.one("INSERT INTO items (name) VALUES ('c') RETURNING id, name")
    assert (returned["rows"], returned["changes"], returned["last_id"]) == ([[3, "c"]], 1, 3)
    assert db.one("INSERT INTO items (name) VALUES ('c') ON CONFLICT DO NOTHING")["last_id"] is None
    updated = db.one("UPDATE items SET price = 1 RETURNING id")
    assert (updated["changes"], updated["last_id"]) == (3, None)
    assert db.one("WITH x AS (SELECT 1) INSERT INTO items (id) SELECT 9 FROM x")["last_id"] == 9
    assert db.one("SELECT 1")["changes"] == 0
    assert db.one("DELETE FROM items")["changes"] == 4
    assert db.one("EXPLAIN DELETE FROM items")["changes"] == 0


def test_a_call_is_one_transaction(db):
    call = db.new()
    ask(call, "INSERT INTO items (name) VALUES ('a')")
    assert code(ask(call, "INSERT INTO items (name) VALUES ('a')")) == "constraint_unique"
    assert code(ask(call, "SELECT nothing FROM nowhere")) == "sql_invalid"
    assert ask(call, "SELECT count(*) FROM items")["rows"] == [[1]]
    call.rollback()
    assert db.one("SELECT count(*) FROM items")["rows"] == [[0]]


def test_after_sqlite_ended_the_transaction_nothing_more_runs(db):
    db.one("INSERT INTO items (name) VALUES ('a')")
    call = db.new()
    ask(call, "INSERT INTO items (name) VALUES ('gone')")
    assert code(ask(call, "INSERT OR ROLLBACK INTO items (name) VALUES ('a')")) == "constraint_unique"
    assert code(ask(call, "INSERT INTO items (name) VALUES ('never')")) == "transaction_ended"
    with pytest.raises(CommitFailed):
        call.commit()
    assert db.one("SELECT name FROM items")["rows"] == [["a"]]


def test_a_commit_that_fails_keeps_nothing(db):
    db.schema("CREATE TABLE later (x REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED)")
    call = db.new()
    ask(call, "INSERT INTO later VALUES (77)")
    with pytest.raises(CommitFailed) as failed:
        call.commit()
    assert failed.value.code == "constraint_foreign_key"
    assert db.one("SELECT * FROM later")["rows"] == []


@pytest.mark.parametrize(
    ("sql", "params", "wanted"),
    [
        ("INSERT INTO items (price) VALUES (-1)", [], "constraint_check"),
        ("INSERT INTO parts (item) VALUES (NULL)", [], "constraint_not_null"),
        ("INSERT INTO parts (item) VALUES (5)", [], "constraint_foreign_key"),
        ("SELECT abs(x) FROM (SELECT 1 AS x UNION ALL SELECT -9223372036854775808)", [], "sql_failed"),
        ("SELECT ?, ?3", [1, 2], "sql_parameters"),
        ("SELECT 1", [1], "sql_parameters"),
        ("SELECT :name", [1], "sql_not_allowed"),
        ("SELECT 1; SELECT 2", [], "sql_not_allowed"),
        ("SELECT 1;;--x\n", [], None),
        ("", [], "sql_invalid"),
        (" /* only a comment */ ", [], "sql_invalid"),
        ("SELEC 1", [], "sql_not_allowed"),
        ("SELECT 'open", [], "sql_invalid"),
        ("SELECT 1 FROM", [], "sql_invalid"),
        ("SELECT '\0'", [], "sql_invalid"),
        ("SELECT hex(randomblob(200000000))", [], "sql_out_of_memory"),
    ],
)
def test_errors_of_statements(db, sql, params, wanted):
    answer = db.one(sql, *params)
    assert answer.get("error", {}).get("code") == wanted
    assert db.one("SELECT 1")["rows"] == [[1]]


VERBS = """
PRAGMA user_version | VACUUM | VACUUM INTO '/tmp/x' | ATTACH '/tmp/x' AS y | DETACH y | BEGIN | COMMIT | END | ROLLBACK
| SAVEPOINT a | RELEASE a | CREATE TABLE x (y) | CREATE TEMP TABLE x (y) | DROP TABLE items | REINDEX | ANALYZE
| ALTER TABLE items ADD x | EXPLAIN PRAGMA query_only = 0 | EXPLAIN QUERY PLAN BEGIN | EXPLAIN EXPLAIN SELECT 1
| /*x*/ PRAGMA x | \ufeffPRAGMA x | "SELECT" 1 | EXPLAIN
"""


@pytest.mark.parametrize("verb", VERBS.split("|"))
def test_only_the_verbs_of_data_are_run(db, verb):
    assert code(db.one(verb)) == "sql_not_allowed"


def test_a_grant_is_all_that_a_function_may_do(db):
    db.one("INSERT INTO items (name) VALUES ('a')")
    assert db.one("SELECT name FROM items", grant="read")["rows"] == [["a"]]
    for sql in (
        "DELETE FROM items",
        "INSERT INTO items (name) VALUES ('b') RETURNING 1",
        "REPLACE INTO items VALUES (1,'b',1,1)",
    ):
        assert code(db.one(sql, grant="read")) == "not_granted"
        assert code(db.one(sql, grant="none")) == "not_granted"
    assert code(db.one("SELECT 1", grant="none")) == "not_granted"
    # The second lock on that door.
    call = db.new("read")
    ask(call, "SELECT 1")
    with pytest.raises(ValueError, match="readonly"):
        db.database.rows("DELETE FROM items")
    call.rollback()
    assert db.one("SELECT count(*) FROM items")["rows"] == [[1]]


def test_limits_of_an_answer(db):
    series = "SELECT value FROM generate_series(1, ?)"
    few = SqlLimits(rows=100, answer_bytes=4000, request_bytes=300)
    call = db.new("read", few)
    assert len(ask(call, series, 100)["rows"]) == 100
    assert code(ask(call, series, 1000)) == "sql_too_many_rows"
    assert call.limit_code == "sql_too_many_rows"
    assert code(ask(call, "SELECT zeroblob(3500)")) == "sql_answer_too_large"
    assert call.limit_code == "sql_answer_too_large"
    assert code(ask(call, "SELECT ?", "x" * 300)) == "sql_request_too_large"
    assert ask(call, "SELECT 1")["rows"] == [[1]]
    call.commit()
    assert call.limit_code


@pytest.mark.parametrize(("most", "rows"), [(1, 2), (2, 3), (3, 5), (20, 25), (64, 65)])
def test_the_limit_of_rows_is_exact(db, most, rows):
    answer = ask(db.new("read", SqlLimits(rows=most)), f"SELECT * FROM generate_series(1, {rows})")
    assert code(answer) == "sql_too_many_rows"


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 18, 33, 1000])
def test_all_rows_come_in_their_order(db, count):
    answer = db.one("SELECT value, 'v' || value FROM generate_series(1, ?)", count)
    assert answer["rows"] == [[n, f"v{n}"] for n in range(1, count + 1)]


def test_a_call_for_another_release_runs_nothing(db):
    from edge_runtime.sql.call_sql import CallSql

    for grant in ("read", "write"):
        call = CallSql(db.session, grant, GENERATION + 1)
        with pytest.raises(StaleRelease):
            ask(call, "SELECT 1")
        assert not db.database.in_transaction
        call.commit()
    # The writer lock was let go.
    assert db.one("INSERT INTO items (name) VALUES ('a')")["changes"] == 1


class Applying:
    """What a call's worker is told while a release is applied."""

    applying = True

    def note(self) -> None:
        """A step of the call."""

    sending = waiting = writing = committing = running = note


def test_beside_a_release_that_is_applied_a_writing_call_reads_until_it_would_write(db):
    db.one("INSERT INTO items (name) VALUES ('a')")
    watch = Applying()
    call = db.new(watch=watch)
    assert ask(call, "SELECT name FROM items")["rows"] == [["a"]]
    assert "more" in ask(call, "SELECT more FROM items")["error"]["message"]
    call.commit()
    for turns in (lambda call: ask(call, "DELETE FROM items"), lambda call: call.sending()):
        call = db.new(watch=watch)
        ask(call, "SELECT name FROM items")
        assert not db.database.lock._held
        with pytest.raises(WriteHeld):
            turns(call)
        assert not db.database.in_transaction
    # One that has sent what can't be sent twice waits for its turn instead.
    watch.applying = False
    call = db.new(watch=watch)
    call.sending()
    watch.applying = True
    assert ask(call, "DELETE FROM items")["changes"] == 1
    call.commit()
    assert db.one("SELECT count(*) FROM items", grant="read")["rows"] == [[0]]


def test_a_statement_is_examined_anew_after_a_release(db):
    """What was fit in one schema may not be in the next: the same text, with another view behind it."""
    assert db.one("SELECT * FROM items", grant="read")["columns"] == ["id", "name", "price", "body"]
    db.database.set_query_only(False)
    db.database.rows("ALTER TABLE items ADD COLUMN more TEXT")
    db.database.rows("UPDATE _skerry_release SET applied = applied + 1")
    assert db.one("SELECT * FROM items", grant="read")["columns"] == ["id", "name", "price", "body", "more"]


def test_more_statements_than_are_kept(db):
    for n in range(600):
        assert db.one(f"SELECT {n}", grant="read")["rows"] == [[n]]
    assert len(db.session.statements) <= 256


def test_reals_always_show_that_they_are(db):
    raw = db.new().execute(b'{"sql": "SELECT 1.0, 1e3, 123456789012345680.0, 1e-7, 10, 0.5"}')
    for cell in orjson.loads(raw)["rows"][0]:
        assert math.isfinite(cell)
    numbers = raw.split(b"[[")[1].split(b"]]")[0].split(b",")
    assert [b"." in n or b"e" in n for n in numbers] == [True, True, True, True, False, True]


FULL_DISK = """
import resource, sys
from pathlib import Path
from edge_runtime.sql.call_sql import CommitFailed
from tests.support.guest_sql import ask, calls
path = Path(sys.argv[1])
with calls(path) as made:
    made.schema("CREATE TABLE log (x)")
    made.one("INSERT INTO log VALUES ('kept')")
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(path.name + "-wal").stat().st_size + 20_000,) * 2)
    seen = set()
    for size in (200_000, 5_000_000):
        call = made.new()
        ask(call, "INSERT INTO log VALUES ('lost')")
        answer = ask(call, "INSERT INTO log VALUES (zeroblob(?))", size)
        try:
            call.commit()
        except CommitFailed as failed:
            seen.add(failed.code)
        else:
            assert "error" in answer
    assert made.one("SELECT x FROM log")["rows"] == [["kept"]], made.one("SELECT x FROM log")
    print(seen)
"""


def test_a_file_that_cannot_grow_keeps_what_was_committed(tmp_path):
    """As where the disk is full: the call fails whole, and the connection goes on."""
    path = tmp_path / "skerry.db"
    root = Path(__file__).parents[4]
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=root, capture_output=True, text=True, timeout=scaled(60)
    )
    assert ran.returncode == 0, ran.stderr
    assert "disk_failed" in ran.stdout or "transaction_ended" in ran.stdout
    with calls(path) as made:
        assert made.one("SELECT x FROM log")["rows"] == [["kept"]]
