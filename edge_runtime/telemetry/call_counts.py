"""How the calls of one function of one release ended, and how long they took.

Counts only grow. What was sent to control is remembered, so that each call is reported once, however late.
"""

from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from control.protocol import histogram, wire

ROW_BYTES: Final = 48
"""The most bytes of a function's numbers: 64 in a poll, in base64."""
SKETCH_BYTES: Final = 25
"""The fewest of these bytes that are left for the times: enough for any times."""
TIMES_BYTES: Final = 64
"""The most bytes of the times in a message."""
GOOD: Final = ("ok", "client_gone")
"""Outcomes that aren't failures: a client that disconnects isn't the function's failure."""

_Key = TypeVar("_Key")
_NUMBERS: Final = {code: number for number, code in enumerate(wire.OUTCOMES)}
_encode: Final = msgspec.msgpack.Encoder().encode


class CallCounts:
    __slots__ = ("_told_outcomes", "_told_times", "index", "outcomes", "release", "times", "total")

    def __init__(self, index: int, release: int) -> None:
        self.index = index
        """The function's place among those of its release, sorted by name."""
        self.release = release
        """Number of the release."""
        self.outcomes: dict[str, int] = {}
        """Calls by outcome: "ok", "answer_5xx" if the function itself answered with that, or an error's code."""
        self.times: histogram.Counts = {}
        """Calls by duration, from arrival to end."""
        self.total = 0.0
        """The total duration of all calls, in seconds."""
        self._told_outcomes: dict[str, int] = {}
        self._told_times: histogram.Counts = {}

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome not in GOOD)

    def add(self, other: "CallCounts") -> None:
        """Add the counts of another one."""
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        histogram.add(self.times, other.times)
        self.total += other.total

    @property
    def all_told(self) -> bool:
        """Return whether all calls were reported to control."""
        return self.times == self._told_times

    def take(self) -> wire.FunctionNumbers | None:
        """Return what wasn't reported to control yet, and count it as reported; None if there is nothing."""
        times = more(self.times, self._told_times)
        if not times:
            return None
        outcomes = more(self.outcomes, self._told_outcomes)
        self._told_times, self._told_outcomes = dict(self.times), dict(self.outcomes)
        return row(self.index, self.release, outcomes, times)


def total(counts: Iterable[CallCounts]) -> CallCounts:
    """Return several counts as one."""
    made = CallCounts(0, 0)
    for one in counts:
        made.add(one)
    return made


def row(
    index: int, release: int, outcomes: dict[str, int], times: histogram.Counts, most: int = ROW_BYTES
) -> wire.FunctionNumbers:
    """Return counts in the form for control, in at most `most` bytes.

    Outcomes that don't fit become `other`, the rarest first, and times get coarser.
    """
    numbered: dict[int, int] = {}
    for outcome, count in outcomes.items():
        if outcome != "ok":
            number = _NUMBERS.get(outcome, 0)
            numbered[number] = numbered.get(number, 0) + count
    often = sorted(numbered.items(), key=lambda pair: -pair[1])
    for kept in range(len(often), -1, -1):
        pairs = dict(often[:kept])
        if kept < len(often):
            pairs[0] = pairs.get(0, 0) + sum(count for _, count in often[kept:])
        made = wire.FunctionNumbers(index, release, [n for pair in pairs.items() for n in pair], b"")
        left = min(most - len(_encode(made)), TIMES_BYTES)
        if left >= SKETCH_BYTES or not kept:
            break
    made.seconds = histogram.pack(times, left)
    return made


def more(now: dict[_Key, int], before: dict[_Key, int]) -> dict[_Key, int]:
    """Return by how much counts are larger than they were before, without those that aren't."""
    return {key: grown for key, count in now.items() if (grown := count - before.get(key, 0)) > 0}
