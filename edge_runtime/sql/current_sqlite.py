"""The libsql file and its write-ahead log, opened by a current SQLite (apsw) instead of libsql.

A process that moves the log, or may be the last one to close the file, which moves it too, opens it so: SQLite's
WAL-reset bug, which libsql has, is fixed here (docs/adr/0071). The schema is never parsed here, as it may have what
only libsql can parse.

A process opens a file by this module or by libsql, never by both: neither sees the other's locks.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, cast

import apsw

CheckpointMode = Literal["passive", "restart", "truncate"]

_MODES: Final[dict[CheckpointMode, int]] = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}


class FileAndLog:
    """One connection to the file. Its methods raise apsw.Error."""

    def __init__(self, path: Path, patience: float, *, create: bool = False) -> None:
        """Open the file, which is read from the first use on. `patience`: seconds to wait for locks of others."""
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        self._connection = apsw.Connection(str(path), flags=flags)
        self._connection.wal_autocheckpoint(0)
        self.wait_for_locks(patience)

    def wait_for_locks(self, patience: float) -> None:
        """Wait this many seconds for locks of others from now on."""
        self._connection.set_busy_timeout(round(patience * 1000))

    def look(self) -> None:
        """Read the file's header in a transaction. The first one reads the log, if no other process has done so."""
        # Unlike a SELECT it needs no schema.
        self._connection.execute("PRAGMA schema_version").fetchall()

    def checkpoint(self, mode: CheckpointMode) -> tuple[int, int] | None:
        """Move the log. Return how many frames it has and how many of these are moved; None if another process is in
        the way. `look` must have been called before: SQLite moves no log that this connection hasn't opened."""
        try:
            return self._connection.wal_checkpoint("main", _MODES[mode])
        except apsw.BusyError:
            return None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read the file as it is now until the block ends."""
        self._connection.execute("BEGIN")
        self.look()
        yield
        self._connection.execute("ROLLBACK")

    @property
    def is_reading(self) -> bool:
        """Whether the transaction of `reading` lasts."""
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
        """Close the file. Where no other process has it open, the log is moved and removed."""
        self._connection.close()


def result_of(error: apsw.Error) -> int:
    """Return SQLite's extended result code of an error; its lowest byte is the primary result code."""
    # apsw doesn't declare its type.
    return int(cast(Any, error).extendedresult)


def name_of(error: apsw.Error) -> str:
    """Return SQLite's name of an error, as SQLITE_IOERR_READ."""
    result = result_of(error)
    return str(apsw.mapping_extended_result_codes.get(result) or apsw.mapping_result_codes[result & 0xFF])
