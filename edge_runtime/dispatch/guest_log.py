"""The log of the functions: what calls write to it, as far as each function and all of them together may."""

import asyncio
import logging
import time
from collections import deque
from typing import Final

from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.ipc import frames
from edge_runtime.token_bucket import TokenBucket

guest_log = logging.getLogger("skerry.guest")
log = logging.getLogger("skerry.calls")

BURST: Final = 4 << 20
RATE: Final = 256 * 1024
"""Bytes that the calls of all functions together may log at once, and then per second."""
LINE: Final = 100
"""Bytes that a line counts for besides its text."""
AT_ONCE: Final = 200
"""Lines that are logged before other work gets the loop: about a millisecond of it."""
HELD: Final = 4 << 20
"""Characters that may wait to be logged."""
TOLD: Final = 10.0
"""Seconds between two lines about the lines that were left out of a function's log."""
SILENT: Final = 1.0
"""Seconds in which a function's failures of one kind are logged once; the metrics count all of them."""


class _Lines:
    """What a call wrote, of which some isn't logged yet. It is cut into lines one after the other: most of what floods
    the log is never logged."""

    __slots__ = ("_at", "_text", "extra", "served", "who")

    def __init__(self, served: ServedFunction, who: str, extra: dict[str, str] | None, text: str) -> None:
        self.served = served
        self.who = who
        self.extra = extra
        self._text = text
        self._at = 0
        """Where the next line begins."""

    def __len__(self) -> int:
        """Return the characters of the whole text."""
        return len(self._text)

    @property
    def over(self) -> bool:
        """Whether no line is left."""
        return self._at >= len(self._text)

    def next(self) -> str | None:
        """Return the next line, None behind the last. A line ends with LF, or CR LF."""
        text, at = self._text, self._at
        if at >= len(text):
            return None
        end = text.find("\n", at)
        if end < 0:
            end = len(text)
        self._at = end + 1
        return text[at : end - 1 if end > at and text[end - 1] == "\r" else end]

    def leave(self) -> int:
        """Return how many lines are left, and leave them out."""
        text, at = self._text, self._at
        self._at = len(text)
        return text.count("\n", at) + (at < len(text) and text[-1] != "\n")


class GuestLog:
    def __init__(self) -> None:
        self.budget = TokenBucket(BURST, RATE)
        """What the calls of all functions may log."""
        self._waiting: deque[_Lines] = deque()
        self._held = 0
        """Characters of the texts that wait."""

    def write(self, served: ServedFunction, text: str, caller: str = "") -> None:
        """Log the lines of `text`, which a call of the function wrote; `caller` is the call's, if it has one.

        Many lines are logged a few at a time: the loop's other work goes on in between.
        """
        lines = _Lines(served, *_who(served, caller), text)
        if self._held + len(text) > HELD:
            served.tally.log_dropped += lines.leave()
            self._tell(served.tally)
            return
        began = bool(self._waiting)
        self._held += len(text)
        self._waiting.append(lines)
        if not began:
            self._turn()

    def _turn(self) -> None:
        """Log the next lines, and the others in later turns of the loop."""
        now, waiting, count = time.monotonic(), self._waiting, 0
        while waiting and count < AT_ONCE:
            lines = waiting[0]
            tally = lines.served.tally
            while count < AT_ONCE and (line := lines.next()) is not None:
                count += 1
                cost = len(line) + LINE
                if not (tally.log.take(cost, now) and self.budget.take(cost, now)):
                    tally.log_dropped += 1 + lines.leave()
                    break
                guest_log.info("%s: %s", lines.who, line, extra=lines.extra)
            if lines.over:
                waiting.popleft()
                self._held -= len(lines)
                self._tell(tally)
        if waiting:
            asyncio.get_running_loop().call_soon(self._turn)

    def _tell(self, tally: Tally) -> None:
        """Log that lines were left out, now and then."""
        now = time.monotonic()
        if tally.log_dropped and now - tally.log_told >= TOLD and tally.log_dropped != tally.log_said:
            tally.log_told, tally.log_said = now, tally.log_dropped
            text = "%s: %d lines of its log were left out since the start, because functions log too much"
            log.warning(text, tally.name, tally.log_dropped)

    def fault(self, served: ServedFunction, fault: frames.Fault, caller: str = "") -> None:
        """Log a call's fault, with what its guest wrote to stderr; faults of the client's making aren't logged."""
        if fault.log:
            self.write(served, fault.log, caller)
        if fault.status < 500:
            return
        now, logged = time.monotonic(), served.tally.logged
        if now - logged.get(fault.code, -SILENT) >= SILENT:
            logged[fault.code] = now
            who, extra = _who(served, caller)
            log.warning("%s: %s [%s]", who, fault.message, fault.code, extra=extra)


def shown_with(what: str, caller: str) -> str:
    """Return how the log names something that a caller has asked for; without the caller if there is none."""
    return f"{what} ({caller})" if caller else what


def _who(served: ServedFunction, caller: str) -> tuple[str, dict[str, str] | None]:
    """Return how a line names a function and the call's caller, and what the line has besides as a record."""
    name = f"{served.function.name} {served.function.version}"
    return shown_with(name, caller), {"caller": caller} if caller else None
