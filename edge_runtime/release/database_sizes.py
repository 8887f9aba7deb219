"""How large a libsql file is, read without opening it as a database."""

import os
from pathlib import Path
from typing import Final, NamedTuple

from edge_runtime import wal

_HEADER: Final = 100
"""Bytes of the file's header: https://www.sqlite.org/fileformat.html#the_database_header"""


class DatabaseSizes(NamedTuple):
    """Sizes in bytes."""

    file: int
    free: int
    """Of the file's pages that hold nothing, as of the last checkpoint; new rows come there before the file grows."""
    log: int
    """The file of the write-ahead log, which is longer than the log in it once the log has begun anew."""
    disk_free: int


def read(database: Path) -> DatabaseSizes:
    """Return the sizes; all but the disk's are 0 where there is no file yet. Raises: OSError."""
    disk = os.statvfs(database.parent)
    room = disk.f_bavail * disk.f_frsize
    try:
        with database.open("rb") as file:
            header = file.read(_HEADER)
            size = os.fstat(file.fileno()).st_size
        log = wal.log_of(database).stat().st_size if wal.has_log(database) else 0
    except FileNotFoundError:
        return DatabaseSizes(0, 0, 0, room)
    if len(header) < _HEADER:
        return DatabaseSizes(size, 0, log, room)
    page = int.from_bytes(header[16:18], "big")
    return DatabaseSizes(size, int.from_bytes(header[36:40], "big") * (65_536 if page == 1 else page), log, room)
