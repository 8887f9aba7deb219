"""The node's log on stderr: text for people, or one JSON object a line.

A thread writes the log from a bounded queue, so that logging never waits for a reader or a disk. Lines that don't fit
into the queue are dropped and counted; the count is logged as soon as there is room again.
"""

import logging
import os
import re
import select
import threading
import time
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Final, Literal

import orjson

from control.protocol.counts import counted
from edge_runtime.redaction import RedactedRecord, redact

Format = Literal["text", "json"]

FIELDS: Final = ("function", "version", "release", "call", "caller", "node")
"""What a line may have besides, which JSON has in fields of its own: of which call it is."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

QUEUE_BYTES: Final = 1 << 20
"""Bytes that may wait to be written."""
AT_ONCE: Final = 256
"""Lines besides the first that one write has at most."""
FLUSH_LIMIT: Final = 2.0
"""Seconds that the end of the process waits for what is still to be written."""
RETRY: Final = 1.0
"""Seconds from a line that couldn't be written to the next attempt."""
_STDERR: Final = 2


class JsonLines(logging.Formatter):
    node = ""
    """The node's name, which each line has; '' until it is known."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        own = record.__dict__
        if self.node:
            line["node"] = self.node
        line |= {name: own[name] for name in FIELDS if name in own}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()

    def formatException(self, caught: Any) -> str:
        return redact(super().formatException(caught))


class Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return one line, with control characters escaped: text of guests and clients can't control a terminal."""
        return printable(super().formatMessage(record))

    def formatException(self, caught: Any) -> str:
        return redact(super().formatException(caught))

    def formatTime(self, record: logging.LogRecord, _format: str | None = None) -> str:
        return _time(record)


class LogHandler(logging.Handler):
    """Writes lines to a descriptor, in a thread of its own."""

    def __init__(self, descriptor: int = _STDERR, limit: int = QUEUE_BYTES) -> None:
        super().__init__()
        self.dropped = 0
        """Lines dropped since the start."""
        self._reported = 0
        """Dropped lines of which the log has told."""
        self._descriptor = descriptor
        self._limit = limit
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._put = 0
        """Bytes put into the queue since the start; written by `emit` alone, under the handler's lock."""
        self._done = 0
        """Bytes written or given up since the start; written by the thread alone."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception as error:
            # `Handler.handleError` would write to stderr itself, and wait there.
            line = f"a line of the log at {record.pathname}:{record.lineno} can't be made: {error!r}\n".encode()
        if self._put - self._done + len(line) > self._limit:
            self.dropped += 1
            return
        self._put += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until everything is written, at most `FLUSH_LIMIT` seconds. Called at the end of the process."""
        end = time.monotonic() + FLUSH_LIMIT
        while self._done < self._put and time.monotonic() < end:
            time.sleep(0.005)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _run(self) -> None:
        while True:
            # What came together goes out together: each write costs the other threads a hand-over of the interpreter,
            # which takes long where this thread has to wait for a processor.
            lines = [self._lines.get()]
            lines += [self._lines.get() for _ in range(min(self._lines.qsize(), AT_ONCE))]
            written = self._write(b"".join(lines))
            self._done += sum(map(len, lines))
            if not written:
                self.dropped += len(lines)
                time.sleep(RETRY)
            elif self.dropped > self._reported and self._put - self._done < self._limit // 2:
                self._tell()

    def _tell(self) -> None:
        count = self.dropped - self._reported
        text = "dropped of this log, which wasn't read in time or couldn't be written: %s"
        record = logging.LogRecord("skerry.log", logging.WARNING, "", 0, text, (counted(count, "line"),), None)
        if self._write(self._line(record)):
            self._reported += count

    def _write(self, line: bytes) -> bool:
        """Write a line, for as long as that takes, and return whether it could be written."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                select.select([], [self._descriptor], [], RETRY)
            except OSError:
                return False
        return True


def printable(text: str) -> str:
    """Return a line with its control characters escaped, those that end lines included."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def dropped() -> int:
    """Return the lines of the log that were dropped since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogHandler))


def name_node(name: str) -> None:
    """Have each line of JSON say which node's it is, from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.node = name


def set_up(form: Format, *, debug: bool = False) -> None:
    """Set the log of this process up."""
    logging.setLogRecordFactory(RedactedRecord)
    handler = LogHandler()
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
