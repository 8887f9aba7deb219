"""What a call's end is for its function's counts and its breaker, and what is said of a worker's death."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from control.protocol import histogram
from control.protocol.manifest import Manifest
from edge_runtime.dispatch import outcomes
from edge_runtime.dispatch.breaker import RULES, Breaker
from edge_runtime.dispatch.outcomes import Answer, Refusal
from edge_runtime.dispatch.served_functions import SHORT, ServedFunction, Tally
from edge_runtime.ipc import frames, progress_page
from tests.support.pool_settings import pool_settings

LOCAL = frames.LocalFunction("f", 1, "0" * 64, Manifest(), "")

LIMITS = pool_settings(1, lock_wait=10.0, lock_hold=2.0)


def served() -> ServedFunction:
    return ServedFunction(0, LOCAL, Tally("f"), Breaker(), False, 5.0, 7)


def call(began: float = 10.0) -> Any:
    return SimpleNamespace(began=began, request_id=b"", method="GET", script="/functions/f", path="", times=None)


def test_answers_and_refusals_are_counted() -> None:
    made, one = served(), call(9.9)
    assert not made.settle(one, Answer(201, b"h", b"x", 7), 10.0, 0.0015)
    assert made.tally.outcomes == {"ok": 1}
    # Its waiting counts, too; but not in what decides where calls go.
    assert made.counts.times == {histogram.bucket(0.1): 1}
    assert made.tally.recent == 0.0015
    assert not made.settle(one, Refusal(502, "guest_trap", "It trapped.", release=7), 71.0, 60.0)
    assert made.tally.outcomes == {"ok": 1, "guest_trap": 1}
    assert made.counts.times[histogram.LONGER] == 1
    assert made.counts.total == pytest.approx(61.2)
    assert made.breaker.calls == 2


def test_a_function_that_answers_5xx_has_failed() -> None:
    made = served()
    for status in (200, 404, 499, 500, 503):
        made.settle(call(), Answer(status, b"", b"", 7), 10.0, 0.001)
    assert made.tally.outcomes == {"ok": 3, "answer_5xx": 2}
    assert (made.counts.calls, made.counts.failed) == (5, 2)


def test_a_refusal_without_a_worker_lets_another_call_try() -> None:
    made, one = served(), call()
    for _ in range(RULES[0][0]):
        opened = made.settle(call(), Refusal(502, "worker_crashed", "x"), 10.0, blamed=True)
    assert opened
    over = made.breaker.until
    assert made.breaker.left(one, over) == 0
    assert made.breaker.left(object(), over) > 0
    assert not made.settle(one, Refusal(499, "client_gone", "x"), 100.0)
    another = call(100.0)
    assert made.breaker.left(another, over) == 0
    assert made.tally.outcomes == {"worker_crashed": RULES[0][0], "client_gone": 1}
    assert made.tally.recent == 0.0
    assert sum(made.counts.times.values()) == RULES[0][0] + 1
    # That one is answered, and so ends the cut.
    assert not made.settle(another, Answer(200, b"", b"", 7), 100.5, 0.5)
    assert made.breaker.closed


@pytest.mark.parametrize(
    ("state", "reason", "status", "expected"),
    [
        (progress_page.RUNNING, outcomes.TIME_LIMIT, signal.SIGKILL, (504, "time_limit")),
        (progress_page.WRITING, outcomes.LOCK_HELD, signal.SIGKILL, (504, "lock_held_too_long")),
        (progress_page.WAITING, outcomes.LOCK_WAIT, signal.SIGKILL, (503, "writer_busy")),
        (progress_page.RUNNING, outcomes.MEMORY, signal.SIGKILL, (507, "memory_limit")),
        (progress_page.RUNNING, outcomes.TEMP, signal.SIGKILL, (507, "sql_disk_limit")),
        (progress_page.RUNNING, "", signal.SIGSEGV, (502, "worker_crashed")),
        (progress_page.RUNNING, "", None, (502, "worker_crashed")),
        (progress_page.RUNNING, outcomes.FOREIGN, signal.SIGKILL, (502, "worker_crashed")),
        # Whatever ended it: what was being committed may be kept.
        (progress_page.COMMITTING, "", signal.SIGKILL, (502, "commit_unknown")),
        (progress_page.COMMITTING, outcomes.STUCK, signal.SIGKILL, (502, "commit_unknown")),
    ],
)
def test_what_the_client_is_told(state: int, reason: str, status: Any, expected: tuple[int, str]) -> None:
    told = outcomes.of_death(LOCAL, state, reason, status, LIMITS, "")
    assert (told.status, told.code) == expected
    assert (told.retry_after > 0) == (told.status == 503)
    # Nobody knows what one has done that is in the hands of others.
    assert ("Nothing was changed" in told.message) == (told.code != "commit_unknown" and reason != outcomes.FOREIGN)


def test_who_holds_the_database_is_told_where_it_is_known() -> None:
    for by in ("process 4711 (sqlite3)", ""):
        told = outcomes.of_death(LOCAL, progress_page.WAITING, outcomes.HELD, signal.SIGKILL, LIMITS, by)
        assert (told.code, by in told.message) == ("database_held", True)


@pytest.mark.parametrize(
    ("reason", "state", "status", "its_own"),
    [
        ("", progress_page.RUNNING, signal.SIGSEGV, True),
        ("", progress_page.RUNNING, 1 << 8, True),
        (outcomes.TIME_LIMIT, progress_page.RUNNING, signal.SIGKILL, True),
        (outcomes.MEMORY, progress_page.RUNNING, None, True),
        (outcomes.TEMP, progress_page.RUNNING, None, True),
        (outcomes.LOCK_HELD, progress_page.WRITING, signal.SIGKILL, True),
        (outcomes.FOREIGN, progress_page.COMMITTING, signal.SIGKILL, True),
        (outcomes.LOCK_WAIT, progress_page.WAITING, signal.SIGKILL, False),
        (outcomes.CLIENT_GONE, progress_page.RUNNING, signal.SIGKILL, False),
        (outcomes.STUCK, progress_page.COMMITTING, signal.SIGKILL, False),
        # From outside, or with the zygote.
        ("", progress_page.RUNNING, signal.SIGKILL, False),
        ("", progress_page.RUNNING, None, False),
        ("", progress_page.COMMITTING, signal.SIGBUS, False),
    ],
)
def test_whose_fault_it_is(reason: str, state: int, status: Any, its_own: bool) -> None:
    assert outcomes.blames(reason, state, status) is its_own


def test_one_call_that_was_held_up_leaves_a_function_short() -> None:
    made = served()

    def took(seconds: float) -> None:
        made.settle(call(), Answer(200, b"", b"", 7), 10.0 + seconds, seconds)

    for _ in range(10):
        took(0.0001)
    took(1.0)
    assert made.tally.short
    for _ in range(10):
        took(1.0)
    assert not made.tally.short
    assert made.tally.recent > SHORT
    assert made.counts.total == pytest.approx(11.001)


def test_what_was_denied_stays_a_number_that_everybody_can_read() -> None:
    made = served()
    for _ in range(3):
        made.tally.deny("sql", 2**53 - 2)
    assert made.tally.denied == {"sql": 2**53}
