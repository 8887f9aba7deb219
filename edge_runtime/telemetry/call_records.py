"""Makes records of the node's slow calls, and of those that failed.

A call is slow if it took longer than all but sixteen of its function's calls of the hour. A call itself only costs a
comparison; the records are made afterwards, a few times a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from edge_runtime.ipc import call_times
from edge_runtime.ipc.call_times import CallTimes, Slowest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.redaction import redact
from edge_runtime.telemetry import records
from edge_runtime.token_bucket import TokenBucket

log = logging.getLogger("skerry.calls")

PERIOD: Final = 0.25
"""Seconds during which noted calls are collected."""
MOST_NOTED: Final = 64
"""Calls of one function that are noted in that time; others are only counted."""
BURST, RATE = 30, 1.0
"""The most records of one function's failed calls, at once and then per second."""
BURST_OF_ALL, RATE_OF_ALL = 300, 10.0
"""The same of all functions together."""
PATH: Final = 300
"""The most characters of a path in a record."""


class NotedCall(NamedTuple):
    """A call that was slow or failed."""

    at: float
    """When it ended (Unix seconds)."""
    now: float
    """The same on the monotonic clock."""
    function: LocalFunction
    release: int
    request_id: bytes
    """The call's id."""
    method: str
    path: str
    outcome: str
    """"ok", or why it failed."""
    status: int
    seconds: float
    """From its arrival to its end."""
    took: float | None
    """Of these, the seconds in its worker; None if no worker ran it, or that isn't known."""
    times: CallTimes | None


class NotingFunction(Protocol):
    """What is counted about a function's noted calls."""

    name: str
    slow: float
    noted: list[NotedCall]
    unnoted: int


class _Kept:
    """What decides which calls of a function become records."""

    def __init__(self) -> None:
        self.slowest = Slowest()
        self.failures = TokenBucket(BURST, RATE)


class CallRecords:
    def __init__(
        self,
        functions: Callable[[], Iterable[NotingFunction]],
        put: Callable[[bytes], None],
        node: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make records of the counted functions that `functions` returns.

        `put` takes each record, a line of JSON; `node` is the node's name.
        """
        self._functions = functions
        self._put = put
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._all = TokenBucket(BURST_OF_ALL, RATE_OF_ALL)
        self.node = node

    async def run(self) -> None:
        """Make records until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                self.make()
            except Exception:
                log.exception("the records of calls can't be made")

    def make(self) -> None:
        """Make the records of the noted calls."""
        now = self._clock()
        for function in list(self._functions()):
            kept = self._kept.get(function.name)
            if function.noted:
                noted, function.noted = function.noted, []
                if kept is None:
                    kept = self._kept[function.name] = _Kept()
                self._of(function, kept, noted)
            elif kept is not None and now >= kept.slowest.until:
                # Another hour begins, with a lower bar.
                kept.slowest.add(0.0, now)
                function.slow = kept.slowest.bar

    def _of(self, function: NotingFunction, kept: _Kept, noted: list[NotedCall]) -> None:
        for call in noted:
            if call.outcome == "ok":
                wanted = kept.slowest.add(call.seconds, call.now)
            else:
                wanted = kept.failures.take(1, call.now) and self._all.take(1, call.now)
                function.unnoted += not wanted
            if wanted:
                left_out, function.unnoted = function.unnoted, 0
                self._put(records.encode(record(call, self.node, left_out)))
        function.slow = kept.slowest.bar


def record(call: NotedCall, node: str = "", left_out: int = 0) -> dict[str, Any]:
    """Return the record of a call. `left_out`: the number of earlier failed calls without a record."""
    times, statements, requests = _times(call)
    made: dict[str, Any] = {
        "t": records.time_text(call.at),
        "kind": records.CALL,
        "function": call.function.name,
        "version": call.function.version,
        "release": call.release,
        "call": call.request_id.decode(),
        "node": node,
        "method": call.method,
        "path": redact(call.path)[:PATH],
        "outcome": call.outcome,
        "status": call.status,
        "seconds": round(call.seconds, 6),
        "times": times,
    }
    if statements:
        made["sql"] = statements
    if requests:
        made["http"] = requests
    if left_out:
        made["left_out"] = left_out
    return made


def _times(call: NotedCall) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a call's seconds by what it did, and its statements and HTTP requests, the longest ones first."""
    took = 0.0 if call.took is None else min(call.took, call.seconds)
    made = {"queue": round(call.seconds - took, 6)}
    told = call.times
    if told is None:
        manifest = call.function.manifest
        # Without a grant there is nothing that a call could wait for; otherwise its time in the worker isn't known.
        where = "guest" if manifest.sql == "none" and manifest.http is None else "worker"
        return ({**made, where: round(took, 6)} if took else made), [], []
    totals = dict.fromkeys(call_times.KINDS, 0.0)
    # SQLite may take a name in double quotes as a value, and a host may contain one.
    texts = [redact(text, cut=len(text) == call_times.TEXT) for text in told.texts]
    by_text: dict[tuple[int, str], tuple[int, float]] = {}
    steps = [(s.kind, 1, s.micros, s.text) for s in told.steps] + [
        (s.kind, s.count, s.micros, s.text) for s in told.others
    ]
    for kind, count, micros, text in steps:
        seconds = min(micros / 1e6, took)
        totals[call_times.KINDS[kind]] += seconds
        before, so_far = by_text.get((kind, texts[text]), (0, 0.0))
        by_text[kind, texts[text]] = before + count, so_far + seconds
    made["guest"] = round(max(0.0, took - sum(totals.values())), 6)
    made |= {kind: round(min(seconds, took), 6) for kind, seconds in totals.items()}
    longest = sorted(by_text.items(), key=lambda item: -item[1][1])
    statements = [
        {"statement": text, "count": count, "seconds": round(seconds, 6)}
        for (kind, text), (count, seconds) in longest
        if kind == call_times.SQL
    ]
    requests = [
        {"host": text, "count": count, "seconds": round(seconds, 6)}
        for (kind, text), (count, seconds) in longest
        if kind == call_times.HTTP
    ]
    return made, statements, requests
