"""Puts the node's own warnings and errors into the ring, besides what its functions wrote."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from edge_runtime.logs import FIELDS
from edge_runtime.redaction import redact
from edge_runtime.telemetry import records

ELSEWHERE: Final = ("skerry.guest", "skerry.ring")
"""Logs whose lines reach the ring in another way."""
_LEVELS: Final = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))
MESSAGE: Final = 8192
"""The most characters of a message that are kept."""


class RingHandler(logging.Handler):
    def __init__(self, put: Callable[[bytes], None], later: Callable[..., object], node: str) -> None:
        """Use `put` in the loop's thread, which calls this; `later` schedules what other threads log in the loop."""
        super().__init__(logging.WARNING)
        self._put = put
        self._later = later
        self.node = node
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in ELSEWHERE:
            return
        try:
            line = self._line(record)
            if threading.get_ident() == self._thread:
                self._put(line)
            else:
                self._later(self._put, line)
        except Exception:  # noqa: S110
            # The log itself has the line, and reporting an error here could cause more. (The loop may have ended.)
            pass

    def _line(self, record: logging.LogRecord) -> bytes:
        level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
        text = redact(record.getMessage())[:MESSAGE]
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text} ({record.exc_info[0].__name__}; the node's log has the traceback)"
        own = record.__dict__
        fields = {"t": records.time_text(record.created), "kind": records.NODE, "level": level}
        fields |= {name: own[name] for name in FIELDS if name in own}
        if self.node:
            fields["node"] = self.node
        return records.encode({**fields, "message": text})
