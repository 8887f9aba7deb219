"""Writers of several processes take turns on one file: none starves, no row is lost, a dead one holds up nobody."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.deadlines import scaled
from tests.support.forked_programs import may_be_forked
from tests.support.guest_sql import ask, calls

pytestmark = pytest.mark.never_retry

ROOT = Path(__file__).parents[4]

WRITER = may_be_forked(
    """
import sys, time
from pathlib import Path
from tests.support.guest_sql import ask, calls
with calls(Path(sys.argv[1])) as made:
    print("ready", flush=True)
    sys.stdin.readline()
    end, count = time.monotonic() + float(sys.argv[3]), 0
    while time.monotonic() < end:
        call = made.new("write")
        before = ask(call, "SELECT count(*) FROM log WHERE writer = ?", int(sys.argv[2]))["rows"][0][0]
        assert before == count, (before, count)
        answer = ask(call, "INSERT INTO log (writer) VALUES (?)", int(sys.argv[2]))
        assert answer["changes"] == 1, answer
        if sys.argv[4] == "hang":
            print("holding", flush=True)
            time.sleep(60)
        call.commit()
        count += 1
    print(count)
"""
)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "skerry.db"
    with calls(made) as db:
        db.schema("CREATE TABLE log (id INTEGER PRIMARY KEY, writer INTEGER)", "CREATE INDEX w ON log (writer)")
    return made


def writer(path, number, seconds=1.0, how="write"):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(number), str(seconds), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_four_writers_take_turns(path):
    # So many seconds that one which gets no processor for a while has most of its turns nevertheless.
    writers = [writer(path, number, seconds=4.0) for number in range(4)]
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(process.communicate(timeout=scaled(60))[0]) for process in writers]
    assert all(process.returncode == 0 for process in writers)
    # SQLite's own wait gave one of four a ten-thousandth.
    assert min(counts) > max(counts) / 5, counts
    with calls(path) as db:
        rows = db.one("SELECT writer, count(*) FROM log GROUP BY writer ORDER BY writer")["rows"]
    assert rows == [[number, count] for number, count in enumerate(counts)]


def test_a_writer_that_is_killed_leaves_nothing_and_holds_up_nobody(path):
    hanging = writer(path, 1, how="hang")
    hanging.stdin.write("go\n")
    hanging.stdin.flush()
    assert hanging.stdout.readline() == "holding\n"
    with calls(path) as db:
        # Readers don't wait for it.
        assert db.one("SELECT count(*) FROM log", grant="read")["rows"] == [[0]]
        killer = threading.Timer(0.2, hanging.kill)
        killer.start()
        assert db.one("INSERT INTO log (writer) VALUES (2)")["last_id"] == 1
        assert hanging.wait(scaled(60)) == -9
        assert db.one("SELECT writer FROM log")["rows"] == [[2]]
    hanging.stdin.close()
    hanging.stdout.close()


class Watched:
    applying = False

    def __init__(self):
        self.seen = []

    def waiting(self):
        self.seen.append("waiting")

    def writing(self):
        self.seen.append("writing")

    def committing(self):
        self.seen.append("committing")

    def running(self):
        self.seen.append("running")


def test_a_watcher_is_told_of_the_wait(path):
    free, second, undone, reading = Watched(), Watched(), Watched(), Watched()
    with calls(path) as one, calls(path) as two:
        first = one.new(watch=free)
        ask(first, "INSERT INTO log (writer) VALUES (1)")

        def wait():
            call = two.new(watch=second)
            ask(call, "INSERT INTO log (writer) VALUES (2)")
            call.commit()

        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + scaled(60)
        while second.seen != ["waiting"] and time.monotonic() < deadline:
            time.sleep(0.002)
        assert second.seen == ["waiting"]
        first.commit()
        thread.join(scaled(60))
        call = one.new(watch=undone)
        ask(call, "DELETE FROM log")
        call.rollback()
        call = one.new("read", watch=reading)
        assert ask(call, "SELECT writer FROM log ORDER BY id")["rows"] == [[1], [2]]
        call.commit()
    assert free.seen == ["writing", "committing"]
    assert second.seen == ["waiting", "writing", "committing"]
    assert undone.seen == ["writing", "running"]
    assert reading.seen == []


def test_many_processes_make_the_file_at_once(tmp_path):
    """Workers that start together on a new node."""
    made = tmp_path / "new.db"
    script = (
        "import sys; from pathlib import Path; from edge_runtime.sql import database\n"
        "with database.connect(Path(sys.argv[1])) as db: print(database.inventory(db).database_id)"
    )
    command = [sys.executable, "-c", script, str(made)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    ids = {process.communicate(timeout=scaled(60))[0] for process in started}
    assert [process.returncode for process in started] == [0] * 6
    assert len(ids) == 1
    assert made.stat().st_mode & 0o077 == 0
    assert made.with_name("writer.lock").stat().st_mode & 0o077 == 0
