"""The node's libsql file: connections, the writer lock, and the runtime's own tables.

A process opens libsql after its fork, never before, and uses it in one thread. libsql's queries hold the GIL, so the
front never opens it.
"""

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

import msgspec

from control.protocol import wire
from control.protocol.manifest import Manifest
from edge_runtime import wal
from edge_runtime.errors import CodedError
from edge_runtime.ipc.frames import LocalFunction, LocalRelease, Stored
from edge_runtime.settings import WAL_LIMIT
from edge_runtime.sql.libsql_connection import LibsqlConnection, is_panic, open_file, open_in_memory
from edge_runtime.sql.queries import ChangeRow, FunctionRow, MetaRow, ReleaseRow, load
from edge_runtime.sql.tokenizer import at_semicolons, tokenize
from edge_runtime.sql.values import Row, Value
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock
from edge_runtime.state import is_full

FORMAT: Final = 1
"""Version of the runtime's own tables; written into the file."""
BUSY_MS: Final = 5_000
"""Milliseconds that SQLite waits for a process that doesn't use the writer lock, such as a backup or a shell."""
LOCKED: Final = "database is locked"
"""How SQLite's error begins when another process has the file locked."""
HEAP_BYTES: Final = 128 * 1024 * 1024
"""Bytes of SQLite's memory in one process; a statement that needs more fails, but nothing else does."""
WAL_BYTES: Final = 64 * 1024 * 1024
"""Bytes to which the write-ahead log is truncated after it has been larger."""
SYNCHRONOUS: Final = ("FULL", "NORMAL")
FILE: Final = wal.FILE

RowType = TypeVar("RowType", bound=NamedTuple)

_until_exit: "Final[list[LibsqlDatabase]]" = []

_TABLES: Final = load("tables")
_HAS_META: Final = load("has_meta")
_INSERT_META: Final = load("insert_meta")
_READ_META: Final = load("read_meta")
_WRITE_NOTHING: Final = load("write_nothing")
_READ_RELEASE: Final = load("read_release")
_READ_CHANGES: Final = load("read_changes")
_READ_FUNCTIONS: Final = load("read_functions")
_HAS_STEPS: Final = load("has_steps")
_UNFINISHED: Final = load("unfinished_steps")


class DatabaseOpenError(CodedError):
    """The libsql file can't be used as it is, or not now; the message says why and what to do."""


class LibsqlDatabase:
    """One connection to the file, in autocommit mode: statements begin and end transactions."""

    def __init__(self, connection: LibsqlConnection, lock: WriterLock, path: Path | None = None) -> None:
        self.connection = connection
        self.lock = lock
        self.path = path
        """None for a database in memory."""
        self.query_only = False
        """The value last given to `set_query_only`."""
        self.wal_limit = WAL_LIMIT
        """Bytes of the write-ahead log at which nothing more should be written to it."""
        self.file_limit_was_hit: Callable[[], bool] = lambda: False
        """Returns whether a write has failed since its last call because this process may not write larger files."""

    def rows(self, sql: str, params: tuple[Value, ...] = ()) -> list[Row]:
        """Return all rows of one statement; an empty list if it returns none.

        Raises: ValueError, when SQLite or libsql refuses: libsql raises nothing else.
        """
        try:
            return self.connection.execute(sql, params).fetchall() or []
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ValueError("a TEXT is not valid UTF-8") from None

    def read(self, row: type[RowType], sql: str, params: tuple[Value, ...] = ()) -> list[RowType]:
        """Like `rows`, but return each row as an object of its class (`sql.queries`).

        Raises: ValueError, when SQLite or libsql refuses.
        """
        return [row._make(values) for values in self.rows(sql, params)]

    @property
    def in_transaction(self) -> bool:
        return bool(self.connection.in_transaction)

    def set_query_only(self, value: bool) -> None:
        if value is not self.query_only:
            self.connection.execute("PRAGMA query_only = ON" if value else "PRAGMA query_only = OFF")
            self.query_only = value

    def rollback(self) -> None:
        """Roll back the transaction, if one is open, and release the writer lock."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        finally:
            self.lock.release()

    def drop_uncommitted(self) -> None:
        """Ensure that writes of a COMMIT that failed, or whose process was killed, can't come back, even from the disk.
        Everything committed before is then on disk. The caller holds the writer lock, and keeps it.

        Raises: ValueError or OSError, when that fails: a loss of power may still bring the writes back.
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


