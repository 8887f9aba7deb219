"""SQL of the plain calls that the C library runs: one transaction a call, with the ends that a call in Python has."""

from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from edge_runtime.ipc import call_times, frames, progress_page
from edge_runtime.native import library
from edge_runtime.sql import database
from edge_runtime.sql.queries import load
from tests.guests.build import guest, wat
from tests.support.both_ways import BothWays, both_ways
from tests.support.worker_thread import GENERATION, Said, WorkerThread

pytestmark = pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}")

SCHEMA = (
    "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT UNIQUE, price REAL)",
    "CREATE TABLE parts (item INTEGER REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED)",
    "INSERT INTO items VALUES (1, 'one', 1.5), (2, 'two', 2.5), (3, 'three', 3.5)",
)
RAW = """(module
  (import "skerry" "sql" (func $sql (param i32 i32) (result i32)))
  (import "skerry" "result" (func $result (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "{\\22sql\\22:\\22SELECT 1\\22}")
  (data (i32.const 64) "{\\22sql\\22:\\22INSERT INTO items (name) VALUES ('raw')\\22}")
  (func (export "skerry_alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "skerry_handle") (param i32 i32) (result i64)
    (if (i32.gt_u (local.get 1) (i32.const 1000)) (then DOES))
    (i32.store (i32.const 1024) (i32.const 200))
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 8))))"""
"""Answers 200; for a large request, it does before what isn't allowed, after it has inserted a row."""
INSERTS = "(drop (call $sql (i32.const 64) (i32.const 53)))"
RAW_GUESTS = {
    "fetches_none": "(call $result (i32.const 1024))",
    "fetches_after_all": f"{INSERTS} (call $result (i32.const 1024)) (call $result (i32.const 1024))",
    "asks_outside": f"{INSERTS} (drop (call $sql (i32.const 65530) (i32.const 100)))",
    "asks_far_outside": f"{INSERTS} (drop (call $sql (i32.const -1) (i32.const -1)))",
    "fetches_outside": f"{INSERTS} (call $result (i32.const 65530))",
}
DIRECT = {"abi": "direct", "read_only_methods": ("GET",)}
FUNCTIONS = {
    "read": (guest("direct"), {"abi": "direct", "sql": "read"}),
    "write": (guest("direct"), {**DIRECT, "sql": "write"}),
    "lines": (guest("sql"), {"sql": "write"}),
    "few": (guest("sql"), {"sql": "read", "sql_rows": 2}),
    "small": (guest("direct"), {"abi": "direct", "sql": "read", "response_limit": 100}),
    **{name: (wat(RAW.replace("DOES", does)), {"abi": "direct", "sql": "write"}) for name, does in RAW_GUESTS.items()},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    with both_ways(tmp_path_factory.mktemp("sql"), FUNCTIONS, schema=SCHEMA) as run:
        yield run


@pytest.fixture
def in_c(both: BothWays) -> WorkerThread:
    return both.in_c


def sql(text: str, *params: object) -> bytes:
    return orjson.dumps({"sql": text, "params": params})


def run_by_c(run: WorkerThread, name: str) -> None:
    """See that a function is C's from now on."""
    body = sql("SELECT 1")
    for _ in range(library.opened().FOREIGN_CALLS + 2):
        before = len(run.ran)
        run.call(name, body, path="/sql", method="GET")
        if len(run.ran) == before:
            return
    raise AssertionError(f"Python runs {name}")


@contextmanager
def all_by_c(run: WorkerThread, name: str) -> Iterator[None]:
    """See that C runs all calls of a function that the block makes. What they have added is deleted afterwards."""
    run_by_c(run, name)
    before = len(run.ran)
    yield
    assert len(run.ran) == before
    rows(run)


def rows(run: WorkerThread) -> object:
    """What the tables hold, by a call of its own; what calls have added is deleted then."""
    query = sql("SELECT (SELECT group_concat(id || name) FROM items), (SELECT count(*) FROM parts)")
    found = orjson.loads(run.call("write", query, path="/sql").body)["rows"]
    for undo in ("DELETE FROM parts", "DELETE FROM items WHERE id > 3"):
        assert run.call("write", sql(undo), path="/sql").kind == 200
    return found


INSERT = sql("INSERT INTO items VALUES (?, ?, ?)", 9, "nine", 9.5)
ORPHAN = sql("INSERT INTO parts VALUES (77)")
CALLS = [
    ("read", {"path": "/sql"}, sql("SELECT * FROM items WHERE id = ?", 2)),
    ("read", {"path": "/sql"}, sql("SELECT value FROM generate_series(1, 5000)")),
    ("read", {"path": "/sql"}, b"no JSON"),
    ("read", {"path": "/sql"}, INSERT),
    ("read", {"path": "/sql"}, sql("SELECT * FROM _skerry_meta")),
    ("read", {"path": "/sql"}, sql("PRAGMA user_version")),
    ("read", {"path": "/status", "query": b"code=503"}, b""),
    ("read", {"path": "/trap"}, b""),
    ("write", {"path": "/sql"}, INSERT),
    ("write", {"path": "/sql", "method": "GET"}, INSERT),
    ("write", {"path": "/sql", "method": "PROPFIND"}, INSERT),
    ("write", {"path": "/sql"}, ORPHAN),
    ("lines", {}, INSERT + b"\n" + sql("SELECT changes(), total_changes() > 0") + b"\n" + INSERT),
    ("lines", {}, b"\n".join([INSERT, sql("SELECT nothing"), sql("SELECT count(*) FROM items")])),
    ("lines", {"query": b"status=503"}, INSERT),
    ("lines", {"query": b"status=404"}, INSERT),
    ("lines", {"query": b"trap=1"}, INSERT),
    ("lines", {"query": b"exit=3"}, INSERT),
    ("lines", {"query": b"status=9"}, INSERT),
    ("lines", {"query": b"sleep=1"}, INSERT),
    ("lines", {}, ORPHAN + b"\n" + sql("SELECT 1")),
    ("lines", {"query": b"status=500"}, ORPHAN),
    ("few", {}, sql("SELECT id FROM items LIMIT 2")),
    ("few", {}, sql("SELECT id FROM items")),
    ("few", {"query": b"trap=1"}, sql("SELECT id FROM items")),
    ("small", {"path": "/sql"}, sql("SELECT hex(zeroblob(200))")),
    *((name, {}, b"x" * 1000) for name in RAW_GUESTS),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]} {call[2][:60]!r}")
