"""A libsql file one of whose opens fails: the connection isn't there, or it can write."""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import wal
from edge_runtime.sql import database
from tests.support.failing_calls import SHORT, FailingCalls
from tests.support.forked_programs import may_be_forked

PROGRAM = may_be_forked(
    """
import sys
from pathlib import Path
from edge_runtime.sql import database
try:
    opened = database.connect(Path(sys.argv[1]))
except (database.DatabaseOpenError, OSError) as error:
    print(f"refused: {error}")
else:
    opened.rows("INSERT INTO written VALUES (1)")
    print("wrote")
"""
)

LEFT = may_be_forked(
    """
import os, sys
from pathlib import Path
from edge_runtime.sql import database
opened = database.connect_until_exit(Path(sys.argv[1]))
opened.rows("CREATE TABLE written (x)")
for _ in range(5):
    opened.rows("INSERT INTO written VALUES (randomblob(5000))")
os._exit(0)
"""
)
FIRST = may_be_forked(
    """
import os, sys
from pathlib import Path
from edge_runtime.sql import database
try:
    opened = database.connect_until_exit(Path(sys.argv[1]))
    print(opened.rows("SELECT count(*) FROM written")[0][0], flush=True)
except (database.DatabaseOpenError, OSError, ValueError) as error:
    print(f"refused: {error}", flush=True)
os._exit(0)
"""
)


def run(program: str, path: Path, failing: FailingCalls) -> subprocess.CompletedProcess[str]:
    """Run Python code on the database at `path`, in a process that follows the rules of `failing`."""
    return subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, **failing.environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.never_retry
@pytest.mark.parametrize("error", [errno.EIO, SHORT], ids=["an error", "half of the bytes"])
def test_a_read_that_fails_while_libsql_recovers_a_log_costs_no_row(tmp_path: Path, error: int) -> None:
    """As when all processes that had it open were killed: the first that comes reads the log."""
    left = tmp_path / "left"
    left.mkdir()
    failing = FailingCalls(tmp_path / "rules")
    assert run(LEFT, left / "skerry.db", failing).returncode == 0
    reads = 0
    while True:
        path = tmp_path / str(reads) / "skerry.db"
        shutil.copytree(left, path.parent)
        rule = failing.fail("read", "skerry.db-wal", error, first=reads)
        told = run(FIRST, path, failing).stdout
        failing.clear()
        if rule.concerned and error == errno.EIO:
            # SQLite calls some errors of the disk "malformed".
            assert told.startswith("refused: "), (reads, told)
        else:
            assert told == "5\n", reads
        assert run(FIRST, path, failing).stdout == "5\n", reads
        if not rule.concerned:
            break
        reads += 1
    assert reads > 20


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_connection_whose_open_failed_is_not_left_able_to_read_alone(tmp_path: Path, suffix: str) -> None:
    """SQLite opens a file for reading where it can't be opened for writing, whatever the reason was."""
    path = tmp_path / "skerry.db"
    failing = FailingCalls(tmp_path / "rules")
    with database.connect(path) as kept:
        kept.rows("CREATE TABLE written (x)")
        at, refused = 0, 0
        while True:
            failing.clear()
            rule = failing.fail("open", f"/skerry.db{suffix}", errno.EMFILE, first=at)
            ran = run(PROGRAM, path, failing)
            assert ran.returncode == 0, f"open {at}: {ran.stderr}"
            refused += ran.stdout.startswith("refused")
            if not rule.concerned:
                break
            at += 1
        assert ran.stdout == "wrote\n"
        assert 1 <= refused <= at


def test_a_writer_does_not_keep_others_from_opening_the_file(tmp_path: Path) -> None:
    path = tmp_path / "skerry.db"
    with database.connect(path) as kept:
        kept.rows("BEGIN IMMEDIATE")
        with database.connect(path) as other:
            assert other.rows("PRAGMA busy_timeout") == [(database.BUSY_MS,)]
        kept.rows("ROLLBACK")


CALLS = may_be_forked(
    """
import contextlib, sys
from pathlib import Path
from edge_runtime.sql import database
from edge_runtime.sql.session import Session
from edge_runtime.sql.call_sql import CallSql, CommitFailed

try:
    session = Session(database.connect(Path(sys.argv[1])))
except (database.DatabaseOpenError, OSError) as error:
    sys.exit(f"refused: {error}")
for grant in ("read", "write", "read", "write"):
    call = CallSql(session, grant, 0)
    print(call.execute(b'{"sql": "SELECT id, word FROM words ORDER BY word"}').decode())
    with contextlib.suppress(CommitFailed):
        call.commit()
"""
)


