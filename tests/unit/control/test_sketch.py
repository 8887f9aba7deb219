"""Times of calls as a histogram: exact in their number, near in their quantiles, small as bytes."""

import contextlib
import math
import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control import sketch

SMALLEST = 25
"""Bytes into which any counts fit."""
counts = st.dictionaries(st.integers(0, sketch.LONGER), st.integers(1, sketch.MOST // 177), max_size=177)
times = st.lists(st.floats(0, 100), min_size=1, max_size=300)


def of(seconds: list[float]) -> sketch.Counts:
    return dict(Counter(map(sketch.bucket, seconds)))


@given(st.floats(0, 29))
def test_a_time_lies_in_its_bucket(seconds):
    index = sketch.bucket(seconds)
    assert seconds <= sketch.BOUNDS[index]
    assert index == 0 or seconds > sketch.BOUNDS[index - 1]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 30.0, 1e300])
def test_what_is_no_time_counts_as_longer(seconds):
    assert sketch.bucket(seconds) == sketch.LONGER


def test_a_clock_that_went_back_counts_as_the_shortest_time():
    assert sketch.bucket(-1.0) == 0


@given(times, st.floats(0, 1))
@example([0.001, 1.0], 0.5)
def test_a_quantile_is_within_its_bucket_of_the_true_one(seconds, q):
    found = sketch.quantile(of(seconds), q)
    true = sorted(seconds)[max(0, math.ceil(q * len(seconds)) - 1)]
    assert found is not None
    assert abs(sketch.bucket(found) - sketch.bucket(true)) <= 1


def test_a_quantile_is_near_and_of_nothing_is_none():
    rng = random.Random(7)
    seconds = sorted(rng.lognormvariate(math.log(0.002), 0.8) for _ in range(20_000))
    for q in (0.5, 0.9, 0.99):
        assert sketch.quantile(of(seconds), q) == pytest.approx(seconds[int(q * 20_000)], rel=0.06)
    assert sketch.quantile({}, 0.5) is None


@given(counts, counts)
def test_adding_is_exact(one, other):
    total = dict(one)
    sketch.add(total, other)
    assert total == {i: one.get(i, 0) + other.get(i, 0) for i in one.keys() | other.keys()}


@given(times)
def test_metrics_count_exactly_at_their_bounds(seconds):
    assert set(sketch.FOLDED) <= set(sketch.BOUNDS)
    expected = [sum(s <= bound for s in seconds) for bound in (*sketch.FOLDED, math.inf)]
    assert sketch.fold(of(seconds)) == expected


@given(counts)
def test_what_fits_comes_back_as_it_was(given_counts):
    assert sketch.unpack(sketch.pack(given_counts, sketch.LONGEST_PACKED)) == given_counts


@given(counts, st.integers(SMALLEST, 200))
def test_what_does_not_fit_gets_coarser_and_no_call_is_lost(given_counts, limit):
    packed = sketch.pack(given_counts, limit)
    assert len(packed) <= limit
    found = sketch.unpack(packed)
    assert sum(found.values()) == sum(given_counts.values())
    assert found.get(sketch.LONGER, 0) == given_counts.get(sketch.LONGER, 0)
    assert found.get(0, 0) == given_counts.get(0, 0)
    if packed[0] <= 3:
        # The bounds of metrics are bounds of the coarser ones, too.
        assert sketch.fold(found) == sketch.fold(given_counts)


@given(st.lists(st.integers(0, sketch.LONGER), min_size=1, max_size=60), st.integers(SMALLEST, 60))
def test_each_call_stays_within_the_resolution_that_the_first_byte_says(indices, limit):
    for index in indices:
        given_counts = dict.fromkeys(indices, 1)
        packed = sketch.pack(given_counts, limit)
        off = 2 ** packed[0] - 1
        assert sum(sketch.unpack(packed).values()) == len(given_counts)
        assert any(abs(found - index) <= off for found in sketch.unpack(packed))


def test_a_usual_minute_loses_little():
    rng = random.Random(3)
    for calls in (60, 600, 6000):
        seconds = [rng.lognormvariate(math.log(0.002), 0.5) for _ in range(calls)]
        found = sketch.unpack(sketch.pack(of(seconds), 40))
        for q in (0.5, 0.99):
            assert sketch.quantile(found, q) == pytest.approx(sketch.quantile(of(seconds), q), rel=0.2)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_or_bounded(packed):
    with contextlib.suppress(ValueError):
        found = sketch.unpack(packed)
        assert all(0 <= index <= sketch.LONGER and 0 < count <= sketch.MOST for index, count in found.items())


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
        (bytes(sketch.LONGEST_PACKED + 1), "is the most"),
    ],
)
def test_what_is_wrong_is_said(packed, what):
    with pytest.raises(ValueError, match=what):
        sketch.unpack(packed)


def test_a_limit_into_which_nothing_fits_is_an_error():
    with pytest.raises(ValueError, match="more than 3 bytes"):
        sketch.pack({5: 1, 90: 1000}, 3)
