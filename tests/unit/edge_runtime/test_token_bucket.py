"""The bucket: never more than its burst at once and its rate in the long run, and never less than that either."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.token_bucket import TokenBucket

BURSTS = st.integers(1, 1000)
RATES = st.floats(0.01, 1000)
STEPS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 20)), max_size=60)
"""Seconds until the next use, and how much it takes."""


def test_a_bucket_is_full_at_first_and_fills_again() -> None:
    bucket = TokenBucket(100, 10)
    assert bucket.take(100, 1.0)
    assert not bucket.take(1, 1.0)
    assert not bucket.take(20, 2.0)
    assert bucket.take(20, 3.0)
    assert bucket.take(100, 1000.0)
    assert not bucket.take(100, 1001.0)
    assert bucket.wait(100, 1001.0) == 9.0


@given(BURSTS, RATES, STEPS)
def test_in_no_span_of_time_more_is_taken_than_burst_and_rate_allow(
    burst: int, rate: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now = TokenBucket(burst, rate), 0.0
    taken: list[tuple[float, int]] = []
    for pause, count in steps:
        now += pause
        if bucket.take(count, now):
            taken.append((now, count))
    for first, (began, _) in enumerate(taken):
        total = 0
        for ended, count in taken[first:]:
            total += count
            assert total <= burst + rate * (ended - began) + 1e-6 * (1 + total)


@given(BURSTS, RATES, STEPS)
def test_who_waits_as_long_as_was_said_is_let_through(burst: int, rate: float, steps: list[tuple[float, int]]) -> None:
    bucket, now = TokenBucket(burst, rate), 0.0
    for pause, wanted in steps:
        count = min(wanted, burst)
        now += pause
        wait = bucket.wait(count, now)
        assert bucket.take(count, now) == (wait == 0.0)
        if wait:
            assert wait <= count / rate * (1 + 1e-9)
            now += wait * (1 + 1e-9) + 1e-6
            assert bucket.take(count, now)


@given(BURSTS, RATES, st.integers(1, 20))
def test_a_refusal_takes_nothing(burst: int, rate: float, times: int) -> None:
    bucket = TokenBucket(burst, rate)
    for _ in range(times):
        assert not bucket.take(burst + 1, 5.0)
    assert bucket.take(burst, 5.0)


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 1000)
    assert bucket.take(1, 10.0)
    assert not bucket.take(1, 10.0)
    assert not bucket.take(1, 9.0)
    assert not bucket.take(1, 10.0)
