"""A release is applied to the libsql file wholly or not at all: history, schema changes, functions, probes."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from control.protocol import wire
from edge_runtime.children import release_transaction
from edge_runtime.errors import SyncFailed
from edge_runtime.sql import database, schema
from edge_runtime.sql.call_sql import CallSql, Session, StaleRelease
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.guest_sql import ask
from tests.support.plans import changes, local, plan

pytestmark = pytest.mark.never_retry

ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"
SEED = "INSERT INTO items (name) VALUES ('a'), ('b'), ('b')"
FUNCTION = local("f", b"f")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "skerry.db"


@pytest.fixture
def opened(path):
    with database.connect(path, "FULL", foreign_keys=False) as made:
        yield made


@pytest.fixture
def reader(path, opened):
    """Another connection, as a worker's."""
    with database.connect(path, "NORMAL") as made:
        yield made


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    return tmp_path_factory.mktemp("aot")


def apply(opened, made, functions=()):
    inventory = release_transaction.prepare(opened, made, list(functions))
    release_transaction.commit(opened)
    return inventory


def refused(opened, made, functions=()):
    """The error of a plan that can't be followed, after which the file is as it was, and can be written."""
    before = dump(opened)
    with pytest.raises(SyncFailed) as failed:
        release_transaction.prepare(opened, made, list(functions))
    assert not opened.in_transaction
    assert dump(opened) == before
    opened.lock.acquire()
    opened.lock.release()
    return failed.value


def dump(opened):
    """Everything in the file."""
    found = {"schema": opened.rows("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2")}
    for kind, name, _, _ in found["schema"]:
        if kind == "table":
            found[name] = opened.rows(f'SELECT * FROM "{name}"')
    return found


def test_a_release_is_seen_whole_after_its_commit(opened, reader):
    functions = [local("f", b"one", sql="read"), local("g", b"two", config={"A": "é\n"}, version=7)]
    made = plan(2**61, changes([ITEMS, SEED]), functions)
    inventory = release_transaction.prepare(opened, made, functions)
    assert database.read_release(reader) is None
    assert reader.rows("SELECT name FROM sqlite_schema WHERE name = 'items'") == []
    release_transaction.commit(opened)
    stored = database.stored(reader)
    assert stored.inventory == inventory
    assert inventory.schema_version == 2
    assert [(c.number, c.revision, c.checksum) for c in inventory.schema_changes] == [
        (1, 1, wire.schema_checksum(ITEMS)),
        (2, 1, wire.schema_checksum(SEED)),
    ]
    assert [(f.name, f.version, f.sha256, f.manifest_digest) for f in inventory.functions] == [
        (f.name, f.version, f.sha256, f.manifest_digest) for f in functions
    ]
    assert len(inventory.database_id) == 36
    release = stored.release
    assert (release.release_id, release.number, release.generation, release.schema_version) == (
        made.release_id,
        made.release_number,
        2**61,
        2,
    )
    assert release.functions == functions
    assert reader.rows("SELECT count(*) FROM items") == [(3,)]


def test_the_next_release_replaces_the_functions_and_goes_on_in_the_history(opened):
    first = apply(opened, plan(1, changes([ITEMS]), [FUNCTION]), [FUNCTION])
    other = local("g", b"g")
    second = apply(opened, plan(2, changes([SEED], 2), [other]), [other])
    assert [f.name for f in second.functions] == ["g"]
    assert [c.number for c in second.schema_changes] == [1, 2]
    assert second.database_id == first.database_id
    assert opened.rows("SELECT generation, applied FROM _skerry_release") == [(2, 2)]


def test_a_rollback_has_a_floor_below_the_files_version_and_changes_no_schema(opened):
    apply(opened, plan(1, changes([ITEMS, SEED]), [FUNCTION]), [FUNCTION])
    back = apply(opened, plan(2, [], [FUNCTION], floor=1), [FUNCTION])
    assert back.schema_version == 2
    assert opened.rows("SELECT count(*) FROM items") == [(3,)]


def test_a_plan_that_was_applied_already_is_applied_again(opened):
    """Its result was lost: the same sync is answered again."""
    made = plan(1, changes([ITEMS, SEED]), [FUNCTION])
    first = apply(opened, made, [FUNCTION])
    assert apply(opened, made, [FUNCTION]) == first
    assert opened.rows("SELECT count(*) FROM items") == [(3,)]
    assert apply(opened, plan(1, changes([ITEMS, SEED, "CREATE TABLE more (x)"])), []).schema_version == 3
    assert schema.is_recorded(opened)
    assert schema.differences(opened) == ([], [], [])


