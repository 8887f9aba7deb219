"""Recover the libsql file's write-ahead log after an end that wasn't in order, before a child opens the file by libsql.

The first connection after all others have ended reads the whole log. For a log of some GB on a slow disk that takes
longer than a worker has to be ready, so a process of its own reads it, behind the checkpointer's fence, and takes as
long as the disk needs. It also moves the log into the file. A connection of libsql's that is the first one all the
same, since all others were killed a moment ago, loses nothing: it reports a read that fails, as SQLite does
(docs/adr/0025).
"""

import os
import sys
from pathlib import Path
from typing import Final

import apsw

from edge_runtime import database_users, wal
from edge_runtime.sandbox import fence
from edge_runtime.sql.current_sqlite import FileAndLog, name_of, result_of

PATIENCE: Final = 5.0
"""Seconds to wait for a process that is about to end and still has the file open."""

_UNREAD: Final = (
    apsw.SQLITE_IOERR,
    apsw.SQLITE_CANTOPEN,
    # SQLite calls some errors of the disk so.
    apsw.SQLITE_CORRUPT,
    # A file that can't be opened for writing is opened for reading, without a look at the log.
    apsw.SQLITE_READONLY,
)
"""Codes of errors after which the log may not have been read."""
_UNREAD_IN_CHECKPOINT: Final = (
    apsw.SQLITE_IOERR_READ,
    apsw.SQLITE_IOERR_SHORT_READ,
    apsw.SQLITE_CORRUPT,
    apsw.SQLITE_READONLY,
)
"""Extended codes of such errors in the checkpoint that follows, which reads the log again."""


class Unreadable(Exception):
    """The log can't be read now; the message says why and what to do."""


def is_needed(database: Path) -> bool:
    """Return whether there is a log, and no process has it open. Raises: OSError."""
    return wal.has_log(database) and not database_users.is_open(database)


def run(database: Path) -> None:
    """Recover the log in a child of this process, which has one thread, and wait for it however long it takes.

    Raises: Unreadable, when the log can't be read; the child has then said on stderr which error it was.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fence.die_with_parent(parent)
            fence.enter("checkpointer")
            _recover(database)
            code = 0
        except apsw.Error as error:
            print(f"{wal.log_of(database)}: {error} ({name_of(error)})", file=sys.stderr)
        except OSError as error:
            print(f"{wal.log_of(database)}: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise Unreadable(
            f"{wal.log_of(database)} can't be read, and holds what was committed last: nothing is served before it "
            "can be. Look at the disk (`dmesg`); restore a backup if it is lost"
        )


def _recover(database: Path) -> None:
    """Recover the log. Raises: apsw.Error, when it can't be read; OSError."""
    opened = FileAndLog(database, PATIENCE, create=True)
    fence.seal("checkpointer")
    try:
        try:
            # The first transaction reads the whole log.
            with opened.writing():
                pass
        except apsw.Error as error:
            if result_of(error) & 0xFF in _UNREAD:
                raise
            # Anything else that is wrong with the file is for libsql to find.
            print(f"{database}: its log stays as it is: {error}", file=sys.stderr)
            return
        try:
            opened.checkpoint("truncate")
        except apsw.Error as error:
            if result_of(error) in _UNREAD_IN_CHECKPOINT:
                raise
            # A write has failed: a full disk, for example, can still be read.
            print(f"{database}: its log stays as it is: {error} ({name_of(error)})", file=sys.stderr)
    finally:
        opened.close()
