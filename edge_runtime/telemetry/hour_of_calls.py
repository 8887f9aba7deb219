"""The node's calls of the last hour, by function: control compares a release's calls with those of the hour before it.

Calls aren't counted again for this: a tally of five minutes is the difference between two looks at the counts that
there are anyway. The tallies of an hour are kept, in memory only; after a start there are none of the time before.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

import msgspec

from control.protocol import histogram, wire
from edge_runtime import clock as front_clock
from edge_runtime.telemetry.call_counts import CallCounts, more, row

PERIOD: Final = 300.0
"""Seconds of a tally at least; polls are what makes the next one."""
TALLIES: Final = 12
"""Tallies that are kept."""
PACKED: Final = 512
"""Bytes of a function's times in a tally: enough for each bucket to have some calls."""
SENT: Final = 96
"""Bytes of a function in the message for control, which is sent once: twice as many as in those with polls."""
AT_ONCE: Final = 50
"""Functions that are looked at before other work gets to run in the loop."""


class CalledFunction(Protocol):
    """A function whose calls are counted, by the number of the release that they ran on."""

    name: str
    counts: dict[int, CallCounts]


class _LastLook(NamedTuple):
    """A function's counts at the last look, and the object that they were read from."""

    counts: CallCounts
    outcomes: dict[str, int]
    times: histogram.Counts


class _LatelyCalled(NamedTuple):
    """A function's calls on a release, in the time of a tally."""

    outcomes: dict[str, int]
    times: bytes


class _Tally(NamedTuple):
    began: float
    functions: dict[tuple[str, int], _LatelyCalled]
    """By name and number of the release."""


class HourOfCalls:
    """Keeps the tallies; `look` makes them."""

    def __init__(
        self,
        functions: Callable[[], Iterable[CalledFunction]],
        clock: Callable[[], float] = lambda: front_clock.monotonic(),
    ) -> None:
        self._functions = functions
        self._clock = clock
        self._tallies: deque[_Tally] = deque(maxlen=TALLIES)
        self._began = clock()
        """When the present tally began."""
        self._told: dict[tuple[str, int], _LastLook] = {}

    async def look(self) -> None:
        """Begin another tally, if the present one is old enough."""
        now = self._clock()
        if now - self._began < PERIOD:
            return
        began, self._began = self._began, now
        found: dict[tuple[str, int], _LatelyCalled] = {}
        told: dict[tuple[str, int], _LastLook] = {}
        for number, (name, counts) in enumerate(self._counts(), 1):
            key = name, counts.release
            lately = self._lately(key, counts)
            if lately is not None:
                found[key] = lately
            told[key] = _LastLook(counts, dict(counts.outcomes), dict(counts.times))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        self._told = told
        self._tallies.append(_Tally(began, found))

    async def before(self, release: int) -> bytes:
        """Return the calls of the last hour as `wire.HourBefore` in msgpack, without those on release number `release`.

        Empty if there were none. With more than `wire.MOST_FUNCTIONS` functions, those with the fewest calls are left
        out.
        """
        parts = [(key, lately) for tally in self._tallies for key, lately in tally.functions.items()]
        for name, counts in self._counts():
            lately = self._lately((name, counts.release), counts)
            if lately is not None:
                parts.append(((name, counts.release), lately))
        sums: dict[str, CallCounts] = {}
        for number, ((name, ran_on), lately) in enumerate(parts, 1):
            if ran_on != release:
                function = sums.setdefault(name, CallCounts(0, ran_on))
                function.release = max(function.release, ran_on)
                histogram.add(function.times, histogram.unpack(lately.times))
                for outcome, count in lately.outcomes.items():
                    function.outcomes[outcome] = function.outcomes.get(outcome, 0) + count
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        if not sums:
            return b""
        kept = sorted(sums, key=lambda name: -sums[name].calls)[: wire.MOST_FUNCTIONS]
        functions = [
            row(index, one.release, one.outcomes, one.times, SENT)
            for index, one in enumerate(map(sums.__getitem__, kept))
        ]
        began = self._tallies[0].began if self._tallies else self._began
        return msgspec.msgpack.encode(wire.HourBefore(round(self._clock() - began, 3), functions, kept))

    def _counts(self) -> list[tuple[str, CallCounts]]:
        return [(function.name, counts) for function in self._functions() for counts in function.counts.values()]

    def _lately(self, key: tuple[str, int], counts: CallCounts) -> _LatelyCalled | None:
        """Return what was counted since the last look; None if nothing was."""
        told = self._told.get(key)
        if told is None or told.counts is not counts:
            told = _LastLook(counts, {}, {})
        times = more(counts.times, told.times)
        return _LatelyCalled(more(counts.outcomes, told.outcomes), histogram.pack(times, PACKED)) if times else None
