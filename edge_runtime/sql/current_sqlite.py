"""The libsql file and its write-ahead log, opened by a current SQLite (apsw) instead of libsql.

Processes that move the log use it, and so do those that may be the last to close the file, which moves the log too:
SQLite's WAL-reset bug, which libsql has, is fixed here (docs/adr/0071). The schema is never parsed here, as it may
contain something that only libsql can parse.

A process opens a file with this module or with libsql, never with both: neither sees the other's locks.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, cast

import apsw

CheckpointMode = Literal["passive", "full", "restart", "truncate"]

_MODES: Final[dict[CheckpointMode, int]] = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "full": apsw.SQLITE_CHECKPOINT_FULL,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}


class FileAndLog:
    """One connection to the file. Its methods raise apsw.Error."""

    def __init__(self, path: Path, patience: float, *, create: bool = False) -> None:
        """Open the file, which is first read when it is used. `patience`: seconds to wait for other processes'
        locks."""
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        self._connection = apsw.Connection(str(path), flags=flags)
        self._connection.wal_autocheckpoint(0)
        self.wait_for_locks(patience)

    def wait_for_locks(self, patience: float) -> None:
        """From now on, wait this many seconds for other processes' locks."""
        self._connection.set_busy_timeout(round(patience * 1000))

    def look(self) -> None:
        """Read the file's header in a transaction. The first call reads the log, if no other process has done so."""
        # Unlike a SELECT it needs no schema.
        self._connection.execute("PRAGMA schema_version").fetchall()

    def checkpoint(self, mode: CheckpointMode) -> tuple[int, int] | None:
        """Move the log. Return how many frames it has and how many of them have been moved; None if another process is
        in the way. `look` must have been called before: SQLite moves no log that this connection hasn't opened."""
        try:
            return self._connection.wal_checkpoint("main", _MODES[mode])
        except apsw.BusyError:
            return None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read the file as it is now until the block ends."""
        self.begin_reading()
        yield
        self.end_reading()

    def begin_reading(self) -> None:
        """Read the file as it is now until `end_reading`."""
        self._connection.execute("BEGIN")
        try:
            self.look()
        except apsw.Error:
            self.end_reading()
            raise

    def end_reading(self) -> None:
        """End what `begin_reading` began."""
        self._connection.execute("ROLLBACK")

    @property
    def is_reading(self) -> bool:
        """Whether a `reading` transaction is open."""
        return self._connection.in_transaction

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep others from writing until the block ends."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file. If no other process has it open, the log is moved and removed."""
        self._connection.close()


def result_of(error: apsw.Error) -> int:
    """Return SQLite's extended result code of an error; its lowest byte is the primary result code."""
    # apsw doesn't declare its type.
    return int(cast(Any, error).extendedresult)


def name_of(error: apsw.Error) -> str:
    """Return SQLite's name for an error, such as SQLITE_IOERR_READ."""
    result = result_of(error)
    return str(apsw.mapping_extended_result_codes.get(result) or apsw.mapping_result_codes[result & 0xFF])
