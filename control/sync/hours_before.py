"""What nodes report with a sync that succeeded: their calls of the hour before they flipped to the release. Pure."""

from typing import NamedTuple

import msgspec

from control.protocol import histogram, wire

LONGEST = 256 * 1024
"""The most bytes of an hour."""
_decode = msgspec.msgpack.Decoder(wire.HourBefore).decode


class CallsBefore(NamedTuple):
    """A function's calls of that hour."""

    function: str
    outcomes: dict[str, int]
    """How many calls ended with each code, without successful calls."""
    times: histogram.Counts
    """How long all calls took."""


def read(body: bytes) -> list[CallsBefore]:
    """Return what a node reported. Raises: ValueError, when it is too long or damaged."""
    hour = check(body)
    found = []
    for counted in hour.functions:
        if counted.index >= len(hour.names):
            raise ValueError(f"it names no function number {counted.index}")
        times = histogram.unpack(counted.seconds)
        pairs = counted.outcomes
        if len(pairs) % 2 or sum(pairs[1::2]) > sum(times.values()):
            raise ValueError("more calls that failed than calls")
        outcomes: dict[str, int] = {}
        for code, count in zip(pairs[::2], pairs[1::2], strict=True):
            name = wire.OUTCOMES[code if code < len(wire.OUTCOMES) else 0]
            outcomes[name] = outcomes.get(name, 0) + count
        found.append(CallsBefore(hour.names[counted.index], outcomes, times))
    return found


def check(body: bytes) -> wire.HourBefore:
    """Return the message, if it is one; its histograms aren't unpacked. Raises: ValueError."""
    if len(body) > LONGEST:
        raise ValueError(f"{len(body)} bytes, and {LONGEST} is the most")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
