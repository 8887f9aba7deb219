"""The state directory of a node: its folders, the lock against two fronts at once, and a reserve for a full disk.

The lock (flock) belongs to an open file, which every child inherits, so the directory is free once the last child has
exited.

The reserve is a file of 1 MiB that is released when the disk is full: a start needs some space for the database's log
and its index, and so does an operator who deletes rows to make space. It is made at a start, and restored when the disk
has space. A start releases one half of it, `skerry-edge sql --write` a little more for its record, and then all of it,
once no call can take the space first.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_runtime import aot_cache, files, wal
from edge_runtime.disk_space import fits

log = logging.getLogger("skerry.front")

PAUSE: Final = 0.02
NOTE_BYTES: Final = 16
"""Bytes of the lock file's content, always the same number: overwriting the old content needs no space on the disk."""
REHEARSAL: Final = "rehearsal"
"""The folder of a release's rehearsal, with a copy of the database; it is there only while one runs."""
DATA_AWAITED: Final = "data-awaited"
"""The file that is there while a node that has joined again must get its database back before it serves."""
RESERVE: Final = "reserve"
RESERVE_BYTES: Final = 1 << 20
"""The size of the reserve. A disk with less free space counts as full."""
KEPT_BY_A_START: Final = RESERVE_BYTES // 2
KEPT_BY_A_RECORD: Final = KEPT_BY_A_START - 64 * 1024


class StateUnfit(Exception):
    """The state directory can't be used; the message says why, and what to do."""


class State:
    """The opened and locked state directory; a context manager, which closes it."""

    def __init__(self, path: Path, wait: float) -> None:
        """Make the directory if it doesn't exist, and lock it.

        Wait at most `wait` seconds for the processes of an earlier run to exit.

        Raises: StateUnfit, when it can't be made or locked.
        """
        self.path = path.absolute()
        self.aot = self.path / aot_cache.FOLDER
        self.artifacts = self.path / "artifacts"
        self.database = self.path / "db"
        self.temporary = self.path / wal.TEMPORARY
        try:
            if self.path.exists() and (found := closed(self.path, to_serve=True)):
                raise StateUnfit("{}: {}".format(*found))
            backup = self.path / wal.BACKUP
            for folder in (self.path, self.aot, self.artifacts, self.database, self.temporary, backup):
                files.make_folder(folder)
                if folder.stat().st_mode & 0o077:
                    # Whoever can write here controls which code this machine runs.
                    folder.chmod(0o700)
            # The process may have been killed after making a folder and before its name was on disk.
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
            # Left by a statement whose process was killed between making the file and unlinking it.
            path.unlink()
        for work_folder in self.aot.glob(f"{aot_cache.TEMPORARY}*"):
            # Left by a compilation whose process was killed. The process id in the name may be this process's now.
            shutil.rmtree(work_folder, ignore_errors=True)
        # Left by a rehearsal whose front was killed. All of its processes held the lock.
        shutil.rmtree(self.path / REHEARSAL, ignore_errors=True)
        with contextlib.suppress(OSError):
            give_up_reserve(self.path, KEPT_BY_A_START)
        self._note_holder()

    def _note_holder(self) -> None:
        """Write the holder into the lock file, for people: a node whose disk is full serves without it."""
        try:
            os.pwrite(self.lock, f"{os.getpid():<{NOTE_BYTES - 1}}\n".encode(), 0)
        except OSError as error:
            log.warning("%s can't say which process has it: %s", self.path / "lock", error)
            with contextlib.suppress(OSError):
                os.ftruncate(self.lock, 0)

    def close(self) -> None:
        """Release this process's hold on the lock: children may still hold it."""
        os.close(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def closed(state: Path, *, to_serve: bool) -> tuple[str, str] | None:
    """Return what in a state directory this process's user can't use, and what to do; None if everything is usable.

    `to_serve`: check only what calls need: a node continues to serve without the rest.

    Raises: OSError.
    """
    if os.statvfs(state).f_flag & os.ST_RDONLY:
        text = f"{state} is on a file system that is mounted read-only, as the kernel does where a disk fails (dmesg)"
        return text, f'mount -o remount,rw "$(stat -c %m {state})"'
    database, aot = state / wal.FILE.parent, state / aot_cache.FOLDER
    folders = [state, database, aot, state / wal.TEMPORARY]
    # Other files are replaced, not written to.
    written, read = [state / "lock", *database.glob("*")], [state / "witness.json", *aot.glob("*")]
    if not to_serve:
        folders += [state / name for name in ("artifacts", "outbox", "telemetry", wal.BACKUP)]
        read += [state / "ca.pem", *(state / "artifacts").glob("*")]
    for paths, mode in ((folders, os.R_OK | os.W_OK | os.X_OK), (written, os.R_OK | os.W_OK), (read, os.R_OK)):
        for path in paths:
            if os.path.lexists(path) and not os.access(path, mode):
                text = f"{path} is closed to this user: another one, such as root, made it"
                return text, f"as root: chown -R --reference={state} {state}"
    return None


def is_full(state: Path) -> bool:
    """Return whether the disk of a state directory, or of a folder in it, is full. Raises: OSError."""
    return files.free_bytes(state) < RESERVE_BYTES


def make_reserve(state: Path) -> None:
    """Make or complete the reserve, if the disk has space. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        if (state / RESERVE).stat().st_size >= RESERVE_BYTES:
            return
    if not fits(RESERVE_BYTES, files.free_bytes(state)):
        return
    handle = os.open(state / RESERVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, RESERVE_BYTES)
    finally:
        os.close(handle)


def give_up_reserve(state: Path, kept: int) -> None:
    """If the disk is full, release all but `kept` bytes of the reserve. Raises: OSError."""
    if not is_full(state):
        return
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(state / RESERVE, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(handle).st_size > kept:
                os.ftruncate(handle, kept)
        finally:
            os.close(handle)
