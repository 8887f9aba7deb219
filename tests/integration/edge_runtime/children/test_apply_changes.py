"""Schema changes in steps: what runs before the flip, in it and behind it, and each row exactly once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.protocol import wire
from edge_runtime import wal
from edge_runtime.children import apply_changes, release_transaction
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.sql import database, run_change, schema, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.call_sql import CallSql
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import Session
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import HOLDER
from tests.support.deadlines import scaled
from tests.support.guest_sql import ask
from tests.support.plans import changes, local, plan

pytestmark = pytest.mark.never_retry

ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)"
ROWS = 3000
FILL = f"INSERT INTO items SELECT value, value FROM generate_series(1, {ROWS})"
TOTALS = """
-- skerry: before
ALTER TABLE items ADD COLUMN total INTEGER;
CREATE TRIGGER items_total_ai AFTER INSERT ON items BEGIN
    UPDATE items SET total = new.amount * 2 WHERE id = new.id;
END;
CREATE TRIGGER items_total_au AFTER UPDATE OF amount ON items BEGIN
    UPDATE items SET total = new.amount * 2 WHERE id = new.id;
END;
-- skerry: batch items by id
UPDATE items SET total = amount * 2 WHERE id > :after AND id <= :upto;
-- skerry: flip
DROP TRIGGER items_total_ai; DROP TRIGGER items_total_au;
CREATE VIEW totals AS SELECT sum(total) AS total FROM items;
-- skerry: undo
DROP TRIGGER items_total_ai; DROP TRIGGER items_total_au; ALTER TABLE items DROP COLUMN total;
"""
ANEW = """
-- skerry: before
CREATE TABLE items_new (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL CHECK (amount > 0), state TEXT NOT NULL);
CREATE TRIGGER items_new_ai AFTER INSERT ON items BEGIN
    DELETE FROM items_new WHERE id = new.id; INSERT INTO items_new VALUES (new.id, new.amount, 'open');
END;
CREATE TRIGGER items_new_au AFTER UPDATE ON items BEGIN
    DELETE FROM items_new WHERE id IN (old.id, new.id); INSERT INTO items_new VALUES (new.id, new.amount, 'open');
END;
CREATE TRIGGER items_new_ad AFTER DELETE ON items BEGIN DELETE FROM items_new WHERE id = old.id; END;
-- skerry: batch items by id
INSERT INTO items_new SELECT id, amount, 'open' FROM items WHERE id > :after AND id <= :upto
    ON CONFLICT (id) DO NOTHING;
-- skerry: flip
DROP TRIGGER items_new_ai; DROP TRIGGER items_new_au; DROP TRIGGER items_new_ad;
ALTER TABLE items RENAME TO items_old; ALTER TABLE items_new RENAME TO items;
-- skerry: batch items_old by id
DELETE FROM items_old WHERE id > :after AND id <= :upto;
-- skerry: after
DROP TABLE items_old;
-- skerry: undo
DROP TRIGGER items_new_ai; DROP TRIGGER items_new_au; DROP TRIGGER items_new_ad; DROP TABLE items_new;
"""
ADDED = """
-- skerry: batch items by id
UPDATE items SET amount = amount + 1000000 WHERE id > :after AND id <= :upto
"""
"""Not right if it is done twice to a row."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "db").mkdir()
    return tmp_path / "db" / "skerry.db"


@pytest.fixture
def opened(path: Path) -> Iterator[LibsqlDatabase]:
    with database.connect(path, "FULL", foreign_keys=False) as made:
        release_transaction.prepare(made, plan(1, changes([ITEMS, FILL])), [])
        release_transaction.commit(made)
        yield made


def advance(opened: LibsqlDatabase, made: wire.Plan, serving: Any = ()) -> list[str]:
    said: list[str] = []
    apply_changes.advance(opened, frames.Advance(made, 1, list(serving)), said.append)
    return said


def flip(opened: LibsqlDatabase, made: wire.Plan) -> None:
    release_transaction.prepare(opened, made, [])
    release_transaction.commit(opened)


def steps(opened: LibsqlDatabase) -> list[tuple[int, int, str]]:
    return [(row.number, row.step, row.stage) for row in apply_changes.stored_steps(opened)]


def names(opened: LibsqlDatabase) -> set[str]:
    return {name for _, name in schema.digests(opened)}


