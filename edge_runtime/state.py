"""The state directory of a node: its folders, and the lock that keeps two fronts from using it at once.

The lock (flock) belongs to an open file that every child inherits, so it is free when the last of them has ended.
"""

import fcntl
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_runtime import aot_cache, files, wal

PAUSE: Final = 0.02


class StateUnfit(Exception):
    """The state directory can't be used; the message says why and what to do."""


class State:
    """The directory, opened and locked; a context manager that lets it go."""

    def __init__(self, path: Path, wait: float) -> None:
        """Make the directory where it isn't there, and lock it, waiting at most `wait` seconds for the processes of an
        earlier run to end. Error: StateUnfit."""
        self.path = path.absolute()
        self.aot = self.path / "aot"
        self.artifacts = self.path / "artifacts"
        self.database = self.path / "db"
        self.temporary = self.path / wal.TEMPORARY
        try:
            for folder in (self.path, self.aot, self.artifacts, self.database, self.temporary):
                files.make_folder(folder)
                if folder.stat().st_mode & 0o077:
                    # Who may write here decides what code this machine runs.
                    folder.chmod(0o700)
            # A kill may have come between a folder and the sync of its name.
            files.sync_folder(self.path)
            if os.statvfs(self.aot).f_flag & os.ST_NOEXEC:
                raise StateUnfit(
                    f"{self.aot} is on a file system that is mounted noexec: compiled functions can't be run from "
                    "there. Choose another --state, or mount it without noexec"
                )
            self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateUnfit(f"the state directory {self.path} can't be used: {error}") from None
        try:
            self._lock(wait)
        except BaseException:
            os.close(self.lock)
            raise

    def _lock(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(self.lock, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise StateUnfit(
                        f"{self.path} is in use by another skerry-edge (process {holder}), or by one of its workers, "
                        f"and wasn't free after {wait:g} s: stop it first"
                    ) from None
            time.sleep(PAUSE)
        for path in self.temporary.iterdir():
            # Of a statement whose process was killed between making it and taking its name away.
            path.unlink()
        for left in self.aot.glob(f"{aot_cache.TEMPORARY}*"):
            # Of a compilation whose process was killed. Its number in the name may be this process's own by now.
            shutil.rmtree(left, ignore_errors=True)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let it go, as far as this process is concerned."""
        os.close(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
