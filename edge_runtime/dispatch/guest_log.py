"""The functions' log: what calls write to it, within the limits of each function and of all together."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from control.protocol.counts import counted
from edge_runtime import clock
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.served_functions import Tally
from edge_runtime.ipc import frames, log_lines
from edge_runtime.redaction import redact
from edge_runtime.telemetry import records
from edge_runtime.token_bucket import TokenBucket

guest_log = logging.getLogger("skerry.guest")
log = logging.getLogger("skerry.calls")

BURST: Final = 4 << 20
RATE: Final = 256 * 1024
"""Bytes that the calls of all functions together may log at once, and then per second."""
LINE: Final = 100
"""Bytes that a line counts for in addition to its text."""
AT_ONCE: Final = 200
"""Lines that are logged before other work gets the event loop: about a millisecond."""
HELD: Final = 4 << 20
"""Characters that may wait to be logged."""
TOLD: Final = 10.0
"""Seconds between two lines about the lines that were left out of a function's log."""
_LEVELS: Final = {level: getattr(logging, level.upper()) for level in records.LEVELS}
SILENT: Final = 1.0
"""Seconds in which a function's failures of one kind are logged once; the metrics count all of them."""


class _Lines:
    """A call's output that isn't fully logged yet. It is split into lines one at a time: most of a flood is never
    logged."""

    __slots__ = ("_at", "_text", "fields", "tally", "who")

    def __init__(self, tally: Tally, who: str, fields: dict[str, Any], text: str) -> None:
        """`who` names the function and the call in text, `fields` do the same in records."""
        self.tally = tally
        self.who = who
        self.fields = fields
        self._text = text
        self._at = 0
        """The position at which the next line begins."""

    def __len__(self) -> int:
        """Return the characters of the whole text."""
        return len(self._text)

    @property
    def over(self) -> bool:
        """Whether there are no lines left."""
        return self._at >= len(self._text)

    def next(self) -> str | None:
        """Return the next line, None after the last. A line ends with LF, or CR LF."""
        text, at = self._text, self._at
        if at >= len(text):
            return None
        end = text.find("\n", at)
        if end < 0:
            end = len(text)
        self._at = end + 1
        return text[at : end - 1 if end > at and text[end - 1] == "\r" else end]

    def leave(self) -> int:
        """Drop the remaining lines, and return how many there were."""
        text, at = self._text, self._at
        self._at = len(text)
        return text.count("\n", at) + (at < len(text) and text[-1] != "\n")


class GuestLog:
    def __init__(self, keep: Callable[[bytes], None] | None = None, node: str = "") -> None:
        """`keep` is given each line as a record (`telemetry.records`); `node` is the node's name."""
        self.budget = TokenBucket(BURST, RATE)
        """What the calls of all functions may log."""
        self._keep = keep
        self.node = node
        self._waiting: deque[_Lines] = deque()
        self._held = 0
        """Characters of the texts that wait."""

    def write(self, call: Call, written: bytes, *, cut: bool = False) -> None:
        """Log what a dispatched call wrote to its log; `cut`: it was stopped while it wrote.

        Many lines are logged a few at a time: the event loop does other work in between.
        """
        if not written:
            return
        served = call.served
        written, told = log_lines.without_loss(written)
        # All of it at once: a value may have been written in pieces, or span lines.
        cut = cut or bool(told) or len(written) >= served.function.manifest.log_bytes
        text = redact(written.decode(errors="replace"), cut=cut) + told.decode()
        fields = fields_of(call)
        if self.node:
            fields["node"] = self.node
        lines = _Lines(served.tally, shown_with(f"{call.name} {served.function.version}", call), fields, text)
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
        """Log the next lines, and the rest in later iterations of the event loop."""
        now, waiting, count = clock.monotonic(), self._waiting, 0
        moment = records.time_text(time.time())
        while waiting and count < AT_ONCE:
            lines = waiting[0]
            tally = lines.tally
            while count < AT_ONCE and (line := lines.next()) is not None:
                count += 1
                cost = len(line) + LINE
                if not (tally.log.take(cost, now) and self.budget.take(cost, now)):
                    tally.log_dropped += 1 + lines.leave()
                    break
                level, text = log_lines.level_of(line)
                guest_log.log(_LEVELS[level], "%s: %s", lines.who, text, extra=lines.fields)
                if self._keep is not None:
                    self._keep(
                        records.encode(
                            {"t": moment, "kind": records.LOG, "level": level, **lines.fields, "message": text}
                        )
                    )
            if lines.over:
                waiting.popleft()
                self._held -= len(lines)
                self._tell(tally)
        if waiting:
            asyncio.get_running_loop().call_soon(self._turn)

    def _tell(self, tally: Tally) -> None:
        """Log from time to time that lines were left out."""
        now = clock.monotonic()
        if tally.log_dropped and now - tally.log_told >= TOLD and tally.log_dropped != tally.log_said:
            tally.log_told, tally.log_said = now, tally.log_dropped
            text = "%s: left out of its log since the start, because functions log too much: %s"
            log.warning(text, tally.name, counted(tally.log_dropped, "line"), extra={"function": tally.name})

    def fault(self, call: Call, fault: frames.Fault) -> None:
        """Log a call's fault; faults that the client caused aren't logged."""
        if fault.status < 500:
            return
        now, logged = clock.monotonic(), call.served.tally.logged
        if now - logged.get(fault.code, -SILENT) >= SILENT:
            logged[fault.code] = now
            who = shown_with(f"{call.name} {call.served.function.version}", call)
            log.warning("%s: %s [%s]", who, fault.message, fault.code, extra=fields_of(call))


def shown_with(what: str, call: Call) -> str:
    """Return how the log names something that a call asked for: with the call's caller and id, if it has them."""
    caller, request_id = call.via.caller, call.request_id
    return f"{what}{f' ({caller})' if caller else ''}{f' {request_id.decode()}' if request_id else ''}"


def fields_of(call: Call) -> dict[str, Any]:
    """Return a record's fields about a dispatched call, in addition to its text."""
    served = call.served
    fields = {"function": call.name, "version": served.function.version, "release": served.release}
    if call.request_id:
        fields["call"] = call.request_id.decode()
    if call.via.caller:
        fields["caller"] = call.via.caller
    return fields