def test_a_change_that_was_amended_after_the_file_had_it_stays(opened):
    apply(opened, plan(1, changes([ITEMS])))
    amended = changes(["CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL); SELECT 1"], 1, revision=2)
    inventory = apply(opened, plan(2, amended + changes(["CREATE TABLE b (x)"], 2)))
    assert [(c.number, c.revision) for c in inventory.schema_changes] == [(1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("made", "code", "says"),
    [
        (plan(2, changes(["CREATE TABLE b (x)"], 3)), "schema_history_mismatch", "version 1"),
        (plan(2, [], floor=2), "schema_history_mismatch", "version 1"),
        (plan(2, changes(["CREATE TABLE b (x)", "SELECT 1"], 2)[::-1], floor=3), "schema_history_mismatch", "change 2"),
        (plan(2, changes(["CREATE TABLE other (x)"], 1)), "schema_history_mismatch", "change 1"),
        (plan(2, changes(["CREATE TABLE b (x)"], 2), floor=1), "plan_invalid", "ends at change 1"),
        (plan(0, changes(["CREATE TABLE b (x)"], 2)), "generation_lower", "at 1"),
        (plan(2, [wire.PlannedChange(2, 1, "x", "0" * 64, "SELECT 1")]), "schema_checksum_mismatch", "change 2"),
        (plan(2, [], [FUNCTION], floor=1), "plan_invalid", "made ready"),
    ],
)
def test_a_plan_that_does_not_go_on_from_the_file_is_refused(opened, made, code, says):
    apply(opened, plan(1, changes([ITEMS])))
    error = refused(opened, made)
    assert error.code == code
    assert says in error.message


@pytest.mark.parametrize(
    ("sql", "code", "says"),
    [
        (
            "CREATE TABLE b (x); CREATE UNIQUE INDEX u ON items (name)",
            "schema_change_failed",
            "UNIQUE constraint failed",
        ),
        ("CREATE TABLE b (x); CREAT TABLE c (x)", "schema_not_allowed", "CREAT"),
        ("DROP TABLE items; SELECT * FROM items", "schema_change_failed", "no such table: items"),
        ("ALTER TABLE items ADD COLUMN x TEXT NOT NULL", "schema_change_failed", "ALTER TABLE items ADD COLUMN x"),
        ("INSERT OR ROLLBACK INTO items (id, name) VALUES (9, 'x'), (1, 'y')", "schema_change_failed", "UNIQUE"),
        ("CREATE TABLE b (x); COMMIT", "schema_not_allowed", "COMMIT"),
        ("DELETE FROM _skerry_release", "schema_closed", "_skerry_release"),
        (
            "CREATE TABLE b (x); CREATE TRIGGER t AFTER INSERT ON b BEGIN SELECT 1;",
            "schema_change_failed",
            "incomplete",
        ),
        ("SELECT abs(-9223372036854775807 - value) FROM generate_series(0, 1000)", "schema_change_failed", "overflow"),
        ("SELECT CAST(x'ff' AS TEXT)", "schema_change_failed", "UTF-8"),
        ("DELETE FROM items WHERE id = 1", "foreign_key_violation", "refers to items"),
    ],
)
def test_a_schema_change_that_fails_changes_nothing(opened, capfd, sql, code, says):
    children = "CREATE TABLE children (item INTEGER REFERENCES items (id)); INSERT INTO children VALUES (1)"
    apply(opened, plan(1, changes([ITEMS, SEED, children])))
    error = refused(opened, plan(2, changes(["CREATE TABLE good (x)", sql], 4)))
    assert error.code == code
    assert says in error.message
    assert len(error.message) < 2000
    if code != "foreign_key_violation":
        assert "schema change 5 (change 5)" in error.message
    # What was amended is applied, and recorded as what it is.
    amended = changes(["CREATE TABLE good (x)"], 4) + changes(["CREATE TABLE b (x)"], 5, revision=2)
    assert [c.revision for c in apply(opened, plan(2, amended)).schema_changes] == [1, 1, 1, 1, 2]


FAMILY = (
    "CREATE TABLE codes (id INTEGER PRIMARY KEY, code TEXT); CREATE UNIQUE INDEX by_code ON codes (code);"
    "CREATE TABLE uses (id INTEGER PRIMARY KEY, code TEXT REFERENCES codes (code));"
    "CREATE TABLE Ends (code TEXT, number INTEGER); CREATE VIEW ended AS SELECT code FROM Ends;"
    "CREATE TRIGGER ends AFTER INSERT ON Ends BEGIN DELETE FROM codes WHERE code = new.code; END;"
    "CREATE TRIGGER endings INSTEAD OF INSERT ON ended BEGIN INSERT INTO Ends VALUES (new.code, 1); END;"
    "CREATE TABLE [far off] (item INTEGER REFERENCES nowhere (id));"
    "INSERT INTO codes (code) VALUES ('a'), ('b'); INSERT INTO uses (code) VALUES ('a')"
)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM CODES",
        "UPDATE \"codes\" SET code = 'c' WHERE code = 'a'",
        "INSERT INTO uses (code) VALUES ('c')",
        "DROP TABLE codes",
        "DROP INDEX by_code",
        "INSERT INTO ends VALUES ('a', 1)",
        "INSERT INTO ended VALUES ('a')",
        "DROP TRIGGER endings; DROP VIEW ended; ALTER TABLE ends RENAME TO done; INSERT INTO done VALUES ('a', 1)",
        "CREATE TRIGGER more AFTER UPDATE ON ends BEGIN DELETE FROM codes; END; INSERT INTO ends VALUES ('b', 1);"
        "UPDATE ends SET number = 2; DROP TRIGGER more",
        "DROP TRIGGER ends; CREATE TABLE fresh (id INTEGER PRIMARY KEY, code TEXT UNIQUE); DROP TABLE codes;"
        "ALTER TABLE fresh RENAME TO codes",
        "ALTER TABLE codes RENAME TO marks; DELETE FROM marks",
        "CREATE TABLE more (code TEXT REFERENCES codes (code)); INSERT INTO more VALUES ('c')",
    ],
)
def test_orphans_are_found_however_the_change_makes_them(opened, sql):
    apply(opened, plan(1, changes([FAMILY])))
    error = refused(opened, plan(2, changes([sql], 2)))
    assert error.code == "foreign_key_violation", error