def test_a_call_ends_as_in_python(both: BothWays, call: tuple[str, dict[str, object], bytes]) -> None:
    name, head, body = call
    run_by_c(both.in_c, name)

    def said(run: WorkerThread) -> tuple[Said, object, object]:
        found = run.call(name, body, **head)
        failed = found.kind >= 500 or found.kind == frames.FAULT
        # Slow ones tell their times, too; which are slow differs.
        steps = [step.kind for step in call_times.decode(found.times).steps] if failed else []
        return found._replace(times=b""), steps, rows(run)

    assert [said(both.in_c) for _ in range(2)] == [said(both.in_python)] * 2


def test_the_steps_of_a_call_are_told_where_they_are_asked_for(in_c: WorkerThread) -> None:
    with all_by_c(in_c, "read"):
        said = in_c.call("read", sql("SELECT name FROM items WHERE id = 2"), path="/sql", timed=True)
        told = call_times.decode(said.times)
        assert [told.texts[step.text] for step in told.steps] == ["BEGIN", "SELECT name FROM items WHERE id = ?"]
        said = in_c.call("read", path="/body", timed=True)
        assert call_times.decode(said.times).steps == []


def test_statements_of_a_call_are_asked_by_c(in_c: WorkerThread) -> None:
    with all_by_c(in_c, "lines"):
        for number in range(10, 20):
            said = in_c.call("lines", sql("INSERT INTO items VALUES (?, ?, 1)", number, str(number)))
            assert orjson.loads(said.body)["changes"] == 1
        assert orjson.loads(in_c.call("lines", sql("SELECT count(*) FROM items")).body)["rows"] == [[13]]


def test_a_call_of_another_release_is_dispatched_again(in_c: WorkerThread) -> None:
    with all_by_c(in_c, "write"):
        with database.connect(in_c.folder / "libsql.db") as other:
            other.rows(load("write_release"), ("r2", 2, str(GENERATION + 1), "now"))
            assert [in_c.call("write", INSERT, path="/sql").kind for _ in range(2)] == [frames.STALE] * 2
            other.rows(load("write_release"), ("r", 1, str(GENERATION), "now"))
        assert in_c.call("write", INSERT, path="/sql").kind == 200


def test_a_call_that_would_write_while_a_release_is_applied_waits_for_it(in_c: WorkerThread) -> None:
    with all_by_c(in_c, "write"):
        progress_page.set_applying(in_c.words, 0, True)
        assert in_c.call("write", INSERT, path="/sql").kind == frames.HELD
        assert orjson.loads(in_c.call("write", sql("SELECT 1"), path="/sql").body)["rows"] == [[1]]
        progress_page.set_applying(in_c.words, 0, False)
        assert in_c.call("write", INSERT, path="/sql").kind == 200


def test_a_call_sees_what_others_wrote_before_it(in_c: WorkerThread) -> None:
    """So the transaction of the call before has ended."""
    with all_by_c(in_c, "read"), database.connect(in_c.folder / "libsql.db") as other:
        for number in range(10, 15):
            other.rows("INSERT INTO items VALUES (?, ?, 1)", (number, str(number)))
            found = orjson.loads(in_c.call("read", sql("SELECT max(id) FROM items"), path="/sql").body)["rows"]
            assert found == [[number]]
