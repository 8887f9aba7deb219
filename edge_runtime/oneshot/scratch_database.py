"""The database file of `skerry-edge call`, used behind a fence that lets no file be made, removed or renamed.

SQLite makes and removes files beside its own. So they are made before, an open transaction ends by cutting its journal
to nothing, and `tidy` removes what is left once the fenced process has ended.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import libsql_experimental as libsql

from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.landlock import Access
from edge_runtime.sandbox.profiles import RANDOM, WRITE
from edge_runtime.sql.database import BUSY_MS, HEAP_BYTES, Database, WriterLock, open_file

MEMORY: Final = Path(":memory:")
_RECOVERY: Final = 30.0
"""Seconds to undo what a process left that was killed."""
_LOCKED: Final = 0x4000_0000, 512
"""Where and how many are the bytes of the file that every user of it locks (sqlite3's os.h)."""


def prepare(path: Path) -> list[Path]:
    """The files that an open database needs, made where they aren't there. Error: OSError."""
    if path == MEMORY:
        return []
    path = path.resolve()
    with path.open("a+b") as file:
        file.seek(18)
        wal = b"\2" in file.read(2)
    if wal:
        found = [path, _beside(path, "-wal"), _beside(path, "-shm")]
    else:
        journal = _beside(path, "-journal")
        if journal.exists() and journal.stat().st_size:
            _recover(path, journal)
        found = [path, journal]
    mode = path.stat().st_mode & 0o777
    for each in found:
        os.close(os.open(each, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode))
    return found


def tidy(path: Path) -> None:
    """Remove what `prepare` made and nothing was left in, unless somebody else uses the file."""
    with contextlib.suppress(OSError), path.resolve().open("r+b") as file:
        # Whoever has a transaction, or a file in WAL mode open, holds a lock there.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED[1], _LOCKED[0])
        for kept, others in (("-journal", ()), ("-wal", ("-shm",))):
            left = _beside(path.resolve(), kept)
            if left.exists() and not left.stat().st_size:
                for each in (kept, *others):
                    _beside(path.resolve(), each).unlink(missing_ok=True)


@contextlib.contextmanager
def open_sealed(path: Path, sql: str) -> Iterator[Database]:
    """The file as it is, with nothing of the runtime's put in, in a transaction that ends undone unless committed. The
    process is sealed once it is open. Error: OSError."""
    lock = WriterLock(os.memfd_create("writer.lock"))
    try:
        connection = libsql.connect(":memory:", isolation_level=None) if path == MEMORY else open_file(path.resolve())
        with Database(connection, lock) as database:
            fence.seal("worker", lock.fileno())
            database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
            database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
            database.rows("PRAGMA temp_store = MEMORY")
            database.rows("PRAGMA foreign_keys = ON")
            if database.rows("PRAGMA journal_mode") == [("delete",)]:
                database.rows("PRAGMA journal_mode = TRUNCATE")
            database.set_query_only(sql == "read")
            database.rows("BEGIN IMMEDIATE" if sql == "write" else "BEGIN")
            yield database
            database.rollback()
            database.set_query_only(False)
            # In WAL mode what was written would else stay beside the file: nothing can be removed here.
            database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    except ValueError as error:
        raise OSError(f"{path}: {error}") from None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _recover(path: Path, journal: Path) -> None:
    """Have SQLite undo a transaction whose process was killed: it then removes the journal. Error: OSError."""

    def work() -> bytes:
        fence.enclose([(path, WRITE), (journal, WRITE), (path.parent, Access.REMOVE_FILE), RANDOM])
        connection = open_file(path)
        fence.seal("worker")
        for statement in (f"PRAGMA busy_timeout = {BUSY_MS}", "BEGIN IMMEDIATE", "ROLLBACK"):
            connection.execute(statement).fetchall()
        return b"done"

    try:
        answer, _ = run_forked(work, _RECOVERY)
    except TimeoutError:
        answer = b""
    if not answer:
        raise OSError(f"{journal} has a transaction that was broken off, and it can't be undone")