def test_tables_that_a_change_leaves_alone_are_not_read(opened):
    """Rows without parents in another table show that it isn't looked at."""
    apply(opened, plan(1, changes([FAMILY])))
    opened.rows("INSERT INTO uses (code) VALUES ('nowhere')")
    apply(opened, plan(2, changes(["CREATE TABLE other (x)"], 2)))
    error = refused(opened, plan(3, changes(["UPDATE codes SET code = code"], 3)))
    assert error.code == "foreign_key_violation"


def test_rebuilding_a_parent_keeps_its_children(opened):
    family = (
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, n INTEGER);"
        "CREATE TABLE child (p INTEGER NOT NULL REFERENCES parent (id) ON DELETE CASCADE);"
        "INSERT INTO parent VALUES (1, 5); INSERT INTO child VALUES (1), (1)"
    )
    rebuild = (
        "CREATE TABLE fresh (id INTEGER PRIMARY KEY, n TEXT NOT NULL); INSERT INTO fresh SELECT id, n FROM parent;"
        "DROP TABLE parent; ALTER TABLE fresh RENAME TO parent"
    )
    apply(opened, plan(1, changes([family])))
    apply(opened, plan(2, changes([rebuild], 2)))
    assert opened.rows("SELECT count(*) FROM child JOIN parent ON p = id") == [(2,)]


def test_calls_read_the_old_release_while_one_is_prepared_and_find_the_new_one_out(opened, reader):
    apply(opened, plan(1, changes([ITEMS, SEED])))
    session = Session(reader)
    for _ in range(3):
        # Whatever is cached, a call runs wholly on one release.
        call = CallSql(session, "read", 1)
        assert ask(call, "SELECT * FROM items LIMIT 1")["columns"] == ["id", "name"]
        call.commit()
    running = CallSql(session, "read", 1)
    ask(running, "SELECT 1")
    release_transaction.prepare(opened, plan(2, changes(["ALTER TABLE items ADD COLUMN more"], 3)), [])
    assert ask(running, "SELECT * FROM items LIMIT 1")["columns"] == ["id", "name"]
    release_transaction.commit(opened)
    assert ask(running, "SELECT * FROM items LIMIT 1")["columns"] == ["id", "name"]
    running.commit()
    with pytest.raises(StaleRelease):
        ask(CallSql(session, "read", 1), "SELECT * FROM items LIMIT 1")
    call = CallSql(session, "read", 2)
    assert ask(call, "SELECT * FROM items LIMIT 1")["columns"] == ["id", "name", "more"]
    call.commit()


# Probes


def probed(wasm, aot, **probe):
    more = {"read_only_methods": probe.pop("read_only_methods")} if "read_only_methods" in probe else {}
    return local("f", wasm, aot, sql=probe.pop("sql", "write"), probe={"path": "/", **probe}, **more)


def test_a_probe_sees_the_new_schema_and_leaves_nothing(opened, aot):
    function = probed(
        guest("sql"),
        aot,
        method="POST",
        body='{"sql": "INSERT INTO items (name) VALUES (\'probe\')"}\n{"sql": "SELECT count(*) FROM items"}',
        path="/?status=201",
        status=201,
    )
    apply(opened, plan(1, changes([ITEMS, SEED]), [function]), [function])
    assert opened.rows("SELECT count(*) FROM items") == [(3,)]


