"""The libsql file of a node: connections, the writer lock, and the runtime's own tables.

libsql is opened after a fork, never before, and by one thread: its queries hold the GIL (so never in the front).
"""

import contextlib
import fcntl
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, Self

import libsql_experimental as libsql
import msgspec

from control import wire
from edge_runtime import wal
from edge_runtime.ipc.frames import LocalFunction, LocalRelease, Stored
from edge_runtime.sql.queries import load
from edge_runtime.sql.tokenizer import TokenKind, tokenize

FORMAT: Final = 1
"""Of the runtime's own tables."""
BUSY_MS: Final = 5_000
"""Patience with what doesn't know the writer lock, as a backup or a person's shell."""
HEAP_BYTES: Final = 128 * 1024 * 1024
"""SQLite's memory in one process; a statement that needs more fails by itself."""
WAL_BYTES: Final = 64 * 1024 * 1024
"""What the write-ahead log is cut to once it has been larger."""
SYNCHRONOUS: Final = ("FULL", "NORMAL")
FILE: Final = wal.FILE
LOCK_NAME: Final = "writer.lock"

_OPEN_FAILED: Final = {
    "7": "out of memory",
    "10": "disk I/O error",
    "14": "unable to open database file",
}
"""SQLite's words for its codes of an open that failed (https://sqlite.org/rescode.html)."""
_until_exit: "Final[list[Database]]" = []

_TABLES: Final = load("tables")
_HAS_META: Final = load("has_meta")
_INSERT_META: Final = load("insert_meta")
_READ_META: Final = load("read_meta")
_WRITE_NOTHING: Final = load("write_nothing")
_READ_RELEASE: Final = load("read_release")
_READ_CHANGES: Final = load("read_changes")
_READ_FUNCTIONS: Final = load("read_functions")


class DatabaseOpenError(Exception):
    """The libsql file can't be used as it is; the message says why and what to do."""


def is_panic(error: BaseException) -> bool:
    """libsql's Rust panicked (text that is not UTF-8): no Exception, and the connection goes on."""
    return type(error).__name__ == "PanicException"


class WriteProgress(Protocol):
    """Is told where a writing call is, so that whoever watches it doesn't take waiting for looping."""

    @property
    def applying(self) -> bool:
        """Whether a release is being applied: the writer lock is its applier's, or will be."""

    def sending(self) -> None:
        """The call sends what can't be sent twice."""

    def waiting(self) -> None:
        """Another holds the writer lock."""

    def writing(self) -> None:
        """The writer lock is this call's now."""

    def committing(self) -> None:
        """From here on, what was written may be kept, whatever happens to the process."""

    def running(self) -> None:
        """The writer lock was let go without a commit."""


class WriterLock:
    """Writers of one file take turns by it, over all processes: SQLite's own wait starves some of them.

    The kernel lets it go when the process ends. Each process opens its own: one inherited by a fork is shared.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = False

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def fileno(self) -> int:
        return self._descriptor

    def acquire(self, watch: WriteProgress | None = None, *, patient: bool = True) -> bool:
        """Wait for the lock; whether it was got. One that isn't `patient` doesn't wait while a release is applied."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if watch is not None:
                watch.waiting()
                # Looked at after the mark: whoever says that a release is being applied looks for such marks then.
                if not patient and watch.applying:
                    watch.running()
                    return False
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._held = True
        if watch is not None:
            watch.writing()
        return True

    def release(self) -> None:
        """Let it go, if this process holds it."""
        if self._held:
            self._held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        self._held = False
        os.close(self._descriptor)


