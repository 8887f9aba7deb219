"""A lock on the index of the libsql file's write-ahead log (`-shm`), held without a connection.

Every connection holds a shared lock on one byte of the index, SQLite's "dead man switch". A connection that is opened
while nobody holds it takes the index for a leftover of processes that have died, and makes it anew from the log. If a
read of the log fails then, libsql forgets rows (docs/adr/0025). As long as the zygote holds the lock, too, no
connection is ever the first one, even if all others were killed. So the zygote takes it before it forks the first child
that opens the database. Source: SQLite's os_unix.c, `unixLockSharedMemory`.
"""

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Final

from edge_runtime import wal

_BYTE: Final = 128
"""Offset of the byte: SQLite's UNIX_SHM_DMS."""
_BLANK: Final = 3
"""Bytes of an index that says nothing, as SQLite makes it."""
_TRIES: Final = 20
"""Looks at an index, a millisecond apart, that somebody may be writing."""
_FLOCK: Final = struct.Struct("@hhqqi0q")
"""The kernel's `struct flock`: type, whence, start, length, process."""


class IndexLock:
    """The lock, for a process without a connection to the database: closing a connection would let it go."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = wal.index_of(database)
        self.descriptor = -1
        """Descriptor of the locked index; -1 if none is. A child closes it before it opens the database."""
        self._wanted = True

    def take(self) -> bool:
        """Take the lock if another process holds it, which shows that the index is in use; return whether it is held
        now.

        Raises: OSError.
        """
        if not self._wanted:
            return False
        if self.descriptor >= 0:
            if self._is_current(self.descriptor):
                return True
            # The last connection was closed in order, which has removed the index.
            os.close(self.descriptor)
            self.descriptor = -1
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if self._is_shared(descriptor) and self._is_current(descriptor):
            self.descriptor = descriptor
            return True
        os.close(descriptor)
        return False

    def make(self) -> None:
        """Make the index, with nothing in it, and take the lock, where nobody has the database open: what the first
        connection would do. Does nothing where the log has something in it, which is to be recovered first.

        Raises: OSError.
        """
        if not self._wanted:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(BlockingIOError):
            # No connection comes further while it is held so.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)
            if self._is_current(descriptor) and not wal.has_log(self._database):
                os.ftruncate(descriptor, _BLANK)
                fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _BYTE)
                self.descriptor = descriptor
                return
        os.close(descriptor)

    def is_blank(self) -> bool:
        """Tell whether the index that is locked says nothing, as another process that has it open hasn't recovered the
        log yet. Raises: OSError."""
        for _ in range(_TRIES):
            # Closing another descriptor of it would let the lock go.
            if wal.parse(os.pread(self.descriptor, wal.INDEX_BYTES, 0)) is not None:
                return False
            time.sleep(0.001)
        return True

    def let_go(self) -> None:
        """Hold the lock no more, for good. As long as it is held, SQLite from 3.51.0 on takes no connection that closes
        for the last one, and leaves the log's files where they are."""
        self._wanted = False
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _is_shared(self, descriptor: int) -> bool:
        """Share the lock that another process holds; return whether there is one."""
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        if kind != fcntl.F_RDLCK:
            # Nobody holds the lock, or the index is just being made anew.
            return False
        with contextlib.suppress(BlockingIOError):
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _BYTE)
            return True
        return False

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False
