"""Writes the log of a control or node process in a thread, so that logging never waits for a reader or a disk.

Lines wait in a bounded queue. Those that don't fit are dropped and counted; as soon as there is room again, a line says
how many were dropped.
"""

import logging
import os
import select
import threading
import time
from queue import SimpleQueue
from typing import Final

from control.protocol.counts import counted

QUEUE_BYTES: Final = 1 << 20
"""Bytes that may wait to be written."""
AT_ONCE: Final = 256
"""The most lines in one write besides the first."""
FLUSH_LIMIT: Final = 2.0
"""Seconds that the process waits at its end for lines that aren't written yet."""
RETRY: Final = 1.0
"""Seconds from a failed write to the next attempt."""
_STDERR: Final = 2


class LogHandler(logging.Handler):
    """Writes lines to a descriptor, in its own thread, which survives any error."""

    def __init__(self, descriptor: int = _STDERR, limit: int = QUEUE_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._limit = limit
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._refused = 0
        """Lines that didn't fit; set only by `emit`, under the handler's lock."""
        self._put = 0
        """Bytes put into the queue since the start; set only by `emit`."""
        self._lost = 0
        """Lines that couldn't be written; set only by the thread."""
        self._done = 0
        """Bytes written or given up since the start; set only by the thread."""
        self._reported = 0
        """Dropped lines that the log has reported; set only by the thread."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Return the number of lines dropped since the start."""
        return self._refused + self._lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception as error:
            # `Handler.handleError` would write to stderr itself, and could block there.
            line = f"a line of the log at {record.pathname}:{record.lineno} can't be made: {error!r}\n".encode()
        if self._put - self._done + len(line) > self._limit:
            self._refused += 1
            return
        self._put += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until everything is written, for at most `FLUSH_LIMIT` seconds. Called when the process ends."""
        end = time.monotonic() + FLUSH_LIMIT
        while self._done < self._put and time.monotonic() < end:
            time.sleep(0.005)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _run(self) -> None:
        while True:
            try:
                self._write_next()
            except Exception:
                # Any error, such as too little memory, loses only these lines: without this thread there is no log.
                time.sleep(RETRY)

    def _write_next(self) -> None:
        """Wait for lines and write them. Raises: any error of the write; the lines are then counted as lost."""
        lines = [self._lines.get()]
        written = False
        try:
            # Waiting lines are written together: each write makes the other threads hand over the interpreter, which
            # takes long where this thread has to wait for a processor.
            for _ in range(min(self._lines.qsize(), AT_ONCE)):
                lines.append(self._lines.get())
            self._write(b"".join(lines))
            written = True
        finally:
            self._done += sum(map(len, lines))
            self._lost += 0 if written else len(lines)
        if self.dropped > self._reported and self._put - self._done < self._limit // 2:
            self._report()

    def _report(self) -> None:
        count = self.dropped - self._reported
        text = "dropped of this log, which wasn't read in time or couldn't be written: %s"
        self._write(
            self._line(logging.LogRecord("skerry.log", logging.WARNING, "", 0, text, (counted(count, "line"),), None))
        )
        self._reported += count

    def _write(self, lines: bytes) -> None:
        """Write lines, however long that takes. Raises: OSError, when they can't be written."""
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                select.select([], [self._descriptor], [], RETRY)