def test_a_column_is_filled_under_the_release_that_serves(opened: LibsqlDatabase, path: Path) -> None:
    with database.connect(path) as worker:
        session = Session(worker)
        call = CallSql(session, "write", 1)
        assert "more" not in ask(call, "INSERT INTO items VALUES (100000, 3)")
        call.commit()
        made = plan(2, changes([TOTALS], 3))
        said = advance(opened, made)
        assert any(text.startswith("items: ") for text in said)
        # All is there but the flip: the old release goes on with it, and guests can't reach what the runtime keeps.
        assert opened.rows("SELECT count(*), sum(total = amount * 2) FROM items") == [(ROWS + 1, ROWS + 1)]
        assert "totals" not in names(opened)
        assert database.inventory(opened).schema_version == 2
        assert schema.differences(opened) == ([], [], [])
        call = CallSql(session, "write", 1)
        assert ask(call, "UPDATE items SET amount = 5 WHERE id = 1 RETURNING total")["changes"] == 1
        assert ask(call, "INSERT INTO items (amount) VALUES (7)")["changes"] == 1
        assert ask(call, "SELECT * FROM _skerry_steps")["error"]["code"] == "sql_closed"
        call.commit()
    assert advance(opened, made) == []
    flip(opened, made)
    assert opened.rows("SELECT count(*), sum(total = amount * 2) FROM items") == [(ROWS + 2, ROWS + 2)]
    assert names(opened) == {"items", "totals"}
    assert database.inventory(opened).schema_version == 3
    assert steps(opened) == []
    assert opened.rows("PRAGMA legacy_alter_table") == [(0,)]


def test_a_step_whose_log_stays_long_fails_and_is_gone_on_from(
    opened: LibsqlDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_change, "FULL_WAIT", 0.05)
    made = plan(2, changes([ADDED], 3))
    # No checkpointer is there, and a batch needs more than the half.
    opened.wal_limit = 2 * wal.committed(path)
    with pytest.raises(SyncFailed, match="can't begin anew") as failed:
        advance(opened, made)
    assert failed.value.code == "wal_full"
    assert not opened.in_transaction
    opened.wal_limit = database.WAL_LIMIT
    advance(opened, made)
    assert opened.rows("SELECT count(*) FROM items WHERE amount > 1000000") == [(ROWS,)]


def test_a_table_is_made_anew_and_the_old_one_emptied_behind_the_flip(opened: LibsqlDatabase) -> None:
    around = "CREATE TABLE parts (item INTEGER REFERENCES items (id)); INSERT INTO parts VALUES (7);"
    around += "CREATE VIEW large AS SELECT * FROM items WHERE amount > 10"
    flip(opened, plan(2, changes([around], 3)))
    made = plan(3, changes([ANEW], 4))
    advance(opened, made)
    opened.rows("DELETE FROM items WHERE id = 1")
    opened.rows("REPLACE INTO items VALUES (2, 99)")
    opened.rows("UPDATE items SET id = 5000 WHERE id = 3")
    flip(opened, made)
    assert steps(opened) == [(4, 3, "after"), (4, 4, "after")]
    assert "items_old" in names(opened)
    assert opened.rows("SELECT id, amount, state FROM items WHERE id < 5 OR id > 3000") == [
        (2, 99, "open"),
        (4, 4, "open"),
        (5000, 3, "open"),
    ]
    assert opened.rows("SELECT count(*), min(state) FROM large") == [(ROWS - 9, "open")]
    assert opened.rows("PRAGMA foreign_key_list(parts)")[0][2] == "items"
    apply_changes.finish(opened, lambda _: None)
    assert steps(opened) == []
    assert names(opened) == {"items", "large", "parts"}
    assert schema.differences(opened) == ([], [], [])


@pytest.mark.parametrize("later", [False, True])
def test_what_did_not_run_ahead_runs_in_the_flip(opened: LibsqlDatabase, later: bool) -> None:
    """A node that was offline gets several changes at once. Of the one before, the steps behind its flip come first."""
    first = ANEW if later else "CREATE TABLE more (x)"
    made = plan(2, changes([first, TOTALS], 3))
    if later:
        advance(opened, plan(2, changes([ANEW], 3)))
    else:
        assert advance(opened, made) == []
    flip(opened, made)
    assert opened.rows("SELECT count(*), sum(total = amount * 2) FROM items") == [(ROWS, ROWS)]
    assert {"items", "totals"} <= names(opened)
    assert "items_new" not in names(opened)
    apply_changes.finish(opened, lambda _: None)
    assert "items_old" not in names(opened)
    assert steps(opened) == []


def test_the_steps_behind_a_flip_come_before_the_next_change(opened: LibsqlDatabase) -> None:
    made = plan(2, changes([ANEW], 3))
    flip(opened, made)
    flip(opened, plan(3, changes(["CREATE TABLE items_old (another INTEGER)"], 4)))
    assert steps(opened) == []
    assert opened.rows("SELECT name FROM pragma_table_info('items_old')") == [("another",)]


@pytest.mark.parametrize("how", ["amended", "amended without steps", "given up", "given up in advance"])
def test_a_change_that_is_amended_or_given_up_is_undone(opened: LibsqlDatabase, how: str) -> None:
    advance(opened, plan(2, changes([TOTALS], 3)))
    assert "items_total_ai" in names(opened)
    if how == "amended":
        made = plan(3, changes([TOTALS.replace("* 2", "* 3")], 3, revision=2))
        advance(opened, made)
        assert opened.rows("SELECT count(*), sum(total = amount * 3) FROM items") == [(ROWS, ROWS)]
        flip(opened, made)
        assert database.inventory(opened).schema_changes[-1].revision == 2
        return
    if how == "amended without steps":
        flip(opened, plan(3, changes(["ALTER TABLE items ADD COLUMN total INTEGER"], 3, revision=2)))
        assert names(opened) == {"items"}
        assert opened.rows("SELECT count(total) FROM items") == [(0,)]
    elif how == "given up":
        flip(opened, plan(3, [], floor=2))
        assert opened.rows("SELECT name FROM pragma_table_info('items')") == [("id",), ("amount",)]
    else:
        made = plan(3, changes([ADDED], 3, revision=2))
        advance(opened, made)
        assert opened.rows("SELECT name FROM pragma_table_info('items')") == [("id",), ("amount",)]
        assert opened.rows("SELECT min(amount), max(amount) FROM items") == [(1_000_001, 1_000_000 + ROWS)]
        return
    assert steps(opened) == []
    assert schema.differences(opened) == ([], [], [])


