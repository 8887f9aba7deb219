"""The libsql file and its write-ahead log (WAL) on disk, without a connection: their sizes, and uncommitted frames.

A COMMIT writes its pages as frames at the end of the log, syncs the log, and only then moves the end in the index that
all processes share (`-shm`). If the sync fails, or the process is killed before it, frames remain after the end. Nobody
sees them, but a recovery (by the first connection after all others have closed) treats them as committed. So they are
cut off. Formats: https://www.sqlite.org/walformat.html
"""

import errno
import os
import struct
import time
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from edge_runtime.files import free_bytes

FILE: Final = Path("db", "skerry.db")
"""The path of the libsql file in the state directory."""
TEMPORARY: Final = Path("temp")
"""The folder in the state directory for temporary files of statements."""
BACKUP: Final = Path("backup")
"""The folder in the state directory for files of the backup that aren't at the store yet."""
HEADER_BYTES: Final = 32
"""Bytes of the log before its first frame."""
FRAME_HEADER_BYTES: Final = 24
INDEX_BYTES: Final = 136
"""Bytes of the index before its hash tables."""
FEW: Final = 16
"""Frames that may be moved while writers wait, however slow the disk is."""
STEP: Final = 0.02
"""Seconds that writers may wait for the last frames, as estimated from the speed of the pass before."""
_FILE_HEADER_BYTES: Final = 100
"""Bytes of the file's header: https://www.sqlite.org/fileformat.html#the_database_header"""
_VERSION: Final = 3_007_000
_COPY: Final = struct.Struct("=III??HII24x")
_PAGES_AT: Final = 20
_SALTS_AT: Final = 32
_BACKFILLED_AT: Final = 96
_TRIES: Final = 1000
_TRY_PAUSE: Final = 0.001
"""How often an index is read that a process is writing, and the seconds between two times."""

_kept: Final[dict[tuple[int, int], int]] = {}
"""Open descriptors of index files, by device and inode. They are never closed: closing any descriptor of a file
releases all locks of this process on it (POSIX), including SQLite's."""


class Pressure(Enum):
    """What calls may do, depending on the length of the log."""

    NONE = 0
    WAIT = 1
    """Calls with SQL wait, so that calls that read from the log finish, and the log can restart from its beginning."""
    REFUSE = 2
    """Calls that may write are refused."""


class Index(NamedTuple):
    """The state of the log's index at one moment."""

    frames: int
    """Committed frames from the start of the log."""
    backfilled: int
    """Committed frames whose pages have been moved into the database file, and are on disk there."""
    frame_bytes: int

    @property
    def bytes(self) -> int:
        """Return the bytes of the log up to its last committed frame."""
        return HEADER_BYTES + self.frames * self.frame_bytes if self.frames else 0


class LogState(NamedTuple):
    """The log at one moment, for a process with a connection."""

    frames: int
    """Committed frames from the start of the log."""
    moved: int
    """Those whose pages are in the database file."""
    page_bytes: int
    pages: int
    """Pages of the database after the last frame; 0 if the log is empty and nobody has written since it was opened."""
    salt: bytes
    """Which log it is: one that begins anew has the next number in its first four bytes, unless it was emptied."""


class DatabaseSizes(NamedTuple):
    """Sizes in bytes."""

    file: int
    free: int
    """Free pages of the file at the last checkpoint; new rows fill them before the file grows."""
    log: int
    """The file of the write-ahead log, which is longer than the log in it once the log has restarted."""
    disk_free: int


def may_step(left: int, moved: int, took: float) -> bool:
    """Return whether so few frames are left to move that writers can wait for that, after a pass that moved so many in
    `took` seconds."""
    return left <= max(FEW, max(0, moved) / max(took, 1e-4) * STEP)


def log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def index_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-shm")


def journal_of(database: Path) -> Path:
    """Return the path of the rollback journal, which exists during transactions without a write-ahead log."""
    return database.with_name(f"{database.name}-journal")


def has_log(database: Path) -> bool:
    """Return whether there is a log that isn't empty: while the database is open, or after a crash."""
    try:
        return log_of(database).stat().st_size > 0
    except FileNotFoundError:
        return False


