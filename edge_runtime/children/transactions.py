"""Transactions of the applier's under the writer lock."""

import contextlib
import errno
from collections.abc import Iterator

from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import failed_commit


def drop_uncommitted(opened: LibsqlDatabase) -> None:
    """Make sure that a loss of power leaves what the file says now, or what is committed next, but no earlier attempt.
    The caller holds the writer lock. Raises: SyncFailed, when the log can't be written."""
    try:
        opened.drop_uncommitted()
    except OSError as error:
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
        raise SyncFailed(code, f"The write-ahead log can't be written: {error}. Look at the disk.") from None


@contextlib.contextmanager
def transaction(opened: LibsqlDatabase) -> Iterator[None]:
    """Run the block under the writer lock in a transaction, which is committed at its end.

    Raises: SyncFailed, when the COMMIT fails.
    """
    opened.lock.acquire()
    try:
        opened.rows("BEGIN IMMEDIATE")
        yield
        try:
            opened.rows("COMMIT")
        except ValueError as error:
            code, text = failed_commit(opened, error)
            raise SyncFailed("disk_failed" if code == frames.COMMIT_UNKNOWN else code, text) from None
    finally:
        opened.rollback()