def connect(path: Path, synchronous: str = "FULL", *, foreign_keys: bool = True) -> LibsqlDatabase:
    """Open the file; create it and the runtime's tables if they don't exist. The writer lock is in the file
    `writer.lock` beside it. With `synchronous` FULL, what was committed survives a loss of power.

    Raises: DatabaseOpenError, when the file can't be used; OSError, when a file can't be made.
    """
    if synchronous not in SYNCHRONOUS:
        text = f"synchronous is {synchronous}, and can be {' or '.join(SYNCHRONOUS)}"
        raise DatabaseOpenError("database_unfit", text)
    lock = WriterLock.open(path.with_name(LOCK_NAME))
    try:
        # One that is there keeps its time, by which a backup knows that nothing was moved into it.
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
        connection = open_file(path)
        database = LibsqlDatabase(connection, lock, path)
        database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
        database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
        database.rows(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        # So that a sort or an index build needs no more than HEAP_BYTES.
        database.rows("PRAGMA temp_store = FILE")
        # The checkpointer moves the log, so that a COMMIT takes only the time for its own pages.
        database.rows("PRAGMA wal_autocheckpoint = 0")
        database.rows(f"PRAGMA synchronous = {synchronous}")
        database.rows("PRAGMA foreign_keys = ON" if foreign_keys else "PRAGMA foreign_keys = OFF")
        if database.rows(_HAS_META) == [(0,)]:
            _make(database)
        elif database.rows("PRAGMA journal_mode") != [("wal",)]:
            _write_ahead(database)
        format_ = database.read(MetaRow, _READ_META)[0].format
        _check_writable(database)
    except ValueError as error:
        lock.close()
        if str(error).startswith(LOCKED):
            text = f"{path} can't be opened: another process holds the database"
            raise DatabaseOpenError("database_held", text) from None
        if is_full(path.parent):
            text = f"{path} can't be opened: its disk is full ({error})"
            raise DatabaseOpenError("disk_full", text) from None
        raise DatabaseOpenError("database_unfit", f"{path} can't be opened: {error}") from None
    if format_ != FORMAT:
        database.close()
        text = f"{path} has format {format_} of the runtime's tables, and this version knows {FORMAT}"
        raise DatabaseOpenError("database_unfit", text)
    return database


def connect_until_exit(path: Path, synchronous: str = "FULL", *, foreign_keys: bool = True) -> LibsqlDatabase:
    """Like `connect`, for a process that exits with os._exit without closing the connection: the last connection to
    close would checkpoint the log, which libsql must not do (docs/adr/0071)."""
    database = connect(path, synchronous, foreign_keys=foreign_keys)
    _until_exit.append(database)
    return database


def in_memory() -> LibsqlDatabase:
    """Open a new database in memory, with the runtime's tables and foreign_keys OFF."""
    database = LibsqlDatabase(open_in_memory(), WriterLock(os.memfd_create("writer.lock")))
    database.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    database.rows("PRAGMA foreign_keys = OFF")
    _make(database)
    return database


def _write_ahead(database: LibsqlDatabase) -> None:
    """Give the file a write-ahead log. It has none if it was restored from a copy made by `VACUUM INTO`.

    Raises: ValueError, when SQLite refuses, for example because another process has the file open.
    """
    database.lock.acquire()
    try:
        if database.rows("PRAGMA journal_mode = WAL") != [("wal",)]:
            raise ValueError("its journal mode can't be set to WAL")
    finally:
        database.lock.release()


def _check_writable(database: LibsqlDatabase) -> None:
    """Check that the file can be written. SQLite opens the file, its log or its index read-only if opening it for
    writing fails for any reason, for example because the process has no free descriptor for a moment.

    Raises: ValueError, when the file can't be written.
    """
    database.rows("PRAGMA busy_timeout = 0")
    try:
        # A BEGIN IMMEDIATE wouldn't notice.
        database.rows(_WRITE_NOTHING)
    except ValueError as error:
        # Another process writes. If the file had been opened read-only, SQLite would have said so first.
        if not str(error).startswith(LOCKED):
            raise
    database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")


def _make(database: LibsqlDatabase) -> None:
    """Create the runtime's own tables. The caller holds no lock; this takes the writer lock, so that no other process
    creates them too."""
    database.lock.acquire()
    try:
        # Kept in the file; can't be set inside a transaction.
        database.rows("PRAGMA journal_mode = WAL")
        database.rows("BEGIN IMMEDIATE")
        for tokens in at_semicolons(tokenize(_TABLES)):
            database.rows(_TABLES[tokens[0].start : tokens[-1].end])
        database.rows(_INSERT_META, (str(uuid.uuid4()), FORMAT, now()))
        database.rows("COMMIT")
    finally:
        database.rollback()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def inventory(database: LibsqlDatabase) -> wire.Inventory:
    """Return what the node runs according to the file, all read at one moment."""
    with _snapshot(database):
        changes = [wire.AppliedChange(*row) for row in database.read(ChangeRow, _READ_CHANGES)]
        return wire.Inventory(
            schema_version=changes[-1].number if changes else 0,
            schema_changes=changes,
            functions=[
                wire.RunningFunction(row.name, row.version, row.sha256, row.manifest_digest)
                for row in database.read(FunctionRow, _READ_FUNCTIONS)
            ],
            database_id=database.read(MetaRow, _READ_META)[0].database_id,
        )


def read_release(database: LibsqlDatabase) -> LocalRelease | None:
    """Return the release that the file holds, its functions without AOT files; None before the first release."""
    with _snapshot(database):
        releases = database.read(ReleaseRow, _READ_RELEASE)
        if not releases:
            return None
        release_id, number, generation = releases[0]
        changes = database.read(ChangeRow, _READ_CHANGES)
        return LocalRelease(
            release_id=release_id,
            number=number,
            generation=generation,
            schema_version=changes[-1].number if changes else 0,
            functions=[
                LocalFunction(name, version, sha256, msgspec.json.decode(manifest, type=Manifest), manifest_digest)
                for name, version, sha256, manifest, manifest_digest in database.read(FunctionRow, _READ_FUNCTIONS)
            ],
        )


def stored(database: LibsqlDatabase) -> Stored:
    """Return the release and the inventory, both read at one moment."""
    with _snapshot(database):
        return Stored(read_release(database), inventory(database), unfinished=_unfinished(database))


def _unfinished(database: LibsqlDatabase) -> bool:
    """Return whether any steps of schema changes remain to be done after their flips."""
    return database.rows(_HAS_STEPS) != [(0,)] and database.rows(_UNFINISHED) != [(0,)]


def settled(database: LibsqlDatabase) -> Stored:
    """Return the release and the inventory after a process may have died in a COMMIT. Its writes are undone or are part
    of the answer."""
    durable = True
    database.lock.acquire()
    try:
        database.drop_uncommitted()
    except (ValueError, OSError) as error:
        print(
            f"what a broken COMMIT left in the write-ahead log can't be removed: {error}", file=sys.stderr, flush=True
        )
        durable = False
    finally:
        database.lock.release()
    return msgspec.structs.replace(stored(database), durable=durable)


@contextlib.contextmanager
def _snapshot(database: LibsqlDatabase) -> Iterator[None]:
    if database.in_transaction:
        yield
        return
    database.rows("BEGIN")
    try:
        yield
    finally:
        database.rows("ROLLBACK")
