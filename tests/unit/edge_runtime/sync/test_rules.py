"""The rules of a node's sync."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import wire
from edge_runtime.disk_space import DISK_RESERVE
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import rules
from edge_runtime.sync.rules import FailedSync

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
JITTER = st.floats(0, 1, exclude_max=True)
ERROR = SyncFailed("compile_failed", "it didn't compile")
SHA = "a" * 64


def planned(name: str = "hello", manifest: dict[str, Any] | None = None, **changes: Any) -> wire.PlannedFunction:
    manifest = manifest if manifest is not None else {"abi": "wagi"}
    return wire.PlannedFunction(
        **{
            "name": name,
            "version": 1,
            "sha256": SHA,
            "size": 1000,
            "url": "https://store/x",
            "manifest": manifest,
            "manifest_digest": "b" * 64,
        }
        | changes
    )


def plan(generation: int = 5, functions: list[wire.PlannedFunction] | None = None) -> wire.Plan:
    return wire.Plan("s", 60.0, generation, "r", 1, 0, functions=functions or [])


@given(st.integers(1, 10**9), JITTER, st.floats(0.01, 100), st.floats(100, 10_000))
def test_backoff_stays_between_three_quarters_of_its_step_and_the_cap(
    attempts: int, jitter: float, base: float, cap: float
) -> None:
    step = min(cap, base * 2.0 ** min(attempts - 1, 60))
    assert 0.75 * step <= rules.backoff(attempts, jitter, base, cap) <= cap
    assert rules.backoff(attempts + 1, 0.0, base, cap) >= rules.backoff(attempts, 0.0, base, cap)


def test_a_failed_generation_waits_five_seconds_and_ten_and_at_last_five_minutes() -> None:
    failed: FailedSync | None = None
    waits = []
    for _ in range(10):
        failed = rules.failure(failed, 7, ERROR, NOW, 0.0)
        waits.append((failed.retry_at - NOW).total_seconds())
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]


@given(st.floats(0, 100_000), JITTER, st.integers(0, 12))
def test_an_attempt_that_kept_calls_waiting_is_made_again_much_later(held: float, jitter: float, before: int) -> None:
    """However often it fails, calls are kept waiting for less than a tenth of the time; the wait has an end."""
    error = SyncFailed("apply_timeout", "it took too long")
    previous = FailedSync(7, before, NOW, "c", "m", NOW)
    quick = rules.failure(previous, 7, error, NOW, jitter).retry_at
    error.held = held
    slow = rules.failure(previous, 7, error, NOW, jitter).retry_at
    assert slow >= quick
    assert min(10 * held, 2700) <= (slow - NOW).total_seconds() <= 3600


def test_another_generation_starts_to_count_anew() -> None:
    failed = rules.failure(rules.failure(None, 7, ERROR, NOW, 0.0), 7, ERROR, NOW, 0.0)
    assert failed.attempts == 2
    assert rules.failure(failed, 8, ERROR, NOW, 0.0).attempts == 1


@given(st.integers(0, 400), st.integers(-10, 400))
def test_a_poll_tells_the_failure_until_it_is_due_and_is_not_held_past_that(wait: int, later: int) -> None:
    failed = FailedSync(3, 1, NOW + timedelta(seconds=wait), "c", "m", NOW)
    now = NOW + timedelta(seconds=later)
    told, hold = rules.told(failed, now), rules.hold(failed, now)
    assert hold <= rules.HOLD
    assert (hold == 0) == failed.due(now)
    if later < wait:
        assert told == wire.FailedGeneration(3, failed.retry_at)
        assert now + timedelta(seconds=hold) <= failed.retry_at
    else:
        assert told is None


def test_without_a_failure_a_poll_is_held_as_long_as_control_holds() -> None:
    assert rules.hold(None, NOW) == 25.0
    assert rules.told(None, NOW) is None


@given(st.floats(-3600, 3600))
def test_a_plan_for_another_generation_is_begun_at_once_and_the_failed_one_never_in_a_hot_loop(ago: float) -> None:
    failed = FailedSync(3, 1, NOW + timedelta(seconds=300), "c", "m", NOW - timedelta(seconds=ago))
    assert rules.pause_before(failed, 4, NOW) == 0
    assert rules.pause_before(None, 3, NOW) == 0
    pause = rules.pause_before(failed, 3, NOW)
    assert 0 <= pause <= 1.0
    assert ago < 0 or pause + ago >= 0.999


@given(st.sampled_from([None, 200, 400, 401, 403, 404, 408, 422, 429, 500, 502, 503]), st.integers(1, 10**6), JITTER)
def test_after_any_trouble_the_node_waits_and_comes_back(status: int | None, attempts: int, jitter: float) -> None:
    assert 0.1 < rules.pause_after(status, None, attempts, jitter) <= 300


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_node_polls_slowly_whatever_retry_after_says(status: int) -> None:
    assert rules.pause_after(status, 0.0, 1, 0.99) > 20
    assert rules.pause_after(status, None, 100, 0.0) == 300


def test_a_lost_control_is_looked_for_quickly_at_first_and_every_half_minute_later() -> None:
    assert rules.pause_after(None, None, 1, 0.0) == 0.25
    assert rules.pause_after(None, None, 100, 0.0) == 30


@given(st.floats(0, 10**6), JITTER)
def test_retry_after_is_kept_to_and_spread_but_not_for_ever(seconds: float, jitter: float) -> None:
    pause = rules.pause_after(503, seconds, 1, jitter)
    assert pause <= rules.ANSWER_CAP
    assert pause >= min(seconds, rules.ANSWER_CAP)
    assert pause > 0


def test_a_lower_generation_is_refused_and_the_same_one_is_followed() -> None:
    with pytest.raises(SyncFailed) as caught:
        rules.check_plan(plan(4), 5)
    assert caught.value.code == "generation_lower"
    assert rules.check_plan(plan(5), 5) == {}


def test_the_manifests_of_a_plan_are_typed() -> None:
    function = planned(manifest={"sql": "read", "time_limit_ms": 50})
    assert rules.check_plan(plan(functions=[function]), 0) == {"hello": wire.Manifest(sql="read", time_limit_ms=50)}


@pytest.mark.parametrize("manifest", [{"grant_network": True}, {"sql": "admin"}, {"time_limit_ms": "5"}])
def test_a_manifest_that_the_node_does_not_understand_fails_the_sync_by_name(manifest: dict[str, Any]) -> None:
    with pytest.raises(SyncFailed, match="function hello") as caught:
        rules.check_plan(plan(functions=[planned(manifest=manifest)]), 0)
    assert caught.value.code == "manifest_unknown"


def test_a_function_named_twice_is_refused() -> None:
    with pytest.raises(SyncFailed) as caught:
        rules.check_plan(plan(functions=[planned(), planned(version=2)]), 0)
    assert caught.value.code == "plan_invalid"


def test_space_is_needed_for_what_is_missing_alone() -> None:
    one, other = planned("a", sha256="1" * 64, size=100), planned("b", sha256="2" * 64, size=1000)
    same = planned("c", sha256="2" * 64, size=1000)
    assert rules.space_needed([one, other, same], {}) == 1100 * 7
    assert rules.space_needed([one, other], {"1" * 64: 100}) == 7000
    assert rules.space_needed([one, other], {"1" * 64: 100, "2" * 64: 400}) == 6600
    assert rules.space_needed([one], {"1" * 64: 100}) == 0


def test_a_disk_that_is_too_full_is_refused_before_the_download_and_says_how_much_is_missing() -> None:
    rules.check_space(1, DISK_RESERVE + 1, "/x")
    rules.check_space(0, 0, "/x")  # nothing to fetch: nothing to refuse
    with pytest.raises(SyncFailed, match=r"needs 3\.0 MiB .* /x has only 18\.0 MiB") as caught:
        rules.check_space(3 * 1024 * 1024, 18 * 1024 * 1024, "/x")
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize(
    ("status", "final"), [(404, True), (409, True), (422, True), (401, False), (429, False), (503, False)]
)
def test_a_report_is_dropped_only_where_asking_again_cannot_help(status: int, final: bool) -> None:
    assert rules.final(status) is final


def test_one_or_two_crashes_in_a_sync_are_nobodys_fault_and_more_are_the_releases() -> None:
    assert [rules.crashed(5, 2, crashes, NOW, 0.0) for crashes in (0, 1, 2)] == [None] * 3
    waits = []
    for crashes in range(3, 12):
        failed = rules.crashed(5, 2, crashes, NOW, 0.0)
        assert failed is not None
        assert (failed.generation, failed.code) == (5, "node_crashed")
        waits.append((failed.retry_at - NOW).total_seconds())
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
