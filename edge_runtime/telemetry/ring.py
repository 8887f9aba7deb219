"""The ring: files of lines on the node's disk, limited in bytes and in age; the oldest are removed.

`put` is called in the loop's thread and never waits; a separate thread writes new lines, at most twenty times a second.
Nothing is fsynced: a kill of the front loses the last 50 ms, a power loss what the kernel hadn't written. The files may
be truncated, removed or unwritable at any time, and the disk may be full: meanwhile lines are dropped and counted, and
the ring and the node's log say how many.

Lines begin with their time (`records`). Times in one file don't go back by more than `SLACK`: if the clock is set back,
another file begins. So `search`, which reads the files at the same time, can find a time by bisection.
"""

import contextlib
import fcntl
import logging
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from control.protocol.counts import counted
from edge_runtime.telemetry import records

log = logging.getLogger("skerry.ring")

FOLDER: Final = "telemetry"
"""The name of the folder in the state directory."""
WAITING: Final = 1 << 20
"""The most bytes that may wait to be written."""
PAUSE: Final = 0.05
"""Seconds during which lines are collected before they are written."""
RETRY: Final = 1.0
"""Seconds from a failed write to the next attempt."""
LOOK: Final = 60.0
"""Seconds between two searches for files that are too old, while nothing is written."""
TOLD: Final = 10.0
"""Seconds between two lines about dropped lines."""
CLOSE_LIMIT: Final = 2.0
"""Seconds that `close` waits for lines that aren't written yet."""
SEGMENT: Final = 4 << 20
"""The most bytes of a file; fewer if the ring is small."""
LEAST: Final = 16
"""The fewest files of a full ring, which are removed one at a time."""
SLACK: Final = 5.0
"""Seconds by which times in one file may go back."""

_NAME: Final = re.compile(r"(\d{10})\.ndjson")
_TAIL: Final = 65_536
"""Bytes at a file's end that are read to find its last line."""


class Ring:
    """Writes lines below `folder`, whose lock it holds: only one process at a time does."""

    def __init__(self, folder: Path, limit: int, age: float, node: str = "") -> None:
        """Limit the ring to `limit` bytes and `age` seconds; lines that the ring itself adds name `node`."""
        self.folder = folder
        self.node = node
        self.dropped = 0
        """Lines dropped since the start, as far as the loop's thread knows, because nothing could be written."""
        self.trouble = ""
        """Why lines can't be written now; empty while they can."""
        self.taps: list[Callable[[bytes], None]] = []
        """Called with each line in the loop's thread, even with dropped ones; they must not raise."""
        self._lines: deque[bytes] = deque()
        self._put = 0
        """Bytes put since the start; set only in the loop's thread."""
        self._done = 0
        """Bytes written or given up since the start; set only by the thread."""
        self._awake = False
        """Whether the thread has been woken and will check the lines again."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._files = RingFiles(folder, limit, age)
        self._lost = 0
        """Lines that the thread couldn't write."""
        self._told = 0
        """Dropped lines that were reported."""
        self._told_at = float("-inf")
        """When they were reported (monotonic clock, seconds)."""
        self._looked = float("-inf")
        """When files that are too old were last searched for (monotonic clock, seconds)."""
        self._thread = threading.Thread(target=self._run, name="ring", daemon=True)

    def start(self) -> None:
        """Start writing; earlier lines wait for this."""
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line, which ends with LF, to be written soon. Called in the loop's thread."""
        for tap in self.taps:
            tap(line)
        if self._put - self._done > WAITING:
            self.dropped += 1
            return
        self._put += len(line)
        self._lines.append(line)
        if not self._awake:
            self._awake = True
            self._wake.set()

    def mark(self) -> Callable[[], bool]:
        """Return a function that returns whether everything put so far has been written, or given up."""
        position = self._put
        return lambda: self._done >= position

    def close(self) -> None:
        """Write waiting lines, within `CLOSE_LIMIT`, and unlock the folder."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_LIMIT)

    @property
    def lost(self) -> int:
        """Return the number of lines dropped since the start, for whatever reason."""
        return self.dropped + self._lost

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._wake.wait(RETRY if self.trouble else LOOK):
                self._closing.wait(PAUSE)
                self._wake.clear()
                # Lines put from here on wake the thread again.
                self._awake = False
            self._turn()
            if self.trouble:
                self._closing.wait(RETRY)
        self._turn()
        self._files.close()

    def _turn(self) -> None:
        """Write new lines, remove old files, and report dropped lines."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        trouble = self.trouble
        if lines:
            trouble = self._write(lines)
            self._done += sum(map(len, lines))
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            self._files.remove_old(time.time())
        lost = self.lost
        if lost != self._told and (not lines or not trouble) and now - self._told_at >= TOLD:
            dropped = counted(lost - self._told, "line")
            text = f"dropped of the node's records, which couldn't be written in time: {dropped}"
            trouble = self._write([records.of_node("warning", text, self.node)], own=True)
            if not trouble:
                log.warning("%s", text)
                self._told, self._told_at = lost, now
        if trouble and not self.trouble:
            log.warning("the node's records can't be written below %s, and are dropped: %s", self.folder, trouble)
        self.trouble = trouble

    def _write(self, lines: list[bytes], *, own: bool = False) -> str:
        """Write lines, and return why they couldn't be written; empty if they could. The ring's own aren't counted."""
        try:
            self._lost += self._files.write(lines)
        except LinesUnwritten as failed:
            self._lost += 0 if own else failed.lines
            return str(failed)
        except Exception as failed:
            log.exception("the node's records can't be written")
            self._lost += 0 if own else len(lines)
            return repr(failed)
        return ""


