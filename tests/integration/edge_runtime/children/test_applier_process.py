"""The applier as a process of its own: what it is told, and killed at any step, it leaves one release or the other."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from control import wire
from edge_runtime.children import applier
from edge_runtime.ipc import frames
from edge_runtime.sql import database
from tests.support.plans import changes, plan

ROOT = Path(__file__).parents[4]
FIRST = ["CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", "INSERT INTO items (name) VALUES ('a')"]

CHILD = """
import socket, sys
from edge_runtime.children import applier
from edge_runtime.ipc import frames
applier.serve(socket.socket(fileno=int(sys.argv[1])), None, 0, frames.ChildSettings(sys.argv[2], "NORMAL"))
"""


class Applier:
    """An applier's process, told what to do as the front does."""

    def __init__(self, state: Path, faults: Path | None = None) -> None:
        (state / "db").mkdir(exist_ok=True)
        mine, its = socket.socketpair()
        mine.settimeout(60)
        self.sock = mine
        self.reader = frames.Reader(mine)
        environment = {"SKERRY_FAULTS": str(faults)} if faults else {}
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
        return self.reader.next()

    def end(self) -> int:
        self.sock.close()
        return self.process.wait(60)


@pytest.fixture
def state(tmp_path):
    (tmp_path / "db").mkdir()
    with database.connect(tmp_path / "db" / "skerry.db", foreign_keys=False) as made:
        applier.prepare(made, plan(1, changes(FIRST)), [])
        applier.commit(made)
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


@pytest.mark.parametrize(
    ("point", "then"),
    [("edge.apply.before", 1), ("edge.apply.after", 1), ("edge.commit.before", 1), ("edge.commit.after", 2)],
)
def test_killed_at_a_step_it_leaves_one_release_or_the_other(state, tmp_path, point, then):
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / point).write_text("kill")
    child = Applier(state, faults)
    if child.ask(frames.APPLY, NEXT) is not None:
        assert child.ask(frames.COMMIT) is None
    assert child.end() == -9
    assert generation(state) == then


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04])
def test_killed_at_any_moment_it_leaves_one_release_or_the_other(state, delay):
    child = Applier(state)
    assert child.ask(frames.ABORT).kind == frames.ABORTED
    frames.send_json(child.sock, 1, frames.APPLY, NEXT)
    frames.send(child.sock, 2, frames.COMMIT)
    killer = threading.Timer(delay, child.process.kill)
    killer.start()
    killer.join()
    child.end()
    assert generation(state) in (1, 2)