def test_a_step_that_the_serving_release_cannot_live_with_is_undone(opened: LibsqlDatabase, tmp_path: Path) -> None:
    body = '{"sql": "SELECT id, amount FROM items"}'
    serving = local("f", guest("sql"), tmp_path, sql="read", probe={"path": "/", "method": "POST", "body": body})
    broken = local("g", guest("sql"), tmp_path, sql="read", probe={"path": "/?status=503"})
    advance(opened, plan(2, changes([TOTALS], 3)), [serving])
    with pytest.raises(SyncFailed) as failed:
        advance(opened, plan(3, changes([ANEW], 3, revision=2)), [serving, broken])
    assert failed.value.code == "probe_failed"
    said = "After schema change 3 (change 3, revision 2), step 1 of 4 (before), under the release that serves"
    assert said in failed.value.message
    # The first revision is undone, and of the second there is nothing yet.
    assert names(opened) == {"items"}


@pytest.mark.parametrize(
    ("sql", "code", "says"),
    [
        (ADDED.replace("amount + 1000000", "NULL"), "schema_change_failed", "NOT NULL constraint failed"),
        (ADDED.replace("batch items by id", "batch nothing by id"), "schema_change_failed", "no such table"),
        (ADDED.replace("by id", "by amount"), "schema_change_failed", "must go by its INTEGER PRIMARY KEY id"),
        (ADDED.replace("UPDATE items", "UPDATE _skerry_meta"), "schema_closed", "own"),
        (ADDED.replace("amount + 1000000", "length(readfile('/etc/passwd'))"), "schema_closed", "readfile"),
        ("-- skerry: later\nSELECT 1", "schema_change_failed", "none of the steps"),
    ],
)
def test_a_step_that_fails_says_which_it_is(opened: LibsqlDatabase, sql: str, code: str, says: str) -> None:
    for run in (lambda: advance(opened, plan(2, changes([sql], 3))), lambda: flip(opened, plan(2, changes([sql], 3)))):
        with pytest.raises(SyncFailed) as failed:
            run()
        assert failed.value.code == code
        assert says in failed.value.message
        assert "schema change 3 (change 3)" in failed.value.message
        assert not opened.in_transaction
    assert opened.rows("SELECT max(amount) FROM items") == [(ROWS,)]


def test_a_node_that_knows_no_steps_changes_nothing(opened: LibsqlDatabase) -> None:
    """It takes the lines for comments; the parameters of the batches are what it refuses."""
    opened.rows("BEGIN")
    for sql in (TOTALS, ANEW, ADDED):
        with pytest.raises(schema_change.SchemaChangeRefused, match="has a parameter"):
            run_change.run_statements(opened, AccessRules.read(opened), sql)
    assert names(opened) == {"items"}


@pytest.mark.parametrize("keys", ["rowid", "text"])
def test_keys_of_all_kinds(opened: LibsqlDatabase, keys: str) -> None:
    table = "CREATE TABLE t (name TEXT PRIMARY KEY, n INTEGER)" if keys == "text" else "CREATE TABLE t (n INTEGER, x)"
    column = "name, n" if keys == "text" else "x, n"
    values = "(-9223372036854775807, 'a', 0), (-5, 'b', 0), (0, 'c', 0), (4611686018427387905, 'd', 0), "
    values += "(9223372036854775807, 'e', 0)"
    flip(opened, plan(2, changes([table, f"INSERT INTO t (rowid, {column}) VALUES {values}"], 3)))
    sql = "-- skerry: batch t by rowid\nUPDATE t SET n = n + 1 WHERE rowid > :after AND rowid <= :upto"
    advance(opened, plan(3, changes([sql], 5)))
    assert opened.rows("SELECT n FROM t") == [(1,)] * 5


def test_another_program_that_holds_the_database_is_told_as_that(opened: LibsqlDatabase, path: Path) -> None:
    opened.rows("PRAGMA busy_timeout = 0")
    order = frames.Advance(plan(2, changes([TOTALS], 3)), 1)
    command = [sys.executable, "-c", HOLDER, str(path), "BEGIN IMMEDIATE"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SyncFailed, match="database is locked") as failed:
            apply_changes.advance(opened, order, lambda _: None)
        assert failed.value.code == "database_held"
        other.stdin.close()
        other.wait(scaled(60))
    apply_changes.advance(opened, order, lambda _: None)