@pytest.mark.parametrize(
    ("name", "probe", "says"),
    [
        ("sql", {"path": "/?status=503"}, "answered 503"),
        ("sql", {"path": "/?trap=1"}, "guest_trap"),
        ("sql", {"path": "/?exit=3"}, "guest_exit"),
        ("raw", {"path": "/?log=why"}, "guest_response_invalid"),
        (
            "sql",
            {"body": '{"sql": "INSERT OR ROLLBACK INTO items (id, name) VALUES (1, \'x\')"}'},
            "ended the transaction",
        ),
    ],
)
def test_a_probe_that_fails_stops_the_release(opened, aot, capsys, name, probe, says):
    apply(opened, plan(1, changes([ITEMS, SEED])))
    function = probed(guest(name), aot, **probe)
    error = refused(opened, plan(2, changes(["CREATE TABLE b (x)"], 3), [function]), [function])
    assert error.code == "probe_failed"
    assert "function f, version 1" in error.message
    assert says in error.message
    # What it logged is the node's alone.
    assert ("f 1, in its probe: why\n" in capsys.readouterr().err, "why" in error.message) == (name == "raw", False)


def test_a_probe_of_a_function_that_reads_what_is_not_there_fails(opened, aot):
    function = probed(version(7, "SELECT x FROM nowhere"), aot, sql="read")
    error = refused(opened, plan(1, changes([ITEMS]), [function]), [function])
    assert error.code == "probe_failed"
    assert "no such table: nowhere" in error.message


def test_the_end_of_a_line_that_a_probe_answers_ends_none_of_the_error(opened, aot):
    visits = (Path(__file__).parents[4] / "examples/visits/visits.wasm").read_bytes()
    function = probed(visits, aot, path="/nobody")
    error = refused(opened, plan(1, changes([ITEMS]), [function]), [function])
    assert error.message.endswith('no such table: visits"}}')


def test_a_probe_may_not_do_more_than_its_grant(opened, aot):
    body = '{"sql": "DELETE FROM items"}\n{"sql": "SELECT * FROM _skerry_release"}'
    function = probed(guest("sql"), aot, sql="read", body=body, status=299)
    error = refused(opened, plan(1, changes([ITEMS, SEED]), [function]), [function])
    assert "not_granted" in error.message
    assert "sql_closed" in error.message


def test_a_probe_by_a_method_that_only_reads_may_not_write(opened, aot):
    body = '{"sql": "DELETE FROM items"}'
    function = probed(guest("sql"), aot, read_only_methods=("GET", "HEAD"), body=body, status=299)
    error = refused(opened, plan(1, changes([ITEMS, SEED]), [function]), [function])
    assert "not_granted" in error.message
    assert "calls with GET only read" in error.message
    function = probed(guest("sql"), aot, read_only_methods=("GET", "HEAD"), body=body, method="POST")
    apply(opened, plan(1, changes([ITEMS, SEED]), [function]), [function])


def test_an_aot_file_that_is_gone_is_a_failed_probe(opened, aot):
    function = msgspec.structs.replace(probed(version(8), aot), aot=str(aot / "nothing.so"))
    assert refused(opened, plan(1, changes([ITEMS]), [function]), [function]).code == "probe_failed"


def test_a_change_whose_pages_the_disk_has_no_room_for_is_refused(opened, monkeypatch):
    apply(opened, plan(1, changes([ITEMS])))
    real = os.statvfs

    def small(path):
        found = real(path)
        return os.statvfs_result((*found[:4], (20 << 20) // found.f_frsize, *found[5:]))

    monkeypatch.setattr(os, "statvfs", small)
    text = "INSERT INTO items (name) VALUES (hex(zeroblob({})))"
    error = refused(opened, plan(2, changes([ITEMS, text.format(4 << 20)])))
    assert error.code == "disk_full"
    assert "needs 8 MiB more" in error.message
    apply(opened, plan(2, changes([ITEMS, text.format(1 << 20)])))


def test_a_statement_that_the_disk_has_no_room_for_says_what_it_had_and_needed(opened):
    apply(opened, plan(1, changes([ITEMS, "INSERT INTO items (name) SELECT 'x' FROM generate_series(1, 1000)"])))
    # SQLite's own limit ends a statement as a full disk does.
    pages = opened.rows("PRAGMA page_count")[0][0]
    opened.rows(f"PRAGMA max_page_count = {pages + 1000}")
    many = "INSERT INTO items (name) SELECT hex(randomblob(90)) FROM generate_series(1, 60000)"
    error = refused(opened, plan(2, changes([many], 3)))
    assert error.code == "disk_full"
    for said in ("schema change 3", "is full", "are free on the disk of", "The table items has 0.0 MiB", many):
        assert said in error.message
    assert re.search(r"had written [1-9]\.[0-9] MiB to the write-ahead log", error.message)
    opened.rows("PRAGMA max_page_count = 1000000")
    assert apply(opened, plan(2, changes([many], 3))).schema_version == 3
