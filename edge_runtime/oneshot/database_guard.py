"""Keeps a node's libsql file open in a separate process while a command works with it, and reads its log first if
needed. The process opens the file like the checkpointer (`sql.current_sqlite`), since the last connection to close
moves the log into the file, which libsql must not do (docs/adr/0071).

It can hold a read transaction. Then the file and its log can be copied byte by byte as of that moment: no checkpoint
moves anything newer into the file meanwhile, and the log doesn't restart.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from edge_runtime import database_users
from edge_runtime.errors import CodedError
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sql.current_sqlite import FileAndLog

BUSY: Final = 5.0
"""Seconds that the guard waits for another process's lock."""
_READY: Final = b"ready"
_HELD: Final = b"held"
_LOOK: Final = b"?"
_END: Final = b"!"


class GuardFailed(CodedError):
    """The file can't be kept open; the message says why. The code is `database_held` if another process holds the file,
    else `database_unfit`."""


class DatabaseGuard:
    """The process that keeps the file open."""

    def __init__(self, database: Path, answers: int, orders: int) -> None:
        self._database = database
        self._answers = answers
        self._orders = orders

    def check(self) -> None:
        """Check that the file, and its transaction, have been kept open until now.

        Raises: GuardFailed, when they weren't.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, _LOOK)
        self.expect()

    def expect(self) -> None:
        """Wait for the guard's answer. Raises: GuardFailed, when it reports a failure."""
        answer = os.read(self._answers, 4096)
        if answer == _HELD:
            raise GuardFailed("database_held", database_users.held(self._database))
        if answer != _READY:
            why = answer.decode(errors="replace") or "the process that keeps the database open has ended"
            raise GuardFailed("database_unfit", why)


@contextlib.contextmanager
def guarded(database: Path, *, reading: bool) -> Iterator[DatabaseGuard]:
    """Keep the file open while the block runs, with a read transaction if `reading`. The caller must have only one
    thread.

    Raises: GuardFailed, when the file can't be opened or its log can't be read.
    """
    parent = os.getpid()
    answers, writing = os.pipe()
    listening, orders = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(answers)
            os.close(orders)
            fence.die_with_parent(parent)
            _keep_open(database, reading, listening, writing)
        except (apsw.Error, OSError) as error:
            os.write(writing, _HELD if isinstance(error, apsw.BusyError) else f"{database}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.close(listening)
    try:
        guard = DatabaseGuard(database, answers, orders)
        guard.expect()
        yield guard
    finally:
        # By a message, not by closing the pipe: a child forked in the block may still have the pipe open.
        with contextlib.suppress(BrokenPipeError):
            os.write(orders, _END)
        os.close(orders)
        os.waitpid(pid, 0)
        os.close(answers)


def _keep_open(database: Path, reading: bool, orders: int, answers: int) -> None:
    """Run as the guard until `orders` says to stop."""
    fence.enclose([(database.parent, WRITE), RANDOM])
    opened = FileAndLog(database, BUSY)
    fence.seal("checkpointer")
    with opened.reading() if reading else contextlib.nullcontext():
        opened.look()
        os.write(answers, _READY)
        while os.read(orders, 1) == _LOOK:
            if reading and not opened.is_reading:
                raise OSError("the read transaction has ended")
            opened.look()
            os.write(answers, _READY)
    opened.close()
