"""`python -m edge_runtime.oneshot.rehearse`: try a release on a copy of the node's data, while the node serves.

The front starts it with a `RehearsalTask` on stdin, and reads a `wire.RehearsalResult` from the last line of stdout.
This process watches two others in turn: one that copies the database, and one behind the fence that applies the release
to the copy (`rehearsed_release`). It ends them when their time is over, or when they would get in the node's way, and
then removes the copy. If it is killed itself, the kernel kills them, and the front removes the copy.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from control.protocol import faults, wire
from edge_runtime import files, wal
from edge_runtime.errors import CodedError
from edge_runtime.ipc.rehearsal_messages import MESSAGE, RehearsalTask, Told
from edge_runtime.oneshot import database_copy
from edge_runtime.oneshot.forked import watched_lines
from edge_runtime.sandbox import fence
from edge_runtime.state import REHEARSAL

FACTOR: Final = 3
"""The disk may be needed for the copy, for what the release adds to it, and for logs and temporary files: each up to
the size of the database with its log."""
RESERVE: Final = 256 * 1024 * 1024
"""Bytes of the disk that stay free for the node in any case."""
LEAST_RATE: Final = 20_000_000.0
"""Bytes a second that a disk takes at least: how long a small database's copy takes says nothing about the disk."""
LOG_SHARE: Final = 4
"""The copy is given up when the node's log has its limit divided by this: until the copy is made, the log can't restart
from its beginning, and from then on writers wait for that."""


class Untried(CodedError):
    """The release couldn't be tried: its rehearsal says nothing about it."""


_decode_told: Final = msgspec.json.Decoder(Told).decode


class RehearsalWatch:
    """Says whether the rehearsal may go on; called again and again while its processes run."""

    def __init__(self, task: RehearsalTask, place: Path, seconds: float) -> None:
        self.doing = "it began"
        self.copying = True
        self._until = time.monotonic() + seconds
        self._flushed: dict[Path, tuple[int, int]] = {}
        """By file of the copy: its size and time when it was last written to disk."""
        self._task = task
        self._place = place
        self._database = Path(task.state) / wal.FILE

    def look(self) -> None:
        """Raises: Untried, when the rehearsal must end."""
        if time.monotonic() > self._until:
            text = f"The rehearsal took longer than {self._task.seconds:.0f} s. What ran then: {self.doing}"
            raise Untried("rehearsal_timeout", text)
        if (free := files.free_bytes(self._place)) < RESERVE:
            raise Untried("rehearsal_no_room", f"Only {free >> 20} MiB are left on the disk of {self._place.parent}.")
        if not self.copying:
            self._flush()
        else:
            index = wal.read(self._database)
            if index is not None and index.bytes > self._task.wal_limit // LOG_SHARE:
                raise Untried(
                    "rehearsal_log_long",
                    f"The write-ahead log reached {index.bytes >> 20} MiB while the database was copied; it can't "
                    "restart before the copy is made.",
                )

    def _flush(self) -> None:
        """Write to disk what is new in the copy: a COMMIT that had to write all of it would keep the node's own writes
        waiting."""
        database = self._place / wal.FILE
        for path in (database, wal.log_of(database)):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                seen = stat.st_size, stat.st_mtime_ns
                if self._flushed.get(path) == seen:
                    continue
                self._flushed[path] = seen
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


def rehearse(task: RehearsalTask) -> wire.RehearsalResult:
    """Try the release, and return what came of it. The copy is gone afterwards."""
    began = time.monotonic()
    place = Path(task.state) / REHEARSAL
    result = wire.RehearsalResult("unknown")
    try:
        shutil.rmtree(place, ignore_errors=True)
        result = _rehearse(task, place)
    except Untried as untried:
        result = wire.RehearsalResult("unknown", untried.code, untried.message[:MESSAGE])
    except OSError as error:
        text = f"The rehearsal couldn't be made: {error}."
        result = wire.RehearsalResult("unknown", "rehearsal_impossible", text[:MESSAGE])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return msgspec.structs.replace(result, seconds=round(time.monotonic() - began, 3))


