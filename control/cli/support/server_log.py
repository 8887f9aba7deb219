"""The log of `skerry serve`, on stderr.

A thread writes it from a bounded queue, so that no request waits for the log's reader or for a disk. Lines for which
there is no room are dropped and counted; once there is room again, a line says how many.
"""

import logging
import os
import select
import time
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Final

from control.protocol.counts import counted

LINES: Final = 4096
"""Log records that may wait to be written."""
FLUSH_LIMIT: Final = 2.0
"""Seconds that the end of the process waits for what is still to be written."""
RETRY: Final = 1.0
"""Seconds after which a descriptor that takes nothing is tried again."""
_STDERR: Final = 2


class Queued(QueueHandler):
    """The handler of all loggers: it puts a record into the queue and never waits."""

    queue: "Queue[logging.LogRecord]"

    def __init__(self, lines: int = LINES) -> None:
        super().__init__(Queue(lines))
        # Messages alone: `logging.basicConfig` would have it put level and logger before them, as the writer does.
        self.setFormatter(logging.Formatter())
        self.dropped = 0
        """Lines dropped since the start."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a record that can't be formatted: writing of it to stderr, as logging does, may wait for a reader."""
        self.dropped += 1

    def flush(self) -> None:
        """Wait until everything is written, for `FLUSH_LIMIT` seconds at most. Called at the process's end."""
        end = time.monotonic() + FLUSH_LIMIT
        while self.queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)


class LogWriter(QueueListener):
    """The thread that writes. It isn't a `logging.Handler`: the process's end would wait for the handler's lock."""

    def __init__(self, queued: Queued, descriptor: int = _STDERR) -> None:
        super().__init__(queued.queue)
        self._queued = queued
        self._descriptor = descriptor
        self._told = 0
        self._formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self._formatter.converter = time.gmtime

    def handle(self, record: logging.LogRecord) -> None:
        try:
            self._handle(record)
        except Exception:
            # Any error, such as too little memory, costs this line alone: without this thread there is no log.
            self._queued.dropped += 1

    def _handle(self, record: logging.LogRecord) -> None:
        self._write(record)
        count = self._queued.dropped - self._told
        if count and self._queued.queue.qsize() < self._queued.queue.maxsize // 2:
            self._told += count
            text = "dropped of this log, which wasn't read in time or couldn't be written: %s"
            self._write(logging.LogRecord("skerry.log", logging.WARNING, "", 0, text, (counted(count, "line"),), None))

    def _write(self, record: logging.LogRecord) -> None:
        """Write a line, however long that takes."""
        left = memoryview(self._formatter.format(record).encode(errors="backslashreplace") + b"\n")
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                select.select([], [self._descriptor], [], RETRY)
            except OSError:
                self._queued.dropped += 1
                return


def set_up(level: str) -> None:
    """Set up logging for the whole process: lines of `level` and above, with a time in UTC.

    Of libraries only warnings and above are logged: their requests may have secrets.
    """
    queued = Queued()
    LogWriter(queued).start()
    logging.basicConfig(level=logging.WARNING, handlers=[queued], force=True)
    logging.getLogger("skerry").setLevel(level.upper())
    # While the database is away its pool warns with tracebacks; control's own lines say the same.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
