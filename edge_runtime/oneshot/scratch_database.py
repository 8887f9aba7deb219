"""The database file of `skerry-edge call`, used behind a fence under which no file can be created, removed or renamed.

SQLite creates and removes files beside the database file. So `prepare` creates them before the fence, a transaction
ends by truncating its journal instead of removing it, and `tidy` removes the empty ones once the fenced process has
exited.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_runtime.errors import CodedError
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sandbox.landlock import Access
from edge_runtime.sql.database import BUSY_MS, HEAP_BYTES, LOCKED, LibsqlDatabase
from edge_runtime.sql.libsql_connection import open_file, open_in_memory
from edge_runtime.sql.writer_lock import WriterLock

MEMORY: Final = Path(":memory:")
_RECOVERY: Final = 30.0
"""Seconds for undoing the transaction of a process that was killed."""
_LOCKED: Final = 0x4000_0000, 512
"""Offset and length of the bytes of the database file that every user of it locks (os.h of SQLite)."""


class DatabaseUnusable(CodedError):
    """The file can't be used as a database, at least not now; the message names it."""


def prepare(path: Path) -> list[Path]:
    """Create the files that an open database needs beside it, if they don't exist, and return their paths and the
    database's.

    Raises: DatabaseUnusable, when the database doesn't exist, one of the files can't be created, or a killed process's
    transaction can't be undone.
    """
    if path == MEMORY:
        return []
    try:
        return _prepare(path.resolve())
    except OSError as error:
        raise DatabaseUnusable("database_unfit", f"The database {path} can't be used: {error.strerror}.") from None


def _prepare(path: Path) -> list[Path]:
    with path.open("r+b") as file:
        file.seek(18)
        wal = b"\2" in file.read(2)
    if wal:
        paths = [path, _beside(path, "-wal"), _beside(path, "-shm")]
    else:
        journal = _beside(path, "-journal")
        if journal.exists() and journal.stat().st_size:
            _recover(path, journal)
        paths = [path, journal]
    mode = path.stat().st_mode & 0o777
    for each in paths:
        os.close(os.open(each, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode))
    return paths


def tidy(path: Path) -> None:
    """Remove the files that `prepare` created and that are empty, unless another process uses the database."""
    with contextlib.suppress(OSError), path.resolve().open("r+b") as file:
        # A process with a transaction, or with a file in WAL mode open, holds a lock on these bytes.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED[1], _LOCKED[0])
        for suffix, others in (("-journal", ()), ("-wal", ("-shm",))):
            log = _beside(path.resolve(), suffix)
            if log.exists() and not log.stat().st_size:
                for each in (suffix, *others):
                    _beside(path.resolve(), each).unlink(missing_ok=True)


@contextlib.contextmanager
def open_sealed(path: Path, sql: str) -> Iterator[LibsqlDatabase]:
    """Open the file without the runtime's own tables, and seal the process. The block runs in a transaction, which is
    rolled back at its end unless it was committed. `sql` is the manifest's grant.

    Raises: DatabaseUnusable, when SQLite refuses.
    """
    lock = WriterLock(os.memfd_create("writer.lock"))
    try:
        connection = open_in_memory() if path == MEMORY else open_file(path.resolve())
    except ValueError as error:
        raise _unusable(path, error) from None
    with LibsqlDatabase(connection, lock) as database:
        fence.seal("worker", lock.fileno())
        try:
            database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
            database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
            database.rows("PRAGMA temp_store = MEMORY")
            database.rows("PRAGMA foreign_keys = ON")
            if database.rows("PRAGMA journal_mode") == [("delete",)]:
                database.rows("PRAGMA journal_mode = TRUNCATE")
            database.set_query_only(sql == "read")
            database.rows("BEGIN IMMEDIATE" if sql == "write" else "BEGIN")
        except ValueError as error:
            raise _unusable(path, error) from None
        yield database
        database.rollback()
        database.set_query_only(False)
        # In WAL mode, writes would stay in the log, since the fence keeps SQLite from removing files. If this fails,
        # they stay there, which is just as good.
        with contextlib.suppress(ValueError):
            database.rows("PRAGMA wal_checkpoint(TRUNCATE)")


def _unusable(path: Path, error: ValueError) -> DatabaseUnusable:
    if str(error).startswith(LOCKED):
        text = f"Another process has held the database {path} for {BUSY_MS / 1000:g} s; let it go, and call again."
        return DatabaseUnusable("database_held", text)
    return DatabaseUnusable("database_unfit", f"The database {path} can't be used: {error}.")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _recover(path: Path, journal: Path) -> None:
    """Have SQLite undo a transaction whose process was killed; it then removes the journal.

    Raises: DatabaseUnusable, when it can't be undone.
    """

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
        text = f"{journal} has a transaction that was broken off, and it can't be undone."
        raise DatabaseUnusable("database_unfit", text)
