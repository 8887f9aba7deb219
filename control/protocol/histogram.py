"""How long calls took, as a histogram that adds up over functions, minutes and nodes. Pure.

Each bound is 2**(1/8) times the one before, so a quantile is within 4.5 % of the truth whatever the times are, and the
sum of two histograms is as exact as each. Nodes make them, control adds them up, and both compute quantiles from them.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

BOUNDS: Final = tuple(2.0 ** (i / 8 - 17) for i in range(176))
"""Upper bounds of the buckets in seconds, from 7.6 µs to 29.3 s, eight an octave."""
LONGER: Final = len(BOUNDS)
"""The bucket for times longer than the last bound."""
FOLDED: Final = tuple(2.0**i for i in (-11, -10, -9, -8, -7, -6, -5, -4, -3, -2, 0, 2))
"""The bounds that metrics show, in seconds: some of `BOUNDS`, from 0.5 ms to 4 s."""
LONGEST_PACKED: Final = 4096
"""The most bytes that `unpack` accepts; `pack` returns far fewer."""
MOST: Final = 2**48 - 1
"""The largest count of a bucket."""

_FOLDS: Final = tuple(bisect_left(FOLDED, bound) for bound in (*BOUNDS, float("inf")))
"""By bucket: the index of the first of `FOLDED` that all of its times are below."""

Counts = dict[int, int]
"""The number of calls by bucket, 0 to `LONGER`."""

_COARSEST: Final = 8
"""How often the resolution can be halved: by then all bounded times from 7.6 µs on are one bucket."""
_LONGEST_NUMBER: Final = 7
"""The most bytes of a number in LEB128."""


def bucket(seconds: float) -> int:
    """Return the bucket of a time; NaN counts as longer than all bounds."""
    return bisect_left(BOUNDS, seconds) if seconds == seconds else LONGER


def add(into: Counts, other: Mapping[int, int]) -> None:
    """Add the counts of `other` to those of `into`."""
    for index, count in other.items():
        into[index] = into.get(index, 0) + count


def fold(counts: Mapping[int, int]) -> list[int]:
    """Return how many calls took up to each bound of `FOLDED`, and the number of all calls, as metrics need them."""
    folded = [0] * (len(FOLDED) + 1)
    for index, count in counts.items():
        folded[_FOLDS[index]] += count
    return list(accumulate(folded))


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Return the time in seconds that the share `q` (0 to 1) of all calls didn't exceed; None if there are no calls.

    It is the geometric middle of that call's bucket, or the last bound if the call took longer.
    """
    left = q * sum(counts.values())
    index = None
    for index in sorted(counts):
        left -= counts[index]
        if left <= 0:
            break
    return None if index is None else middle(index)


def middle(index: int) -> float:
    """Return the geometric middle of a bucket, in seconds; for the last bucket, its lower bound."""
    return float(2.0 ** ((min(index, LONGER) - 0.5) / 8 - 17)) if index < LONGER else BOUNDS[-1]


def pack(counts: Mapping[int, int], limit: int) -> bytes:
    """Return counts in at most `limit` bytes.

    The first byte says how often the resolution was halved. Each bucket that has calls follows in LEB128: twice its
    count or, where buckets were skipped, twice its count plus one and then its distance from the previous bucket.

    The resolution is halved until the result fits; the number of calls stays exact. Raises: ValueError, when even the
    coarsest resolution is too long, which can't happen with 25 bytes or more.
    """
    filled = {index: min(count, MOST) for index, count in counts.items() if count > 0}
    for halved in range(_COARSEST + 1):
        coarse = _coarse(filled, halved)
        # A byte for each bucket is the least that it takes.
        if len(coarse) < limit:
            packed = _packed(coarse, halved)
            if len(packed) <= limit:
                return packed
    raise ValueError(f"these counts take more than {limit} bytes")


def unpack(packed: bytes) -> Counts:
    """Return the counts from which `pack` made these bytes. Calls of merged buckets are spread over them.

    Raises: ValueError, when `pack` didn't make the bytes; it says what is wrong.
    """
    if not packed:
        raise ValueError("a histogram without its first byte")
    if len(packed) > LONGEST_PACKED:
        raise ValueError(f"a histogram of {len(packed)} bytes, and {LONGEST_PACKED} is the most")
    halved = packed[0]
    if halved > _COARSEST:
        raise ValueError(f"a histogram whose resolution was halved {halved} times")
    counts: Counts = {}
    index, top = -1, _top(halved)
    numbers = iter(_numbers(packed))
    for number in numbers:
        if number & 1:
            gap = next(numbers, None)
            if gap is None:
                raise ValueError("a histogram that ends in the middle of a bucket")
            if not gap:
                raise ValueError("a histogram that has a bucket twice")
            index += gap
        else:
            index += 1
        counts[index] = number >> 1
    if index > top:
        raise ValueError(f"a histogram with the bucket {index}, and {top} is the last")
    if 0 in counts.values():
        raise ValueError("a histogram with an empty bucket")
    return _spread(counts, halved) if halved else counts


def _numbers(packed: bytes) -> Sequence[int]:
    """Return the numbers after the first byte. Raises: ValueError, when one is too long or the last is incomplete."""
    if packed.isascii():
        return packed[1:]
    numbers = []
    number = shift = 0
    for byte in packed[1:]:
        if byte < 128:
            numbers.append(number | byte << shift)
            number = shift = 0
        else:
            number |= (byte & 127) << shift
            shift += 7
            if shift >= 7 * _LONGEST_NUMBER:
                raise ValueError("a histogram with a number that is too long")
    if shift:
        raise ValueError("a histogram that ends in the middle of a bucket")
    return numbers


def _top(halved: int) -> int:
    """Return the bucket for times longer than all bounds, at a resolution."""
    return LONGER if not halved else -(-(LONGER - 1) >> halved) + 1


def _coarse(counts: Counts, halved: int) -> Counts:
    """Merge buckets: each 2**halved that end at one bound of the coarser histogram."""
    if not halved:
        return counts
    made: Counts = {}
    for index, count in counts.items():
        coarse = _top(halved) if index >= LONGER else -(-index >> halved)
        made[coarse] = made.get(coarse, 0) + count
    return made


def _spread(coarse: Counts, halved: int) -> Counts:
    """Spread the calls of each bucket evenly over the buckets that were merged into it."""
    counts: Counts = {}
    top = _top(halved)
    for index, count in coarse.items():
        if index == 0 or index == top:
            counts[index and LONGER] = count
            continue
        first = ((index - 1) << halved) + 1
        width = min(index << halved, LONGER - 1) + 1 - first
        left = width // 2
        for fine in range(first, first + width):
            left += count
            if left >= width:
                counts[fine], left = divmod(left, width)
    return counts


def _packed(counts: Counts, halved: int) -> bytes:
    packed = bytearray((halved,))
    before = -1
    for index in sorted(counts):
        gap, twice = index - before, counts[index] << 1
        for number in (twice,) if gap == 1 else (twice | 1, gap):
            while number > 127:
                packed.append(number & 127 | 128)
                number >>= 7
            packed.append(number)
        before = index
    return bytes(packed)
