"""The ring: files of lines on the node's disk, of which the oldest go, bounded in bytes and in age.

`put` is called in the loop's thread and never waits; a thread of its own writes what has come, twenty times a second at
most. Nothing is fsynced: a kill of the front loses the last 50 ms, a loss of power what the kernel hadn't written. The
files may be cut, removed or unwritable at any time, and the disk may be full: lines are dropped meanwhile, counted, and
the ring and the node's log say how many.

Lines have their time first (`records`); `ring_files` has the files.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from control.protocol.counts import counted
from edge_runtime.telemetry import records
from edge_runtime.telemetry.ring_files import LinesUnwritten, RingFiles

log = logging.getLogger("skerry.ring")

FOLDER: Final = "telemetry"
"""Name of the folder in the state directory."""
WAITING: Final = 1 << 20
"""Bytes that may wait to be written."""
PAUSE: Final = 0.05
"""Seconds in which lines come together before they are written."""
RETRY: Final = 1.0
"""Seconds from lines that couldn't be written to the next attempt."""
LOOK: Final = 60.0
"""Seconds between two looks for files that are too old, while nothing is written."""
TOLD: Final = 10.0
"""Seconds between two lines about lines that were dropped."""
CLOSE_LIMIT: Final = 2.0
"""Seconds that `close` waits for what is still to be written."""


class Ring:
    """Writes lines below `folder`. One process at a time does: the folder's lock is its."""

    def __init__(self, folder: Path, limit: int, age: float, node: str = "") -> None:
        """`limit` is in bytes, `age` in seconds; `node` is the node's name, for the lines that the ring itself adds."""
        self.folder = folder
        self.node = node
        self.dropped = 0
        """Lines that were dropped since the start, as far as the loop's thread knows: nothing could be written."""
        self.trouble = ""
        """Why lines can't be written now; empty while they can."""
        self.taps: list[Callable[[bytes], None]] = []
        """Called with each line in the loop's thread, also with those that are dropped; they must not raise."""
        self._lines: deque[bytes] = deque()
        self._put = 0
        """Bytes put since the start; written in the loop's thread alone."""
        self._done = 0
        """Bytes written or given up since the start; written by the thread alone."""
        self._awake = False
        """The thread has been woken, and will look at the lines once more."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._files = RingFiles(folder, limit, age)
        self._lost = 0
        """Lines that the thread couldn't write."""
        self._told = 0
        """Dropped lines that were told of."""
        self._told_at = float("-inf")
        """When they were (monotonic clock, seconds)."""
        self._looked = float("-inf")
        """When files that are too old were last looked for (monotonic clock, seconds)."""
        self._thread = threading.Thread(target=self._run, name="ring", daemon=True)

    def start(self) -> None:
        """Begin to write; lines that were put before wait for it."""
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have a line, which ends with LF, written soon. Called in the loop's thread."""
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
        """Return what tells whether all that was put so far has been written, or given up."""
        position = self._put
        return lambda: self._done >= position

    def close(self) -> None:
        """Write what waits, within `CLOSE_LIMIT`, and let the folder go."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_LIMIT)

    @property
    def lost(self) -> int:
        """Lines that were dropped since the start, whatever the reason."""
        return self.dropped + self._lost

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._wake.wait(RETRY if self.trouble else LOOK):
                self._closing.wait(PAUSE)
                self._wake.clear()
                # Lines that are put from here on wake the thread again.
                self._awake = False
            self._turn()
            if self.trouble:
                self._closing.wait(RETRY)
        self._turn()
        self._files.close()

    def _turn(self) -> None:
        """Write what has come, remove what is too old, and say what was dropped."""
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
