"""The process that runs the steps of a schema change is killed anywhere: each row is changed exactly once."""

import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from edge_runtime import wal
from edge_runtime.children import release_transaction
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sql import database
from tests.integration.edge_runtime.children.test_applier_process import CHILD, ROOT
from tests.integration.edge_runtime.children.test_apply_changes import ADDED, FILL, ITEMS, ROWS
from tests.support.deadlines import scaled
from tests.support.plans import changes, plan

pytestmark = pytest.mark.never_retry


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for folder in ("db", "faults"):
        (tmp_path / folder).mkdir()
    return tmp_path


class Steps:
    """An applier's process that runs steps; `run` returns whether it came to their end."""

    def __init__(self, state: Path, faults: Path | None = None) -> None:
        mine, its = socket.socketpair()
        mine.settimeout(scaled(60))
        self.sock = mine
        environment = {"SQLITE_TMPDIR": str(state)} | ({} if faults is None else {"SKERRY_FAULTS": str(faults)})
        command = [sys.executable, "-c", CHILD, str(its.fileno()), str(state)]
        self.process = subprocess.Popen(command, pass_fds=[its.fileno()], cwd=ROOT, env=environment)
        its.close()

    def run(self, order: frames.Advance, kill_after: float | None) -> bool:
        reader = FrameReader(self.sock)
        frames.send_json(self.sock, 1, frames.ADVANCE, order)
        first = True
        while (frame := reader.next()) is not None and frame.kind == frames.APPLYING:
            if first and kill_after is not None:
                threading.Timer(kill_after, self.process.kill).start()
            first = False
        self.sock.close()
        self.process.wait(scaled(60))
        assert frame is None or frame.kind == frames.DONE, frame and msgspec.json.decode(frame.body)
        return frame is not None


def killed_at(state: Path, point: str, order: frames.Advance) -> bool:
    """Have the process killed at the next batch's `point`; return whether it was, before the end of its steps."""
    (state / "faults" / f"edge.batch.{point}").write_text("kill")
    return not Steps(state, state / "faults").run(order, None)


def test_killed_around_the_commit_of_a_batch_no_row_is_changed_twice(state: Path) -> None:
    """With the batch's rows its progress is there, or neither is."""
    order = frames.Advance(plan(2, changes([ADDED], 3)), 1)
    done = []
    with database.connect(state / wal.FILE, "FULL", foreign_keys=False) as opened:
        release_transaction.prepare(opened, plan(1, changes([ITEMS, FILL])), [])
        release_transaction.commit(opened)
        for point in ("before", "after") * 2:
            assert killed_at(state, point, order)
            (changed,) = opened.rows("SELECT sum(amount > 1000000) FROM items")[0]
            assert opened.rows('SELECT "after" FROM _skerry_steps WHERE step = 1') == [(changed,)]
            done.append(changed)
        assert done == sorted(done)
        assert done[0] == 0 < done[1]
        assert Steps(state).run(order, None)
        assert opened.rows("SELECT count(*), sum(amount = id + 1000000) FROM items") == [(ROWS, ROWS)]


def test_killed_anywhere_each_row_is_changed_once_beside_writers(state: Path) -> None:
    """The batch adds to each row, so that a row that is done twice, or never, shows; rows behind the bound, which come
    later, aren't its own."""
    path = state / wal.FILE
    rows = 40_000
    with database.connect(path, "FULL", foreign_keys=False) as made:
        fill = FILL.replace(str(ROWS), str(rows))
        release_transaction.prepare(made, plan(1, changes([ITEMS, fill, "CREATE TABLE log (n INTEGER)"])), [])
        release_transaction.commit(made)
    chance = random.Random(4)
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with database.connect(path, "NORMAL") as other:
            # As a node's checkpointer does: batches wait while the log is long, and fail where it stays so.
            other.rows("PRAGMA wal_autocheckpoint = 1000")
            while not stop.is_set():
                other.lock.acquire()
                other.rows("BEGIN IMMEDIATE")
                other.rows("INSERT INTO items (amount) VALUES (0)")
                other.rows("INSERT INTO log VALUES (?)", (len(written),))
                other.rows("COMMIT")
                other.lock.release()
                written.append(1)
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    order = frames.Advance(plan(2, changes([ADDED], 4)), 1)
    try:
        assert killed_at(state, "before", order)
        assert killed_at(state, "after", order)
        # At any moment, too, as far as this machine gets to it in time.
        if not any(Steps(state).run(order, chance.uniform(0.0, 0.03)) for _ in range(3)):
            assert Steps(state).run(order, None)
    finally:
        stop.set()
        writer.join()
    with database.connect(path) as made:
        assert made.rows("PRAGMA integrity_check") == [("ok",)]
        assert made.rows(f"SELECT count(*), sum(amount = id + 1000000) FROM items WHERE id <= {rows}") == [(rows, rows)]
        (bound,) = made.rows("SELECT bound FROM _skerry_steps WHERE step = 1")[0]
        late = made.rows(
            "SELECT count(*), sum(amount = CASE WHEN id <= ? THEN 1000000 ELSE 0 END) FROM items WHERE id > ?",
            (bound, rows),
        )[0]
        assert late[0] == late[1] == len(written) == made.rows("SELECT count(*) FROM log")[0][0]