class LinesUnwritten(Exception):
    """Some lines couldn't be written; the message says why."""

    def __init__(self, lines: int, why: str) -> None:
        super().__init__(why)
        self.lines = lines


class RingFiles:
    """Appends lines to the files of a folder, whose lock it has, and removes the oldest files."""

    def __init__(self, folder: Path, limit: int, age: float) -> None:
        self._folder = folder
        self._limit = limit
        self._segment = min(SEGMENT, limit // LEAST)
        self._age = age
        self._most = 4 * max(LEAST, limit // self._segment)
        """The most files: a clock that is repeatedly set back makes many small ones."""
        self._lock = -1
        """The descriptor of the locked file; -1 while it isn't locked."""
        self._file = -1
        """The descriptor of the file being written; -1 while there is none."""
        self._number = 0
        """The number of that file."""
        self._size = 0
        """Its size in bytes."""
        self._began = 0.0
        """The time of its first line (Unix seconds)."""
        self._newest = b""
        """The latest time of its lines."""

    def write(self, lines: list[bytes]) -> int:
        """Append lines to the newest file, or to newer ones; return how many can't be lines of a ring.

        Raises: LinesUnwritten.
        """
        written, unfit, group, size = 0, 0, list[bytes](), 0
        try:
            self._open()
            for line in lines:
                moment = records.time_in(line)
                if moment is None:
                    unfit += 1
                    continue
                back = moment < self._newest and self._goes_back(moment)
                if back or (self._size + size + len(line) > self._segment and self._size + size):
                    written += self._append(group)
                    group, size = [], 0
                    self._begin()
                if moment > self._newest:
                    self._newest = moment
                group.append(line)
                size += len(line)
            written += self._append(group)
        except OSError as error:
            self._close_file()
            raise LinesUnwritten(len(lines) - written, error.strerror or repr(error)) from None
        except _Torn as torn:
            self._close_file()
            raise LinesUnwritten(len(lines) - written - torn.whole, torn.why) from None
        return unfit

    def remove_old(self, now: float) -> None:
        """Remove the oldest files while the ring is too large, or while their lines are too old."""
        if self._file >= 0 and self._size and now - self._began > self._age / LEAST:
            # So that lines can go without newer ones.
            self._close_file()
            self._number += 1
        with contextlib.suppress(OSError):
            found = [(number, os.stat(self._path(number))) for number in self._numbers()]
            # The room that the file being written may still need.
            room = self._segment - self._size if self._file >= 0 else 0
            total = sum(info.st_size for _, info in found)
            for at, (number, info) in enumerate(found):
                old = now - info.st_mtime > self._age
                if not old and total + room <= self._limit and len(found) - at <= self._most:
                    break
                if number == self._number and self._file >= 0:
                    break
                os.unlink(self._path(number))
                total -= info.st_size

    def close(self) -> None:
        self._close_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open(self) -> None:
        """Prepare to append to the newest file. Raises: OSError, when that isn't possible."""
        if self._file >= 0 and not self._same():
            # The file was removed or replaced, or the whole folder was.
            self.close()
            self._number += 1
        if self._lock < 0:
            self._take()
        if self._file >= 0:
            return
        self._number = max([self._number, 1, *self._numbers()])
        self._open_file()
        if self._size >= self._segment or (self._size and time.time() - self._began > self._age / LEAST):
            self._begin()

    def _take(self) -> None:
        """Make the folder if it doesn't exist, and lock it. Raises: OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self._folder.stat().st_mode) != 0o700:
            self._folder.chmod(0o700)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OSError(0, "another process writes there") from None
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

    def _begin(self) -> None:
        """Begin another file."""
        self._close_file()
        self._number += 1
        self._open_file()
        self.remove_old(time.time())

    def _open_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.open(self._path(self._number), flags, 0o600)
        info = os.fstat(self._file)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(0, f"{self._path(self._number)} is no regular file")
        self._size, self._newest, self._began = info.st_size, b"", time.time()
        if self._size:
            self._end_line()
            first = records.time_in(os.pread(self._file, records.TIME_END + 1, 0))
            last = last_time(os.pread(self._file, _TAIL, max(0, self._size - _TAIL)))
            with contextlib.suppress(ValueError):
                self._began = records.seconds_of((first or b"").decode("latin-1"))
            with contextlib.suppress(ValueError):
                # As if the latest possible line came before it.
                self._newest = records.time_text(records.seconds_of((last or b"").decode("latin-1")) + SLACK).encode()

    def _same(self) -> bool:
        """Return whether the open file is still the one with its name, and terminate its last line."""
        mine = os.fstat(self._file)
        try:
            named = os.stat(self._path(self._number), follow_symlinks=False)
        except OSError:
            return False
        if (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino):
            return False
        if mine.st_size != self._size:
            self._size = mine.st_size
            self._end_line()
        return True

    def _end_line(self) -> None:
        """Terminate the file's last line, if a kill, a full disk or somebody truncated it."""
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._size += os.write(self._file, b"\n")

    def _append(self, lines: list[bytes]) -> int:
        """Append lines, and return how many. Raises: OSError; _Torn, when some of them are written."""
        data = b"".join(lines)
        written = 0
        while written < len(data):
            try:
                written += os.write(self._file, data[written:] if written else data)
            except OSError as error:
                if not written:
                    raise
                raise _Torn(data.count(b"\n", 0, written), error.strerror or repr(error)) from None
        if not self._size:
            self._began = time.time()
        self._size += written
        return len(lines)

    def _goes_back(self, moment: bytes) -> bool:
        try:
            return records.seconds_of(moment.decode()) < records.seconds_of(self._newest.decode()) - SLACK
        except ValueError:
            return True

    def _numbers(self) -> list[int]:
        return numbers(self._folder)

    def _path(self, number: int) -> Path:
        return path_of(self._folder, number)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _Torn(Exception):
    """Only some of the lines were written."""

    def __init__(self, whole: int, why: str) -> None:
        super().__init__(why)
        self.whole = whole
        """Lines that were written completely."""
        self.why = why


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the ring's files, the oldest first. Raises: OSError, when the folder can't be read."""
    return sorted(int(found[1]) for name in os.listdir(folder) if (found := _NAME.fullmatch(name)))


def path_of(folder: Path, number: int) -> Path:
    """Return the path of a file of the ring."""
    return folder / f"{number:010}.ndjson"


def last_time(data: bytes) -> bytes | None:
    """Return the time of the last line in `data` that has one."""
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        found = records.time_in(data[start:end])
        if found is not None:
            return found
        end = start
    return None
