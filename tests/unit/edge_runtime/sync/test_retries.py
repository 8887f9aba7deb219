"""When a node tries again, and when it gives up."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.redaction import Redactor
from edge_runtime.sync import retries
from edge_runtime.sync.retries import FailedSync

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
JITTER = st.floats(0, 1, exclude_max=True)
ERROR = SyncFailed("compile_failed", "it didn't compile")


@given(st.integers(1, 10**9), JITTER, st.floats(0.01, 100), st.floats(100, 10_000))
def test_backoff_stays_between_three_quarters_of_its_step_and_the_cap(
    attempts: int, jitter: float, base: float, cap: float
) -> None:
    step = min(cap, base * 2.0 ** min(attempts - 1, 60))
    assert 0.75 * step <= retries.backoff(attempts, jitter, base, cap) <= cap
    assert retries.backoff(attempts + 1, 0.0, base, cap) >= retries.backoff(attempts, 0.0, base, cap)


def test_a_failed_generation_waits_five_seconds_and_ten_and_at_last_five_minutes() -> None:
    failed: FailedSync | None = None
    waits = []
    for _ in range(10):
        failed = retries.failure(failed, 7, ERROR, NOW, 0.0)
        waits.append((failed.retry_at - NOW).total_seconds())
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]


@given(st.floats(0, 100_000), JITTER, st.integers(0, 12))
def test_an_attempt_that_kept_calls_waiting_is_made_again_much_later(held: float, jitter: float, before: int) -> None:
    """However often it fails, calls are kept waiting for less than a tenth of the time; the wait has an end."""
    error = SyncFailed("apply_timeout", "it took too long")
    previous = FailedSync(7, before, NOW, "c", "m", NOW)
    quick = retries.failure(previous, 7, error, NOW, jitter).retry_at
    error.held = held
    slow = retries.failure(previous, 7, error, NOW, jitter).retry_at
    assert slow >= quick
    assert min(10 * held, 2700) <= (slow - NOW).total_seconds() <= 3600


def test_another_generation_starts_to_count_anew() -> None:
    failed = retries.failure(retries.failure(None, 7, ERROR, NOW, 0.0), 7, ERROR, NOW, 0.0)
    assert failed.attempts == 2
    assert retries.failure(failed, 8, ERROR, NOW, 0.0).attempts == 1


def test_a_failure_tells_no_value_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a probe answered may have one in it, and goes on to control."""
    redactor = Redactor()
    redactor.know({"f": {"KEY": "a-value-of-it"}})
    monkeypatch.setattr(retries, "redact", redactor)
    failed = retries.failure(None, 7, SyncFailed("probe_failed", "it answered a-value-of-it"), NOW, 0.0)
    assert failed.message == "it answered [secret KEY]"


@given(st.integers(0, 400), st.integers(-10, 400))
def test_a_poll_tells_the_failure_until_it_is_due_and_is_not_held_past_that(wait: int, later: int) -> None:
    failed = FailedSync(3, 1, NOW + timedelta(seconds=wait), "c", "m", NOW)
    now = NOW + timedelta(seconds=later)
    told, hold = retries.told(failed, now), retries.hold(failed, now)
    assert hold <= retries.HOLD
    assert (hold == 0) == failed.due(now)
    if later < wait:
        assert told == wire.FailedGeneration(3, failed.retry_at)
        assert now + timedelta(seconds=hold) <= failed.retry_at
    else:
        assert told is None


def test_without_a_failure_a_poll_is_held_as_long_as_control_holds() -> None:
    assert retries.hold(None, NOW) == 25.0
    assert retries.told(None, NOW) is None


@given(st.floats(-3600, 3600))
def test_a_plan_for_another_generation_is_begun_at_once_and_the_failed_one_never_in_a_hot_loop(ago: float) -> None:
    failed = FailedSync(3, 1, NOW + timedelta(seconds=300), "c", "m", NOW - timedelta(seconds=ago))
    assert retries.pause_before(failed, 4, NOW) == 0
    assert retries.pause_before(None, 3, NOW) == 0
    pause = retries.pause_before(failed, 3, NOW)
    assert 0 <= pause <= 1.0
    assert ago < 0 or pause + ago >= 0.999


@given(st.sampled_from([None, 200, 400, 401, 403, 404, 408, 422, 429, 500, 502, 503]), st.integers(1, 10**6), JITTER)
def test_after_any_trouble_the_node_waits_and_comes_back(status: int | None, attempts: int, jitter: float) -> None:
    assert 0.1 < retries.pause_after(status, None, attempts, jitter) <= 300


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_node_polls_slowly_whatever_retry_after_says(status: int) -> None:
    assert retries.pause_after(status, 0.0, 1, 0.99) > 20
    assert retries.pause_after(status, None, 100, 0.0) == 300


def test_a_lost_control_is_looked_for_quickly_at_first_and_every_half_minute_later() -> None:
    assert retries.pause_after(None, None, 1, 0.0) == 0.25
    assert retries.pause_after(None, None, 100, 0.0) == 30


@given(st.floats(0, 10**6), JITTER)
def test_retry_after_is_kept_to_and_spread_but_not_for_ever(seconds: float, jitter: float) -> None:
    pause = retries.pause_after(503, seconds, 1, jitter)
    assert pause <= retries.ANSWER_CAP
    assert pause >= min(seconds, retries.ANSWER_CAP)
    assert pause > 0


@pytest.mark.parametrize(
    ("status", "final"), [(404, True), (409, True), (422, True), (401, False), (429, False), (503, False)]
)
def test_a_report_is_dropped_only_where_asking_again_cannot_help(status: int, final: bool) -> None:
    assert retries.final(status) is final


def test_one_or_two_crashes_in_a_sync_are_nobodys_fault_and_more_are_the_releases() -> None:
    assert [retries.crashed(5, 2, crashes, NOW, 0.0) for crashes in (0, 1, 2)] == [None] * 3
    waits = []
    for crashes in range(3, 12):
        failed = retries.crashed(5, 2, crashes, NOW, 0.0)
        assert failed is not None
        assert (failed.generation, failed.code) == (5, "node_crashed")
        waits.append((failed.retry_at - NOW).total_seconds())
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
