"""The node's log on stderr: text for people, or one JSON object per line. `control.protocol.log_writer` writes it."""

import logging
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from control.protocol.log_writer import LogHandler
from edge_runtime.redaction import RedactedRecord, redact

Format = Literal["text", "json"]

FIELDS: Final = ("function", "version", "release", "call", "caller", "node")
"""Further fields of a line in JSON: which call it is about."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class JsonLines(logging.Formatter):
    node = ""
    """The node's name in each line; '' until it is known."""

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
        """Return one line, with control characters escaped: guests' and clients' text can't control a terminal."""
        return printable(super().formatMessage(record))

    def formatException(self, caught: Any) -> str:
        return redact(super().formatException(caught))

    def formatTime(self, record: logging.LogRecord, _format: str | None = None) -> str:
        return _time(record)


def printable(text: str) -> str:
    """Return a line with its control characters escaped, including line breaks."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def dropped() -> int:
    """Return the number of lines dropped from the log since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogHandler))


def name_node(name: str) -> None:
    """Put the node's name into each line of JSON from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.node = name


def set_up(form: Format, *, debug: bool = False) -> None:
    """Set up this process's log."""
    logging.setLogRecordFactory(RedactedRecord)
    handler = LogHandler()
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
