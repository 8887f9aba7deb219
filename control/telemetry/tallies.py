"""Calls of functions, counted: how many, how they ended, how long they took. Pure."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from control.protocol import histogram
from control.protocol.histogram import Counts

PACKED = 512
"""Bytes of a histogram as it is stored: enough for each bucket to have some calls."""
NO_ERRORS = frozenset({"client_gone"})
"""How calls end that are no errors of the function or the node, beside those that end well."""


class CallTally:
    """Calls of one function of one release."""

    __slots__ = ("outcomes", "times")

    def __init__(self, outcomes: dict[str, int] | None = None, times: Counts | None = None) -> None:
        self.outcomes: dict[str, int] = {} if outcomes is None else outcomes
        """How many calls ended so, by the code; those that ended well aren't there."""
        self.times: Counts = {} if times is None else times
        """How long all calls took, as `histogram` has it."""

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return sum(self.times.values())

    @property
    def errors(self) -> int:
        """How many of them ended in an error of the function or the node."""
        return sum(count for code, count in self.outcomes.items() if code not in NO_ERRORS)

    def quantile(self, q: float) -> float | None:
        """The time in seconds that the share `q` of the calls didn't exceed; None without calls."""
        return histogram.quantile(self.times, q)

    def add(self, outcomes: Mapping[str, int], times: Counts) -> None:
        """Count more calls."""
        for code, count in outcomes.items():
            self.outcomes[code] = self.outcomes.get(code, 0) + count
        histogram.add(self.times, times)


Tallies = dict[tuple[str, int], CallTally]
"""By function and number of the release."""
K = TypeVar("K")
_Stored = list[tuple[str, int, dict[str, int], bytes]]


def add(into: Tallies, other: Tallies) -> None:
    """Add the calls of `other` to those of `into`, which shares nothing with it."""
    for key, tally in other.items():
        known = into.get(key)
        if known is None:
            known = into[key] = CallTally()
        known.add(tally.outcomes, tally.times)


def encode(tallies: Tallies) -> bytes:
    """The tallies as they are stored."""
    rows = [(name, release, _bounded(t.outcomes), _packed(t.times)) for (name, release), t in tallies.items()]
    return msgspec.msgpack.encode(rows)


def _packed(times: Counts) -> bytes:
    return histogram.pack(_bounded(times), PACKED)


def _bounded(counts: Mapping[K, int]) -> dict[K, int]:
    """Nodes may tell any numbers: what can't be read again isn't written."""
    return {key: min(count, histogram.MOST) for key, count in counts.items()}


def decode(body: bytes, function: str = "") -> Tallies:
    """What `encode` made; only of one function, if given. Raises: ValueError, when it is something else."""
    try:
        rows = _decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"stored numbers that can't be read: {error}") from error
    return {
        (name, release): CallTally(outcomes, histogram.unpack(packed))
        for name, release, outcomes, packed in rows
        if function in ("", name)
    }


_decode = msgspec.msgpack.Decoder(_Stored).decode