def _rehearse(task: RehearsalTask, place: Path) -> wire.RehearsalResult:
    """Raises: Untried; OSError."""
    database = Path(task.state) / wal.FILE
    sizes = wal.sizes(database)
    size = sizes.file + sizes.log
    if sizes.disk_free < (needed := FACTOR * size + RESERVE):
        text = f"The rehearsal may need {needed >> 20} MiB of {task.state}, and {sizes.disk_free >> 20} MiB are free."
        raise Untried("rehearsal_no_room", text)
    for folder in (place, place / wal.FILE.parent, place / wal.TEMPORARY):
        files.make_folder(folder)
    faults.reach("edge.rehearsal.begun")
    watch = RehearsalWatch(task, place, task.seconds)
    target = place / wal.FILE
    watch.doing, began = "the database was copied", time.monotonic()
    _copy(database, target, watch)
    watch.copying, size = False, target.stat().st_size
    rate = max(LEAST_RATE, size / (time.monotonic() - began))
    return msgspec.structs.replace(_play(task, place, watch, rate), database=size)


def _copy(database: Path, target: Path, watch: RehearsalWatch) -> None:
    """Copy the node's file as it is at one moment. Raises: Untried."""

    def begun() -> None:
        _lowest_priority()
        faults.reach("edge.rehearsal.copying")

    def work(out: BinaryIO) -> None:
        try:
            # The process that keeps the file open has been forked by then: it must not wait long for the processor
            # while it has one of the file's locks.
            database_copy.copy_served(database, target, begun)
        except database_copy.CopyFailed as failed:
            out.write(msgspec.json.encode(Told(failing=failed.message, untried=failed.code)) + b"\n")
        else:
            out.write(msgspec.json.encode(Told(doing="copied")) + b"\n")

    told = _last(work, watch)
    if told is None:
        raise Untried("rehearsal_died", "The process that copied the database died.")
    if told.untried:
        raise Untried(told.untried, told.failing)


def _play(task: RehearsalTask, place: Path, watch: RehearsalWatch, rate: float) -> wire.RehearsalResult:
    """Apply the release to the copy. `rate`: bytes that the disk takes in a second. Raises: Untried."""

    def work(out: BinaryIO) -> None:
        _lowest_priority()
        # Imported this late, at the lowest priority: it takes as long as a small copy.
        from edge_runtime.oneshot import rehearsed_release

        def tell(told: Told) -> None:
            out.write(msgspec.json.encode(told) + b"\n")
            out.flush()

        rehearsed_release.play(task, place, rate, tell)

    failing = ""
    result = None

    def heard(told: Told) -> None:
        nonlocal failing
        watch.doing, failing = told.doing or watch.doing, told.failing

    try:
        told = _last(work, watch, heard)
        if told is None or told.result is None:
            if told is not None and told.untried:
                raise Untried(told.untried, told.failing)
            raise Untried("rehearsal_died", f"The process that tried the release died. What ran then: {watch.doing}")
        result = told.result
    except Untried:
        if not failing or result is not None:
            raise
        # It has failed, and only the row that caused it isn't known.
        text = f"{failing}. What ran then: {watch.doing}"
        result = wire.RehearsalResult("failed", "schema_change_failed", text[:MESSAGE])
    return result


def _last(
    work: Callable[[BinaryIO], None], watch: RehearsalWatch, heard: Callable[[Told], None] = lambda _: None
) -> Told | None:
    """Return the last line that a child writes. Raises: Untried."""
    told = None
    lines = watched_lines(work, watch.look)
    try:
        for line in lines:
            told = _decode_told(line)
            heard(told)
    except (ValueError, msgspec.MsgspecError):
        raise Untried("rehearsal_died", f"A process of the rehearsal wrote nonsense while {watch.doing}") from None
    finally:
        lines.close()
    return told


def _lowest_priority() -> None:
    fence.use_idle_scheduling()
    fence.use_idle_disk()


def main() -> int:
    """Do what stdin says; return the exit status."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=RehearsalTask)
    fence.die_with_parent(task.parent)
    # A process supervisor or a terminal may signal the whole group, but the front decides when its children exit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Not yet idle: the first process that it forks has a lock of the node's file for a moment.
    with contextlib.suppress(OSError):
        os.nice(19)
    result = rehearse(task)
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
