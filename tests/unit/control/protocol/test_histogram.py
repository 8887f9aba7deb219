"""Times of calls as a histogram: exact in their number, near in their quantiles, small as bytes."""

import contextlib
import math
import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.protocol import histogram

SMALLEST = 25
"""Bytes into which any counts fit."""
counts = st.dictionaries(st.integers(0, histogram.LONGER), st.integers(1, histogram.MOST // 177), max_size=177)
times = st.lists(st.floats(0, 100), min_size=1, max_size=300)


def of(seconds: list[float]) -> histogram.Counts:
    return dict(Counter(map(histogram.bucket, seconds)))


@given(st.floats(0, 29))
def test_a_time_lies_in_its_bucket(seconds):
    index = histogram.bucket(seconds)
    assert seconds <= histogram.BOUNDS[index]
    assert index == 0 or seconds > histogram.BOUNDS[index - 1]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 30.0, 1e300])
def test_what_is_no_time_counts_as_longer(seconds):
    assert histogram.bucket(seconds) == histogram.LONGER


def test_a_clock_that_went_back_counts_as_the_shortest_time():
    assert histogram.bucket(-1.0) == 0


@given(times, st.floats(0, 1))
@example([0.001, 1.0], 0.5)
def test_a_quantile_is_within_its_bucket_of_the_true_one(seconds, q):
    found = histogram.quantile(of(seconds), q)
    true = sorted(seconds)[max(0, math.ceil(q * len(seconds)) - 1)]
    assert found is not None
    assert abs(histogram.bucket(found) - histogram.bucket(true)) <= 1


def test_a_quantile_is_near_and_of_nothing_is_none():
    rng = random.Random(7)
    seconds = sorted(rng.lognormvariate(math.log(0.002), 0.8) for _ in range(20_000))
    for q in (0.5, 0.9, 0.99):
        assert histogram.quantile(of(seconds), q) == pytest.approx(seconds[int(q * 20_000)], rel=0.06)
    assert histogram.quantile({}, 0.5) is None


@given(counts, counts)
def test_adding_is_exact(one, other):
    total = dict(one)
    histogram.add(total, other)
    assert total == {i: one.get(i, 0) + other.get(i, 0) for i in one.keys() | other.keys()}


@given(times)
def test_metrics_count_exactly_at_their_bounds(seconds):
    assert set(histogram.FOLDED) <= set(histogram.BOUNDS)
    expected = [sum(s <= bound for s in seconds) for bound in (*histogram.FOLDED, math.inf)]
    assert histogram.fold(of(seconds)) == expected


@given(counts)
def test_what_fits_comes_back_as_it_was(given_counts):
    assert histogram.unpack(histogram.pack(given_counts, histogram.LONGEST_PACKED)) == given_counts


@given(counts, st.integers(SMALLEST, 200))
def test_what_does_not_fit_gets_coarser_and_no_call_is_lost(given_counts, limit):
    packed = histogram.pack(given_counts, limit)
    assert len(packed) <= limit
    found = histogram.unpack(packed)
    assert sum(found.values()) == sum(given_counts.values())
    assert found.get(histogram.LONGER, 0) == given_counts.get(histogram.LONGER, 0)
    assert found.get(0, 0) == given_counts.get(0, 0)
    if packed[0] <= 3:
        # The bounds of metrics are bounds of the coarser ones, too.
        assert histogram.fold(found) == histogram.fold(given_counts)


@given(st.lists(st.integers(0, histogram.LONGER), min_size=1, max_size=60), st.integers(SMALLEST, 60))
def test_each_call_stays_within_the_resolution_that_the_first_byte_says(indices, limit):
    for index in indices:
        given_counts = dict.fromkeys(indices, 1)
        packed = histogram.pack(given_counts, limit)
        off = 2 ** packed[0] - 1
        assert sum(histogram.unpack(packed).values()) == len(given_counts)
        assert any(abs(found - index) <= off for found in histogram.unpack(packed))


def test_a_usual_minute_loses_little():
    rng = random.Random(3)
    for calls in (60, 600, 6000):
        seconds = [rng.lognormvariate(math.log(0.002), 0.5) for _ in range(calls)]
        found = histogram.unpack(histogram.pack(of(seconds), 40))
        for q in (0.5, 0.99):
            assert histogram.quantile(found, q) == pytest.approx(histogram.quantile(of(seconds), q), rel=0.2)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_or_bounded(packed):
    with contextlib.suppress(ValueError):
        found = histogram.unpack(packed)
        assert all(0 <= index <= histogram.LONGER and 0 < count <= histogram.MOST for index, count in found.items())


@pytest.mark.parametrize(
    ("packed", "what"),
    [
        (b"", "without its first byte"),
        (b"\x09", "halved 9 times"),
        (b"\0\3", "middle of a bucket"),
        (b"\0\x80", "middle of a bucket"),
        (b"\0\0", "an empty bucket"),
        (b"\0\1\5", "an empty bucket"),
        (b"\0\2\3\0", "a bucket twice"),
        (b"\0\3\0", "a bucket twice"),
        (b"\0\3\x7f\3\x7f", "the bucket 253"),
        (b"\3" + b"\2" * 25, "the bucket 24"),
        (b"\0" + b"\xff" * 7 + b"\1", "too long"),
        (bytes(histogram.LONGEST_PACKED + 1), "is the most"),
    ],
)
def test_what_is_wrong_is_said(packed, what):
    with pytest.raises(ValueError, match=what):
        histogram.unpack(packed)


def test_a_limit_into_which_nothing_fits_is_an_error():
    with pytest.raises(ValueError, match="more than 3 bytes"):
        histogram.pack({5: 1, 90: 1000}, 3)
