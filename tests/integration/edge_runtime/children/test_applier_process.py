"""The applier as a process of its own: what it is told, what it answers, and what it takes.

What it leaves behind where it is killed is in `release/test_manager.py`.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from control.protocol import wire
from edge_runtime.children import release_transaction
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sql import database
from tests.support.deadlines import scaled
from tests.support.forked_programs import may_be_forked
from tests.support.plans import changes, plan

pytestmark = pytest.mark.never_retry

ROOT = Path(__file__).parents[4]
FIRST = ["CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", "INSERT INTO items (name) VALUES ('a')"]

CHILD = may_be_forked("""
import os, socket, sys
from edge_runtime.children import applier, apply_changes
from edge_runtime.ipc import frames
from edge_runtime.sandbox import fence
apply_changes.HEAP_BYTES = int(os.environ.get("HEAP", apply_changes.HEAP_BYTES))
fence.FILE_BYTES = int(os.environ.get("FILE", fence.FILE_BYTES))
applier.serve(socket.socket(fileno=int(sys.argv[1])), None, 0, frames.ChildSettings(sys.argv[2], "NORMAL"))
""")


class Applier:
    """An applier's process, told what to do as the front does."""

    def __init__(self, state: Path, faults: Path | None = None, **limits: int) -> None:
        """`limits`: bytes, HEAP of memory, FILE of a file."""
        (state / "db").mkdir(exist_ok=True)
        mine, its = socket.socketpair()
        mine.settimeout(scaled(60))
        self.sock = mine
        self.reader = FrameReader(mine)
        self.doing: list[str] = []
        """What it said that it was about to do."""
        environment = {name: str(size) for name, size in limits.items()} | {"SQLITE_TMPDIR": str(state)}
        if faults:
            environment["SKERRY_FAULTS"] = str(faults)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(its.fileno()), str(state)],
            pass_fds=[its.fileno()],
            cwd=ROOT,
            env=environment,
        )
        its.close()

    def ask(self, kind, value=None):
        if value is None:
            frames.send(self.sock, 1, kind)
        else:
            frames.send_json(self.sock, 1, kind, value)
        while (frame := self.reader.next()) is not None and frame.kind == frames.APPLYING:
            self.doing.append(frame.body.decode())
        return frame

    def peak(self) -> int:
        """The most memory that it has had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def end(self) -> int:
        self.sock.close()
        return self.process.wait(scaled(60))


@pytest.fixture
def state(tmp_path):
    (tmp_path / "db").mkdir()
    with database.connect(tmp_path / "db" / "skerry.db", foreign_keys=False) as made:
        release_transaction.prepare(made, plan(1, changes(FIRST)), [])
        release_transaction.commit(made)
    return tmp_path


def generation(state):
    with database.connect(state / "db" / "skerry.db") as made:
        # Not held by a dead process.
        made.lock.acquire()
        assert made.rows("PRAGMA integrity_check") == [("ok",)]
        release = database.read_release(made)
        tables = made.rows("SELECT count(*) FROM sqlite_schema WHERE name = 'b'")[0][0]
        assert (release.generation, release.schema_version, tables) in ((1, 2, 0), (2, 3, 1))
        return release.generation


NEXT = frames.Apply(
    plan(2, changes(["CREATE TABLE b (x); INSERT INTO b SELECT value FROM generate_series(1, 9)"], 3)), []
)


def test_the_front_says_whether_it_is_committed(state):
    child = Applier(state)
    prepared = child.ask(frames.APPLY, NEXT)
    assert prepared.kind == frames.PREPARED
    first, second, *rest = child.doing
    assert first == "schema change 3 (change 3), statement: CREATE TABLE b (x);"
    assert second.startswith("schema change 3 (change 3), statement: INSERT INTO b")
    assert rest == ["the check of foreign keys"]
    inventory = msgspec.json.decode(prepared.body, type=wire.Inventory)
    assert inventory.schema_version == 3
    assert child.ask(frames.ABORT).kind == frames.ABORTED
    assert generation(state) == 1
    failed = child.ask(frames.APPLY, frames.Apply(plan(2, changes(["SELECT 1 FROM nowhere"], 3)), []))
    assert failed.kind == frames.FAILED
    assert msgspec.json.decode(failed.body, type=frames.ChildFailure).code == "schema_change_failed"
    assert msgspec.json.decode(child.ask(frames.COMMIT).body, type=frames.ChildFailure).code == "apply_failed"
    assert child.ask(frames.APPLY, NEXT).kind == frames.PREPARED
    assert child.ask(frames.COMMIT).kind == frames.COMMITTED
    assert child.end() == 0
    assert generation(state) == 2


@pytest.mark.parametrize("released", [True, False])
def test_one_that_waits_holds_no_lock_and_no_old_rows(tmp_path, request, released):
    """Others write, and empty the log, after it has read."""
    if released:
        request.getfixturevalue("state")
    child = Applier(tmp_path)
    assert child.ask(frames.COUNT).kind == frames.COUNTED
    with database.connect(tmp_path / "db" / "skerry.db") as other:
        assert other.lock.acquire()
        other.rows("CREATE TABLE others (n INTEGER)")
        other.lock.release()
        assert other.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
    order = NEXT if released else frames.Apply(plan(2, changes(["CREATE TABLE b (x)"])), [])
    assert child.ask(frames.APPLY, order).kind == frames.PREPARED
    assert child.ask(frames.COMMIT).kind == frames.COMMITTED
    assert child.end() == 0


def test_without_the_fronts_word_nothing_is_committed(state):
    child = Applier(state)
    assert child.ask(frames.APPLY, NEXT).kind == frames.PREPARED
    assert child.end() == 0
    assert generation(state) == 1


def test_a_file_that_is_none_is_said_so(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "skerry.db").write_bytes(b"no database" * 1000)
    child = Applier(tmp_path)
    failed = child.reader.next()
    assert msgspec.json.decode(failed.body, type=frames.ChildFailure).code == "database_unfit"
    assert child.end() == 0


MANY = "INSERT INTO items (name) SELECT hex(randomblob(64)) FROM generate_series(1, 80000)"
"""10 MB, and an index of them as much again."""


def lacking(state, sql, **limits):
    """The error of a change after which the old release is there, and the next change is applied."""
    child = Applier(state, **limits)
    failed = child.ask(frames.APPLY, frames.Apply(plan(2, changes([sql], 3)), []))
    assert failed.kind == frames.FAILED
    assert child.ask(frames.APPLY, NEXT).kind == frames.PREPARED
    assert child.end() == 0
    assert generation(state) == 1
    return msgspec.json.decode(failed.body, type=frames.ChildFailure)


def test_what_does_not_fit_in_memory_goes_to_temporary_files(state):
    child = Applier(state, HEAP=6 << 20)
    sqls = [f"{MANY}; CREATE UNIQUE INDEX names ON items (name); UPDATE items SET name = lower(name)"]
    assert child.ask(frames.APPLY, frames.Apply(plan(2, changes(sqls, 3)), [])).kind == frames.PREPARED
    assert child.ask(frames.COMMIT).kind == frames.COMMITTED
    assert child.end() == 0
    with database.connect(state / "db" / "skerry.db") as made:
        assert made.rows("SELECT count(*), sum(name = lower(name)) FROM items") == [(80_001, 80_001)]


def test_a_change_that_needs_too_much_memory_says_how_much_it_had(state):
    failure = lacking(state, "INSERT INTO items (name) VALUES (hex(zeroblob(4000000)))", HEAP=4 << 20)
    assert failure.code == "apply_out_of_memory"
    for said in ("schema change 3", "more than 4.0 MiB", "The table items has 0.0 MiB", "Statement: INSERT INTO items"):
        assert said in failure.message


def test_a_change_that_needs_too_large_a_file_says_how_large_it_was(state):
    failure = lacking(state, MANY, FILE=2 << 20)
    assert failure.code == "apply_disk_limit"
    for said in ("schema change 3", "more than 2.0 MiB", "The table items has", "Statement: INSERT"):
        assert said in failure.message
    assert re.search(r"had written [12]\.[0-9] MiB", failure.message), failure.message


@pytest.mark.usefixtures("programs_by_exec")
def test_of_orphans_without_number_the_first_is_told(state):
    family = "CREATE TABLE child (p INTEGER REFERENCES items (id)); INSERT INTO child SELECT value + 9 FROM {}"
    sql = family.format("generate_series(1, 300000)")
    child = Applier(state, HEAP=4 << 20)
    assert child.ask(frames.ABORT).kind == frames.ABORTED
    before = child.peak()
    failed = child.ask(frames.APPLY, frames.Apply(plan(2, changes([sql], 3)), []))
    failure = msgspec.json.decode(failed.body, type=frames.ChildFailure)
    assert child.peak() - before < 24 << 20, "it has them all in memory"
    assert failure.code == "foreign_key_violation"
    assert "300,000 rows have no parent; the first is row 1 of child, which refers to items" in failure.message
    assert child.end() == 0
    assert generation(state) == 1
