"""The log of the functions: what calls write to it, as far as each function and all of them together may."""

import logging
import time
from typing import Final

from edge_runtime.dispatch.served_functions import ServedFunction
from edge_runtime.ipc import frames
from edge_runtime.logs import TokenBucket

guest_log = logging.getLogger("skerry.guest")
log = logging.getLogger("skerry.calls")

BURST: Final = 4 << 20
RATE: Final = 256 * 1024
"""Bytes that the calls of all functions together may log at once, and then per second."""
LINE: Final = 100
"""Bytes that a line counts for besides its text."""
TOLD: Final = 10.0
"""Seconds between two lines about the lines that were left out of a function's log."""
SILENT: Final = 1.0
"""Seconds in which a function's failures of one kind are logged once; the metrics count all of them."""


class GuestLog:
    def __init__(self) -> None:
        self.budget = TokenBucket(BURST, RATE)
        """What the calls of all functions may log."""

    def write(self, served: ServedFunction, text: str) -> None:
        """Log the lines of `text`, which a call of the function wrote."""
        tally, now = served.tally, time.monotonic()
        lines = text.splitlines()
        for at, line in enumerate(lines):
            size = len(line) + LINE
            if not (tally.log.take(size, now) and self.budget.take(size, now)):
                tally.log_dropped += len(lines) - at
                break
            guest_log.info("%s %d: %s", served.function.name, served.function.version, line)
        if tally.log_dropped and now - tally.log_told >= TOLD and tally.log_dropped != tally.log_said:
            tally.log_told, tally.log_said = now, tally.log_dropped
            text = "%s: %d lines of its log were left out since the start, because functions log too much"
            log.warning(text, served.function.name, tally.log_dropped)

    def fault(self, served: ServedFunction, fault: frames.Fault) -> None:
        """Log a call's fault, with what its guest wrote to stderr; faults of the client's making aren't logged."""
        if fault.log:
            self.write(served, fault.log)
        if fault.status < 500:
            return
        now, logged = time.monotonic(), served.tally.logged
        if now - logged.get(fault.code, -SILENT) >= SILENT:
            logged[fault.code] = now
            log.warning("%s %d: %s [%s]", served.function.name, served.function.version, fault.message, fault.code)