def sizes(database: Path) -> DatabaseSizes:
    """Return the sizes of the libsql file and its log; if there is no file yet, 0 except for `disk_free`.

    Raises: OSError.
    """
    room = free_bytes(database.parent)
    try:
        with database.open("rb") as file:
            header = file.read(_FILE_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
        log = log_of(database).stat().st_size if has_log(database) else 0
    except FileNotFoundError:
        return DatabaseSizes(0, 0, 0, room)
    if len(header) < _FILE_HEADER_BYTES:
        return DatabaseSizes(size, 0, log, room)
    return DatabaseSizes(size, int.from_bytes(header[36:40], "big") * _page_bytes(header), log, room)


def _page_bytes(header: bytes) -> int:
    """Return the bytes of a page, of the file's header; 0 of an empty file."""
    page = int.from_bytes(header[16:18], "big")
    return 65_536 if page == 1 else page


def parse(data: bytes) -> Index | None:
    """Return the index from its first `INDEX_BYTES`; None while a process is writing it, or before its first use."""
    size = _COPY.size
    if len(data) < INDEX_BYTES or data[:size] != data[size : 2 * size]:
        return None
    version, _, _, initialized, _, page, frames, _ = _COPY.unpack_from(data)
    if version != _VERSION or not initialized:
        return None
    (backfilled,) = struct.unpack_from("=I", data, _BACKFILLED_AT)
    return Index(frames, backfilled, FRAME_HEADER_BYTES + (65_536 if page == 1 else page))


def read(database: Path) -> Index | None:
    """Read the index, without a connection to the database. Return None if there is no index.

    Raises: OSError, when it can't be read.
    """
    try:
        descriptor = os.open(index_of(database), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return parse(os.pread(descriptor, INDEX_BYTES, 0))
    finally:
        os.close(descriptor)


def stamp(database: Path) -> bytes:
    """Return bytes that another COMMIT, of whatever process, makes others, and another file in the database's place,
    without a connection to it: the file's inode and the header of the log's index, if a process has the database open.
    Empty if there is no database.

    Raises: OSError, when it can't be read.
    """
    try:
        inode = database.stat().st_ino.to_bytes(8)
    except FileNotFoundError:
        return b""
    try:
        descriptor = os.open(index_of(database), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return inode
    try:
        return inode + os.pread(descriptor, _COPY.size, 0)
    finally:
        os.close(descriptor)


def cut(database: Path) -> None:
    """Cut off everything after the log's end, and write the rest to disk.

    The caller has a connection and a transaction that holds SQLite's write lock, so that the end doesn't move.

    Raises: OSError, when that fails: connections see nothing after the end, but a power loss may bring it back.
    """
    index = parse(os.pread(keep(index_of(database)), INDEX_BYTES, 0))
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


def state(database: Path) -> LogState:
    """Return the state of the log, for a process with a connection. Raises: OSError, when the index can't be read."""
    for _ in range(_TRIES):
        data = os.pread(keep(index_of(database)), INDEX_BYTES, 0)
        if (index := parse(data)) is not None:
            (pages,) = struct.unpack_from("=I", data, _PAGES_AT)
            salt = data[_SALTS_AT : _SALTS_AT + 8]
            # The index of a log that nobody has written to doesn't say it.
            page = index.frame_bytes - FRAME_HEADER_BYTES or _page_bytes(os.pread(keep(database), 18, 0))
            return LogState(index.frames, index.backfilled, page, pages, salt)
        time.sleep(_TRY_PAUSE)
    raise OSError(errno.EIO, "the write-ahead log's index can't be read", str(index_of(database)))


def committed(database: Path) -> int:
    """Return the bytes of the log up to its last committed frame, for a process with a connection.

    Raises: OSError, when the index can't be read.
    """
    index = parse(os.pread(keep(index_of(database)), INDEX_BYTES, 0))
    return 0 if index is None else index.bytes


def uncommitted(database: Path) -> int:
    """Return the bytes of the log's file after its last committed frame, for a process with a connection.

    This is about as much as the open transaction has written there. Raises: OSError, when the files can't be read.
    """
    index = parse(os.pread(keep(index_of(database)), INDEX_BYTES, 0))
    return 0 if index is None else max(0, log_of(database).stat().st_size - index.bytes)


def keep(path: Path) -> int:
    """Return a descriptor of the database file or the log's index that is never closed (`_kept`). Raises: OSError."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino)
    if key not in _kept:
        _kept[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _kept[key]