def test_a_read_that_failed_once_spoils_no_later_call(tmp_path: Path) -> None:
    """By libsql's default VFS the page would be kept as zeros, as long as nobody writes."""
    path = tmp_path / "skerry.db"
    failing = FailingCalls(tmp_path / "rules")
    with database.connect(path) as kept:
        kept.rows("CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT)")
        kept.rows("CREATE INDEX words_by_word ON words (word)")
        kept.rows("INSERT INTO words (word) VALUES ('one')")
        kept.rows("INSERT INTO _skerry_release VALUES (1, 'r', 1, 0, 1, '')")
        kept.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        at, failed = 0, 0
        while True:
            failing.clear()
            rule = failing.fail("read", "/skerry.db", errno.EIO, first=at)
            ran = run(CALLS, path, failing)
            told = ran.stdout.splitlines()
            if not ran.stderr.startswith("refused"):
                assert ran.returncode == 0, f"read {at}: {ran.stderr}"
                assert len(told) == 4
                failed += "error" in told[0]
                assert [line for line in told[1:] if '"rows":[[1,"one"]]' not in line] == [], f"read {at}"
            if not rule.concerned:
                break
            at += 1
        assert '"rows":[[1,"one"]]' in told[0]
        assert failed > 0


UPDATE = may_be_forked(
    """
import sys
from pathlib import Path
from edge_runtime.sql import database

try:
    opened = database.connect_until_exit(Path(sys.argv[1]))
    opened.rows("UPDATE notes SET changed = 1")
except (database.DatabaseOpenError, ValueError) as error:
    sys.exit(f"refused: {error}")
"""
)


def test_a_read_that_failed_is_never_written_back_as_zeros(tmp_path: Path) -> None:
    """A row is written anew as a whole, with what was read of its long value."""
    text = "x" * 20_000
    failing = FailingCalls(tmp_path / "rules")
    at, refused = 0, 0
    while True:
        path = tmp_path / str(at) / "skerry.db"
        path.parent.mkdir()
        with database.connect(path) as kept:
            kept.rows("CREATE TABLE notes (changed INTEGER, data TEXT)")
            kept.rows("INSERT INTO notes VALUES (0, ?)", (text,))
            kept.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            rule = failing.fail("read", "/skerry.db", errno.EIO, first=at)
            ran = run(UPDATE, path, failing)
            concerned = rule.concerned
            failing.clear()
        with contextlib.closing(sqlite3.connect(path)) as looked:
            ((changed, data),) = looked.execute("SELECT changed, data FROM notes")
        assert data == text, f"read {at}"
        assert changed == (ran.returncode == 0), ran.stderr
        if not concerned:
            break
        assert ran.stderr.startswith("refused"), f"read {at}"
        refused += 1
        at += 1
    assert changed == 1
    assert refused > 5


def test_why_a_file_cannot_be_opened_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "skerry.db").mkdir()
    with pytest.raises(database.DatabaseOpenError, match=r"skerry\.db can't be opened: unable to open database file$"):
        database.connect(tmp_path / "skerry.db")
    failing = FailingCalls(tmp_path / "rules")
    path = tmp_path / "other" / "skerry.db"
    path.parent.mkdir()
    with database.connect(path) as kept:
        kept.rows("CREATE TABLE notes (changed INTEGER)")
        kept.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        failing.fail("read", "/skerry.db", errno.EIO)
        assert run(UPDATE, path, failing).stderr == f"refused: {path} can't be opened: disk I/O error\n"


def test_a_path_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"a b?vfs=no#%41&;+\xff\xc3\xa9")
    folder.mkdir()
    with database.connect(folder / "skerry.db") as made:
        made.rows("CREATE TABLE here (x)")
        assert sorted(entry.name for entry in folder.iterdir()) == [
            "skerry.db", "skerry.db-shm", "skerry.db-wal", "writer.lock",
        ]  # fmt: skip
    with database.connect(folder / "skerry.db") as again:
        assert again.rows("SELECT count(*) FROM here") == [(0,)]
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


UNTIL_EXIT = may_be_forked(
    """
import os, sys
from pathlib import Path
from edge_runtime.sql import database

def serve():
    opened = database.connect_until_exit(Path(sys.argv[1]))
    opened.rows("CREATE TABLE written (x)")

serve()
os._exit(0)
"""
)


def test_a_process_that_ends_leaves_the_log_to_others(tmp_path: Path) -> None:
    """The last connection that is closed would move it."""
    path = tmp_path / "skerry.db"
    subprocess.run([sys.executable, "-c", UNTIL_EXIT, str(path)], check=True)
    assert wal.has_log(path)


def test_a_database_that_takes_the_place_of_another_one_has_another_stamp(tmp_path: Path) -> None:
    """Also where neither has a log: the indexes of two empty logs are the same bytes."""
    stamps = set[bytes]()
    for name in ("first", "second"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as made:
            made.executescript("PRAGMA journal_mode = WAL; CREATE TABLE written (x)")
        (tmp_path / name).replace(tmp_path / "database")
        with contextlib.closing(sqlite3.connect(tmp_path / "database")) as reading:
            reading.execute("SELECT count(*) FROM written").fetchall()
            stamps.add(wal.stamp(tmp_path / "database"))
    assert len(stamps) == 2
