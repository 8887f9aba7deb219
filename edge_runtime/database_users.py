"""Find out which other processes use a libsql file, by SQLite's locks on it and the files that processes have open.

For processes without a connection to the file: closing a descriptor of a file releases all locks of the process on that
file (POSIX), including SQLite's. Sources: SQLite's os_unix.c and https://www.sqlite.org/walformat.html#wal_locks.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from edge_runtime import wal

_FILE_LOCKS: Final = 0x4000_0000, 512
"""Offset and length of the bytes of the database file that SQLite locks."""
_INDEX_LOCKS: Final = 120, 9
"""The same of the log's index."""
_WRITE_LOCK: Final = 120, 1
"""The byte of the index that a writing process locks."""
_OPEN_LOCK: Final = 128, 1
"""The byte of the index that each connection shares a lock on: SQLite's "dead man switch"."""
_READ_LOCKS: Final = 122, 6
"""The bytes on which readers share locks, and the one for recovering the log."""
_LOCKS_READ: Final = 256 * 1024
"""The most bytes that are read of the system's list of locks: 4,000 locks, which takes 15 ms."""
_FLOCK: Final = struct.Struct("@hhqqi0q")
"""The kernel's `struct flock`: type, whence, start, length, process."""


class DatabaseUser(NamedTuple):
    """A process that uses the file."""

    pid: int
    """0 if the system doesn't say, for instance for a process in another container."""
    name: str
    """The name of its program, without arguments; empty if the system doesn't say."""

    def __str__(self) -> str:
        return f"process {self.pid or 'in another container'}{f' ({self.name})' if self.name else ''}"


def users(database: Path) -> list[DatabaseUser]:
    """Return the other processes that have the file, its log or the log's index open, as far as the system shows them.

    The files of another user's processes are hidden, but not their locks.
    """
    files = [database, wal.log_of(database), wal.index_of(database)]
    found = set(_with_open(files))
    for path, (start, length) in zip((files[0], files[2]), (_FILE_LOCKS, _INDEX_LOCKS), strict=True):
        holder = _holder(path, start, length)
        if holder is not None:
            found.add(holder)
    return [DatabaseUser(pid, _name(pid)) for pid in sorted(found)]


def is_open(database: Path) -> bool:
    """Return whether another process has a connection to the file that uses the log's index. Raises: OSError."""
    return _holder(wal.index_of(database), *_OPEN_LOCK) is not None


def lock_holder(database: Path) -> DatabaseUser | None:
    """Return a process that keeps others from writing to the file, reading it or opening it; None if none does."""
    holder = _holder(wal.index_of(database), *_WRITE_LOCK)
    # Readers share these; an exclusive lock keeps them out.
    for path, locks in ((wal.index_of(database), _READ_LOCKS), (database, _FILE_LOCKS)):
        if holder is None:
            holder = _holder(path, *locks, fcntl.F_RDLCK)
    return None if holder is None else DatabaseUser(holder, _name(holder))


class FileLock(NamedTuple):
    """A lock that a process has on a file."""

    kind: str
    pid: int
    """0 if the system doesn't say."""
    file: str
    """Its device and inode."""
    start: int
    """The first locked byte of the file."""


def file_locks() -> list[FileLock]:
    """Return the locks that processes have on files.

    Since a process may have any number of them, only those that the system lists first are included.
    """
    found = []
    with contextlib.suppress(OSError), Path("/proc/locks").open("rb", buffering=0) as file:
        data = b""
        while len(data) < _LOCKS_READ and (piece := file.read(_LOCKS_READ)):
            data += piece
        for line in data.decode(errors="replace").splitlines():
            fields = line.split()
            # A line of a waiting process has an arrow in the second column.
            if len(fields) > 7 and fields[1] != "->":
                found.append(FileLock(fields[1], max(0, int(fields[4])), fields[5], int(fields[6])))
    return found


def flock_holder(path: Path, locks: Iterable[FileLock]) -> int:
    """Return the process that has locked a file by flock, according to these locks; 0 if none, or unknown."""
    try:
        # The device isn't compared: an overlay's differs from the one that the kernel names.
        inode = f":{path.stat().st_ino}"
    except OSError:
        return 0
    return next((lock.pid for lock in locks if lock.kind == "FLOCK" and lock.file.endswith(inode)), 0)


def readers(database: Path, locks: Iterable[FileLock]) -> set[int]:
    """Return the processes that are reading from the file's log or writing to it now, according to these locks."""
    try:
        inode = f":{wal.index_of(database).stat().st_ino}"
    except OSError:
        return set()
    first, count = _INDEX_LOCKS
    # Every connection locks the last byte.
    used = range(first, first + count - 1)
    return {lock.pid for lock in locks if lock.kind == "POSIX" and lock.file.endswith(inode) and lock.start in used}


def held(database: Path) -> str:
    """Return a text for people: another process holds the file, and which one, if the system shows it."""
    holder = lock_holder(database)
    return f"another process holds the database: {holder}" if holder else "another process held the database"


def parent(pid: int) -> int | None:
    """Return the parent of a process: 0 if it was started from outside this container, for instance by `docker exec`.

    Return None if unknown, for instance for a process that has just exited.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may contain anything.
    return int(stat.rpartition(")")[2].split()[1])


def told(users: Iterable[DatabaseUser]) -> str:
    """Return the processes as a text for people."""
    return ", ".join(map(str, users))


def _with_open(files: list[Path]) -> Iterator[int]:
    wanted = set()
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            wanted.add((stat.st_dev, stat.st_ino))
    me = os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == me:
            continue
        # It may exit meanwhile, or belong to another user.
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{entry}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(f"/proc/{entry}/fd/{descriptor}")
                    if (stat.st_dev, stat.st_ino) in wanted:
                        yield int(entry)
                        break


def _holder(path: Path, start: int, length: int, kind: int = fcntl.F_WRLCK) -> int | None:
    """Return a process whose lock on these bytes of a file conflicts with a lock of this kind.

    Return 0 if it can't be named, None if there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        query = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        found, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
    finally:
        os.close(descriptor)
    return None if found == fcntl.F_UNLCK else max(0, pid)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if pid else ""
    except OSError:
        return ""