class Database:
    """One connection to the file, in autocommit: transactions are opened and ended by statements."""

    def __init__(self, connection: Any, lock: WriterLock, path: Path | None = None) -> None:
        self.connection = connection
        self.lock = lock
        self.path = path
        """None where it is in memory alone."""
        self.query_only = False
        """As last set by `set_query_only`."""
        self.came_to_file_limit: Callable[[], bool] = lambda: False
        """Whether a write has failed, since this was last asked, because this process may not write larger files."""

    def rows(self, sql: str, params: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement; an empty list where it gives none. Error: ValueError, libsql's only one."""
        try:
            return self.connection.execute(sql, params).fetchall() or []
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ValueError("a TEXT is not valid UTF-8") from None

    @property
    def in_transaction(self) -> bool:
        return bool(self.connection.in_transaction)

    def set_query_only(self, value: bool) -> None:
        if value is not self.query_only:
            self.connection.execute("PRAGMA query_only = ON" if value else "PRAGMA query_only = OFF")
            self.query_only = value

    def rollback(self) -> None:
        """End the transaction, if one is open, and let the writer lock go."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        finally:
            self.lock.release()

    def drop_uncommitted(self) -> None:
        """Make sure, on disk too, that nothing of a COMMIT that failed, or whose process was killed in it, can come
        back; what was committed before is on disk then. The caller holds the writer lock, which goes on being held.

        Errors: ValueError, OSError; then a loss of power may still bring it back.
        """
        if self.path is None:
            return
        if self.connection.in_transaction:
            self.rows("ROLLBACK")
        self.rows("BEGIN IMMEDIATE")
        try:
            wal.cut(self.path)
        finally:
            self.rows("ROLLBACK")

    def close(self) -> None:
        self.connection.close()
        self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(path: Path) -> Any:
    """A connection to a file, in autocommit. Error: ValueError.

    By SQLite's own VFS: libsql's default one, which could encrypt, takes a read that fails for zeros (docs/adr/0025).
    """
    try:
        return libsql.connect(f"{path.absolute().as_uri()}?vfs=unix", isolation_level=None)
    except ValueError as error:
        # It ends with SQLite's code, and has no word for it.
        code = str(error).strip("`").rpartition(": ")[2]
        raise ValueError(_OPEN_FAILED.get(code, str(error))) from None


def connect(path: Path, synchronous: str = "FULL", *, foreign_keys: bool = True) -> Database:
    """Open the file, making it and the runtime's tables if they aren't there; `writer.lock` lies beside it.

    `synchronous` FULL: what was committed survives a loss of power. Errors: DatabaseOpenError, OSError.
    """
    if synchronous not in SYNCHRONOUS:
        raise DatabaseOpenError(f"synchronous is {synchronous}, and can be {' or '.join(SYNCHRONOUS)}")
    lock = WriterLock.open(path.with_name(LOCK_NAME))
    try:
        path.touch(mode=0o600)
        connection = open_file(path)
        database = Database(connection, lock, path)
        database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
        database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
        database.rows(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        # A sort or an index that is built needs no more than HEAP_BYTES then.
        database.rows("PRAGMA temp_store = FILE")
        # The checkpointer's work: a COMMIT takes what its own pages take.
        database.rows("PRAGMA wal_autocheckpoint = 0")
        database.rows(f"PRAGMA synchronous = {synchronous}")
        database.rows("PRAGMA foreign_keys = ON" if foreign_keys else "PRAGMA foreign_keys = OFF")
        if database.rows(_HAS_META) == [(0,)]:
            _make(database)
        elif database.rows("PRAGMA journal_mode") != [("wal",)]:
            _write_ahead(database)
        found = database.rows(_READ_META)[0][1]
        _check_writable(database)
    except ValueError as error:
        lock.close()
        raise DatabaseOpenError(f"{path} can't be opened: {error}") from None
    if found != FORMAT:
        database.close()
        raise DatabaseOpenError(f"{path} has format {found} of the runtime's tables, and this version knows {FORMAT}")
    return database


def connect_until_exit(path: Path, synchronous: str = "FULL", *, foreign_keys: bool = True) -> Database:
    """As `connect`, for a process that ends by os._exit, without closing it: the last connection that is closed moves
    the log, and libsql does that wrongly where a read fails (docs/adr/0025)."""
    database = connect(path, synchronous, foreign_keys=foreign_keys)
    _until_exit.append(database)
    return database


def in_memory() -> Database:
    """A new database that is gone with the process, with the runtime's tables and foreign_keys OFF."""
    database = Database(libsql.connect(":memory:", isolation_level=None), WriterLock(os.memfd_create("writer.lock")))
    database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    database.rows("PRAGMA foreign_keys = OFF")
    _make(database)
    return database


def _write_ahead(database: Database) -> None:
    """Have a write-ahead log for a file without: one that was restored from what `VACUUM INTO` made. Error: ValueError,
    also where another has the file open."""
    database.lock.acquire()
    try:
        if database.rows("PRAGMA journal_mode = WAL") != [("wal",)]:
            raise ValueError("it can't be given a write-ahead log")
    finally:
        database.lock.release()


def _check_writable(database: Database) -> None:
    """SQLite opens a file, its log or its index for reading alone where an open for writing fails, whatever the reason
    was: as when there is no descriptor left for a moment. Error: ValueError."""
    database.rows("PRAGMA busy_timeout = 0")
    try:
        # A BEGIN IMMEDIATE wouldn't find out.
        database.rows(_WRITE_NOTHING)
    except ValueError as error:
        # Another one writes; what can't be written is said before that.
        if not str(error).startswith("database is locked"):
            raise
    database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")


def _make(database: Database) -> None:
    """The runtime's tables, once: the writer lock keeps the other processes that start from doing the same."""
    database.lock.acquire()
    try:
        # Lasts in the file; can't be set inside a transaction.
        database.rows("PRAGMA journal_mode = WAL")
        database.rows("BEGIN IMMEDIATE")
        for statement in _statements(_TABLES):
            database.rows(statement)
        database.rows(_INSERT_META, (str(uuid.uuid4()), FORMAT, now()))
        database.rows("COMMIT")
    finally:
        database.rollback()


def _statements(script: str) -> Iterator[str]:
    start = 0
    for token in tokenize(script):
        if token.kind is TokenKind.SEMICOLON:
            yield script[start : token.end]
            start = token.end


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def inventory(database: Database) -> wire.Inventory:
    """What the node runs, as the file says; reads of one moment where the caller holds a transaction open."""
    with _snapshot(database):
        changes = [wire.AppliedChange(*row) for row in database.rows(_READ_CHANGES)]
        return wire.Inventory(
            schema_version=changes[-1].number if changes else 0,
            schema_changes=changes,
            functions=[
                wire.RunningFunction(name, version, sha256, manifest_digest)
                for name, version, sha256, _, manifest_digest in database.rows(_READ_FUNCTIONS)
            ],
            database_id=database.rows(_READ_META)[0][0],
        )


def read_release(database: Database) -> LocalRelease | None:
    """The release that the file is at, its functions without AOT files; None before the first."""
    with _snapshot(database):
        found = database.rows(_READ_RELEASE)
        if not found:
            return None
        release_id, number, generation = found[0]
        changes = database.rows(_READ_CHANGES)
        return LocalRelease(
            release_id=release_id,
            number=number,
            generation=generation,
            schema_version=changes[-1][0] if changes else 0,
            functions=[
                LocalFunction(name, version, sha256, msgspec.json.decode(manifest, type=wire.Manifest), manifest_digest)
                for name, version, sha256, manifest, manifest_digest in database.rows(_READ_FUNCTIONS)
            ],
        )


def stored(database: Database) -> Stored:
    """Release and inventory of one moment."""
    with _snapshot(database):
        return Stored(read_release(database), inventory(database))


def settled(database: Database) -> Stored:
    """The same, after whoever may have died in a COMMIT: what it left is undone, or part of the answer."""
    durable = True
    database.lock.acquire()
    try:
        database.drop_uncommitted()
    except (ValueError, OSError) as error:
        print(f"the end of the write-ahead log can't be settled: {error}", file=sys.stderr, flush=True)
        durable = False
    finally:
        database.lock.release()
    return msgspec.structs.replace(stored(database), durable=durable)


@contextlib.contextmanager
def _snapshot(database: Database) -> Iterator[None]:
    if database.in_transaction:
        yield
        return
    database.rows("BEGIN")
    try:
        yield
    finally:
        database.rows("ROLLBACK")
