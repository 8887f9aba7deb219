"""Where a call's time went in its worker: what it waited for and what it did, step by step.

A worker notes the steps of each call, and reports to the front those of calls that were slow or failed, or that the
front asked about. A step is SQL (a statement, or the beginning of the transaction), a wait for the writer lock, an HTTP
request or the COMMIT; the time between the steps is the guest's own.
"""

import heapq
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

LOCK: Final = 0
SQL: Final = 1
HTTP: Final = 2
COMMIT: Final = 3
KINDS: Final = ("lock", "sql", "http", "commit")
"""The kinds of steps, by their numbers."""

MOST: Final = 64
"""Steps of a call that are noted one by one; for the others, only their number and total time are kept."""
MOST_TEXTS: Final = 64
"""The most different texts of those others."""
KEPT: Final = 4096
"""Characters of a text that are kept while the call runs."""
TEXT: Final = 300
"""Characters of a text."""
LONGEST: Final = 256 * 1024
"""Bytes of a worker's report; an honest one is shorter."""

SLOWEST: Final = 16
"""A call is slow if it takes longer than all but this many calls of the hour."""
HOUR: Final = 3600.0

Micros = Annotated[int, Meta(ge=0, le=2**40)]
Place = Annotated[int, Meta(ge=0, lt=MOST + MOST_TEXTS + 1)]
Kind = Annotated[int, Meta(ge=0, lt=len(KINDS))]


class Step(Struct, array_like=True, frozen=True):
    kind: Kind
    start: Micros
    """Microseconds from the call's start in its worker."""
    micros: Micros
    """How long it took, in microseconds."""
    text: Place
    """Its place in `CallTimes.texts`."""


class Steps(Struct, array_like=True, frozen=True):
    """Steps that aren't reported one by one."""

    kind: Kind
    count: Annotated[int, Meta(ge=1, le=2**40)]
    micros: Micros
    """How long they took together."""
    text: Place


class CallTimes(Struct, array_like=True, frozen=True):
    """A worker's report about a call that has ended."""

    micros: Micros
    """From the call's start in its worker to its end, in microseconds."""
    steps: Annotated[list[Step], Meta(max_length=MOST)]
    """In the order of their ends."""
    others: Annotated[list[Steps], Meta(max_length=MOST_TEXTS + len(KINDS))]
    texts: Annotated[list[Annotated[str, Meta(max_length=TEXT)]], Meta(max_length=MOST + MOST_TEXTS + 1)]
    """The statements, without values in them, and the hosts of HTTP requests; the steps refer to their indexes."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(CallTimes).decode


class StepClock:
    """Notes the steps of one call at a time, in a worker. Times are `perf_counter`'s, in seconds."""

    __slots__ = ("_others", "_steps")

    def __init__(self) -> None:
        self._steps: list[tuple[int, float, float, str]] = []
        self._others: dict[tuple[int, str], tuple[int, float]] = {}

    def clear(self) -> None:
        """Clear the steps of the previous call."""
        if self._steps:
            self._steps.clear()
            self._others.clear()

    def add(self, kind: int, began: float, text: str = "") -> None:
        """Note a step that ends now."""
        steps = self._steps
        if len(steps) < MOST and len(text) <= KEPT:
            steps.append((kind, began, perf_counter(), text))
        else:
            self._add(kind, began, perf_counter(), text[:KEPT])

    def _add(self, kind: int, began: float, ended: float, text: str) -> None:
        """Note a step of a long text, or one of many."""
        if len(self._steps) < MOST:
            self._steps.append((kind, began, ended, text))
            return
        others, key = self._others, (kind, text)
        if key not in others and len(others) >= MOST_TEXTS:
            key = kind, ""
        count, seconds = others.get(key, (0, 0.0))
        others[key] = count + 1, seconds + ended - began

    def encode(self, began: float, ended: float, shown: Callable[[str], str]) -> bytes:
        """Return the encoded `CallTimes` of the call, which began and ended at these times; `shown` returns the part of
        a statement that may be shown."""
        places: dict[str, int] = {}

        def place(kind: int, text: str) -> int:
            found = (shown(text) if kind == SQL else text)[:TEXT]
            return places.setdefault(found, len(places))

        steps = [
            Step(kind, _micros(start - began), _micros(end - start), place(kind, text))
            for kind, start, end, text in self._steps
        ]
        others = [
            Steps(kind, count, _micros(seconds), place(kind, text))
            for (kind, text), (count, seconds) in self._others.items()
        ]
        return _encode(CallTimes(_micros(ended - began), steps, others, list(places)))


def decode(told: bytes) -> CallTimes:
    """Return a worker's report. Raises: ValueError, when no honest worker would send it."""
    if len(told) > LONGEST:
        raise ValueError(f"times of a call in {len(told)} bytes")
    found = _decode(told)
    places = [step.text for step in found.steps] + [steps.text for steps in found.others]
    if places and max(places) >= len(found.texts):
        raise ValueError("a step of a call with a text that isn't there")
    return found


def _micros(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


class Slowest:
    """Finds which calls of a function are among the slowest of the hour. The caller passes the time."""

    __slots__ = ("_times", "bar", "until")

    def __init__(self) -> None:
        self.bar = 0.0
        """Seconds: no call that took at most this long is slow."""
        self.until = float("-inf")
        """When the hour ends, on the clock of `add`; until a call after that is added, `bar` stays."""
        self._times: list[float] = []

    def add(self, seconds: float, now: float) -> bool:
        """Return whether a call that ends now and took this long is slow."""
        if now >= self.until:
            self.until = now + HOUR
            self._times.clear()
            # Not to 0: the first calls of each hour would then all be slow.
            self.bar /= 2
        if seconds <= self.bar:
            return False
        heapq.heappush(self._times, seconds)
        if len(self._times) > SLOWEST:
            heapq.heappop(self._times)
        if len(self._times) == SLOWEST:
            self.bar = max(self.bar, self._times[0])
        return True
