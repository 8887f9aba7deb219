"""Decides which calls are traced, and makes their spans once a call has ended, from what is then known about it."""

import math
import os
import random
from collections.abc import Callable
from typing import Final

from control.protocol.trace_context import Place
from edge_runtime.ipc import call_times
from edge_runtime.ipc.call_times import CallTimes
from edge_runtime.redaction import redact
from edge_runtime.telemetry.spans import CLIENT, INTERNAL, SERVER, TraceSpan
from edge_runtime.token_bucket import TokenBucket

BURST, RATE = 100, 20.0
"""The most calls, at once and then per second, that are traced because their callers' traces are."""
_NEVER: Final = 2**60
"""A number of calls that no node ever has."""
_KINDS: Final = {
    call_times.LOCK: ("lock wait", INTERNAL),
    call_times.SQL: ("", CLIENT),
    call_times.HTTP: ("HTTP", CLIENT),
    call_times.COMMIT: ("COMMIT", CLIENT),
}
"""The name and the kind of the spans of steps; SQL is named by its first word."""


class Passed:
    """A call that isn't traced here, but whose HTTP requests pass on its caller's place in a trace."""

    __slots__ = ("_header",)

    def __init__(self, caller: Place) -> None:
        self._header = caller.header()

    def request(self) -> str:
        """Return `traceparent` for another HTTP request of the call."""
        return self._header


class CallTrace:
    """A call that is traced."""

    __slots__ = ("at", "parent", "requests")

    def __init__(self, at: Place, parent: bytes) -> None:
        self.at = at
        """The place of the call's own span."""
        self.parent = parent
        """The id of the caller's span; empty if unknown."""
        self.requests: list[bytes] = []
        """The ids of the spans of its HTTP requests, in order."""

    def request(self) -> str:
        """Return `traceparent` for another HTTP request of the call."""
        if len(self.requests) >= call_times.MOST:
            # It has no span.
            return self.at.header()
        self.requests.append(os.urandom(8))
        return Place(self.at.trace, self.requests[-1]).header()


class CallTracer:
    def __init__(self, share: float, put: Callable[[TraceSpan], None]) -> None:
        """Trace a `share` of the calls whatever their callers do; `put` takes each span."""
        self._share = share
        self._put = put
        self._callers = TokenBucket(BURST, RATE)
        self._untraced = self._draw()
        """The number of calls before the next one of the share."""

    def draw(self) -> bool:
        """Return whether a new call belongs to the share: each does with the same, independent probability.

        Call this once for each call.
        """
        if self._untraced:
            self._untraced -= 1
            return False
        self._untraced = self._draw()
        return True

    def _draw(self) -> int:
        """Draw the number of calls before the next one of the share; a draw for each call would cost more.

        The number has a geometric distribution, as if there were a draw for each call.
        """
        if self._share >= 1:
            return 0
        if self._share <= 0:
            return _NEVER
        chance = 1 - random.random()  # noqa: S311  # this protects no secret
        return int(min(math.log(chance) / math.log1p(-self._share), _NEVER))

    def begin(self, caller: Place | None, now: float, *, drawn: bool) -> CallTrace | None:
        """Return the trace of a call that arrives at `now` (monotonic clock); None if it isn't traced.

        `caller` is the place in the caller's trace, if it has one; `drawn` is the result of `draw`. Callers can have
        their own calls traced, within `BURST` and `RATE`.
        """
        if not drawn and not (caller is not None and caller.sampled and self._callers.take(1, now)):
            return None
        trace, parent = (os.urandom(16), b"") if caller is None else (caller.trace, caller.span)
        return CallTrace(Place(trace, os.urandom(8)), parent)

    def end(
        self,
        trace: CallTrace,
        name: str,
        attributes: dict[str, str | int],
        error: str,
        times: tuple[int, int],
        told: CallTimes | None,
    ) -> None:
        """Make the spans of a call that has ended.

        `times`: its start and end (nanoseconds since 1970); `told`: what its worker reported, if it has answered.
        """
        start, end = times
        put, at = self._put, trace.at
        put(TraceSpan(at, trace.parent, name, start, end, SERVER, attributes, error))
        if told is None:
            return
        began = max(start, end - told.micros * 1000)
        put(TraceSpan(Place(at.trace, os.urandom(8)), at.span, "queue", start, began))
        guest = Place(at.trace, os.urandom(8))
        put(TraceSpan(guest, at.span, "guest", began, end))
        texts = [redact(text, cut=len(text) == call_times.TEXT) for text in told.texts]
        # Of those, the last ones: a call whose worker exited may have been given to another one.
        count = sum(step.kind == call_times.HTTP for step in told.steps)
        requests = iter(trace.requests[max(0, len(trace.requests) - count) :])
        for step in told.steps:
            text, (what, kind) = texts[step.text], _KINDS[step.kind]
            step_start = min(end, began + step.start * 1000)
            step_end = min(end, step_start + step.micros * 1000)
            own = next(requests, None) if step.kind == call_times.HTTP else None
            of: dict[str, str | int] = {}
            if step.kind == call_times.SQL:
                what, of = text.split(" ", 1)[0] or "SQL", {"db.system.name": "sqlite", "db.query.text": text}
            elif step.kind == call_times.HTTP:
                of = {"server.address": text}
            elif step.kind == call_times.COMMIT:
                of = {"db.system.name": "sqlite"}
            put(TraceSpan(Place(at.trace, own or os.urandom(8)), guest.span, what, step_start, step_end, kind, of))
