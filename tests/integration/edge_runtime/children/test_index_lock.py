"""The zygote's lock on the log's index: with it no connection takes itself for the first, and makes the index anew."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime import wal
from edge_runtime.children import zygote
from edge_runtime.children.index_lock import IndexLock
from edge_runtime.children.zygote import Zygote
from edge_runtime.ipc import births, frames

WRITER = """
import os, sys
from pathlib import Path
from edge_runtime.sql import database

opened = database.connect_until_exit(Path(sys.argv[1]))
opened.rows("CREATE TABLE IF NOT EXISTS notes (x)")
opened.rows("INSERT INTO notes VALUES (1)")
print(opened.rows("SELECT count(*) FROM notes")[0][0], flush=True)
os._exit(0)
"""
HOLDER = """
import fcntl, os, sys

index = os.open(sys.argv[1], os.O_RDWR)
os.ftruncate(index, 3)
fcntl.lockf(index, fcntl.LOCK_SH, 1, 128)
print("held", flush=True)
sys.stdin.read()
"""
"""A process that comes as far as to make the index anew, and not to recover the log."""
UNUSED = 132
"""A byte of the index that nobody writes: behind the one that is locked."""


def rows(database: Path) -> int:
    """Have a process open the database, write a row and end without closing it; return how many there are."""
    ran = subprocess.run([sys.executable, "-c", WRITER, str(database)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


def test_it_is_held_before_anybody_has_opened_the_database(tmp_path: Path) -> None:
    database = tmp_path / "skerry.db"
    lock = IndexLock(database)
    assert not lock.take()
    lock.make()
    assert lock.take()
    assert lock.is_blank()
    # Another process, whose descriptors of the index are its own.
    assert rows(database) == 1
    assert not lock.is_blank()
    os.pwrite(lock.descriptor, b"x", UNUSED)
    assert rows(database) == 2
    assert os.pread(lock.descriptor, 1, UNUSED) == b"x"


def test_a_connection_is_the_first_one_where_nobody_holds_it(tmp_path: Path) -> None:
    """What the lock is for: else an index that all processes have left is made anew."""
    database = tmp_path / "skerry.db"
    assert rows(database) == 1
    with wal.index_of(database).open("r+b") as file:
        file.seek(UNUSED)
        file.write(b"x")
    assert rows(database) == 2
    assert wal.index_of(database).read_bytes()[UNUSED] == 0


def test_it_is_not_taken_where_a_log_is_to_be_recovered(tmp_path: Path) -> None:
    database = tmp_path / "skerry.db"
    assert rows(database) == 1
    assert wal.has_log(database)
    lock = IndexLock(database)
    lock.make()
    assert (lock.descriptor, lock.take()) == (-1, False)


def test_once_it_was_let_go_it_is_not_taken_again(tmp_path: Path) -> None:
    lock = IndexLock(tmp_path / "skerry.db")
    lock.make()
    lock.let_go()
    lock.make()
    assert not lock.take()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Zygote]:
    """A zygote that has no children yet."""
    (tmp_path / "db").mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        settings = frames.ChildSettings(str(tmp_path), "FULL")
        yield Zygote(theirs, births.Arguments(theirs.fileno(), 0, os.getpid(), settings), {})


def test_the_zygote_holds_it_before_it_forks_a_child(made: Zygote) -> None:
    assert made._unreadable() == ""
    assert made._lock.descriptor >= 0


def test_the_zygote_has_a_log_recovered_that_another_process_has_not_recovered_yet(
    tmp_path: Path, made: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovered: list[Path] = []
    monkeypatch.setattr(zygote, "_recovered", lambda path: recovered.append(path) or "")
    database = tmp_path / wal.FILE
    assert rows(database) == 1
    command = [sys.executable, "-c", HOLDER, str(wal.index_of(database))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        made._unreadable()
        holder.communicate()
    assert recovered == [database]
