"""The libsql file's write-ahead log (WAL) as it lies on disk: how far it is filled, and what its end has to lose.

A COMMIT writes its pages as frames at the end of the log, syncs them, and only then moves the end in the index that
all processes share (`-shm`). Where the sync fails, or the process is killed before it, the frames lie behind the end:
nobody sees them, but a recovery (the first connection after all others have gone) takes them for committed. So they
are cut off. Formats: https://www.sqlite.org/walformat.html
"""

import errno
import os
import struct
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = Path("db", "skerry.db")
"""The libsql file, under the state directory."""
TEMPORARY: Final = Path("temp")
"""Folder of what statements need on disk for a while, under the state directory."""
HEADER_BYTES: Final = 32
"""Of the log, before its first frame."""
_FRAME_HEADER_BYTES: Final = 24
INDEX_BYTES: Final = 136
"""Of the index, before its tables."""
_VERSION: Final = 3_007_000
_COPY: Final = struct.Struct("=III??HII24x")
_BACKFILLED_AT: Final = 96

_kept: Final[dict[tuple[int, int], int]] = {}
"""Descriptors of indices that are never closed: closing any one of a file's lets all of this process's locks on it go,
SQLite's too."""


class Pressure(Enum):
    """What calls may do, by how long the log is."""

    NONE = 0
    WAIT = 1
    """Those with SQL wait, so that the ones that read from the log come to an end, and it can begin anew."""
    REFUSE = 2
    """Those that may write are refused."""


class Index(NamedTuple):
    """What the log's index says of one moment."""

    frames: int
    """Those that are committed, from the log's start on."""
    backfilled: int
    """Those of them that are in the database file, and on disk there."""
    frame_bytes: int

    @property
    def bytes(self) -> int:
        """Size of the log that counts."""
        return HEADER_BYTES + self.frames * self.frame_bytes if self.frames else 0


def log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def index_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-shm")


def is_left(database: Path) -> bool:
    """Return whether there is a log that isn't empty: while the database is open, and after an end that wasn't in
    order."""
    try:
        return log_of(database).stat().st_size > 0
    except FileNotFoundError:
        return False


def parse(data: bytes) -> Index | None:
    """The index of its first `INDEX_BYTES`; None while it is being written, or before its first use."""
    size = _COPY.size
    if len(data) < INDEX_BYTES or data[:size] != data[size : 2 * size]:
        return None
    version, _, _, initialized, _, page, frames, _ = _COPY.unpack_from(data)
    if version != _VERSION or not initialized:
        return None
    (backfilled,) = struct.unpack_from("=I", data, _BACKFILLED_AT)
    return Index(frames, backfilled, _FRAME_HEADER_BYTES + (65_536 if page == 1 else page))


def read(database: Path) -> Index | None:
    """The index of the database at a path, for a process without a connection to it; None where there is none.

    Error: OSError.
    """
    try:
        descriptor = os.open(index_of(database), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return parse(os.pread(descriptor, INDEX_BYTES, 0))
    finally:
        os.close(descriptor)


def cut(database: Path) -> None:
    """Cut off what lies behind the log's end, and have the rest on disk.

    For a process with a connection, in a transaction that holds SQLite's write lock: so the end stays where it is.
    Error: OSError; what was cut off is gone for who opens the file then, but may be there again after a loss of power.
    """
    index = parse(os.pread(_keep(index_of(database)), INDEX_BYTES, 0))
    if index is None:
        raise OSError(errno.EIO, "the write-ahead log's index can't be read", str(index_of(database)))
    end = HEADER_BYTES + index.frames * index.frame_bytes
    descriptor = os.open(log_of(database), os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size > end:
            os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep(path: Path) -> int:
    found = path.stat()
    key = (found.st_dev, found.st_ino)
    if key not in _kept:
        _kept[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _kept[key]
