"""The lock under which processes write to the libsql file, one at a time."""

import fcntl
import os
import time
from pathlib import Path
from typing import Final, Protocol, Self

LOCK_NAME: Final = "writer.lock"
"""The lock's file, beside the libsql file."""


_PAUSE: Final = 0.005


class WriteProgress(Protocol):
    """Receives each step of a writing call, so that the watchdog doesn't mistake waiting for an endless loop."""

    @property
    def applying(self) -> bool:
        """Whether a release is being applied: its applier holds the writer lock, or will."""

    def sending(self) -> None:
        """Note that the call is about to send something that must not be sent twice."""

    def waiting(self) -> None:
        """Note that the call waits: another process holds the writer lock."""

    def writing(self) -> None:
        """Note that the call holds the writer lock."""

    def committing(self) -> None:
        """Note that the call commits: from here on its writes may be kept, whatever happens to the process."""

    def running(self) -> None:
        """Note that the call has released the writer lock without a commit."""


class WriterLock:
    """The lock with which the writers of one file, in all processes, take turns. With SQLite's own waiting, some of
    them could starve.

    The kernel releases the lock (flock) when the process exits. Each process opens the lock file itself: an inherited
    descriptor would share the lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = False

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def fileno(self) -> int:
        return self._descriptor

    def acquire(self, watch: WriteProgress | None = None, *, patient: bool = True) -> bool:
        """Wait for the lock, and return whether this process now holds it. A call that isn't `patient` doesn't wait
        while a release is applied, which may take long."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if watch is not None:
                watch.waiting()
                # Checked after the mark is set: the process that starts to apply a release looks for these marks
                # afterwards.
                if not patient and watch.applying:
                    watch.running()
                    return False
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._held = True
        if watch is not None:
            watch.writing()
        return True

    def acquire_within(self, seconds: float) -> bool:
        """Try to get the lock for a while, and return whether this process now holds it."""
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(_PAUSE)
            else:
                self._held = True
                return True

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        if self._held:
            self._held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        self._held = False
        os.close(self._descriptor)
