"""What a worker's frame is for its call, its function's counts and its breaker; and what no worker says."""

import signal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from control import sketch
from control.manifest_fields import Manifest
from edge_runtime.children.worker_services import KINDS
from edge_runtime.dispatch import outcomes
from edge_runtime.dispatch.breaker import RULES, Breaker
from edge_runtime.dispatch.outcomes import Answer, Refusal
from edge_runtime.dispatch.served_functions import SHORT, ServedFunction, Tally
from edge_runtime.ipc import frames, progress_page
from edge_runtime.settings import PoolLimits

LOCAL = frames.LocalFunction("f", 1, "0" * 64, Manifest(), "")

LIMITS = PoolLimits(workers=1, lock_wait=10.0, lock_hold=2.0)


def served() -> ServedFunction:
    return ServedFunction(0, LOCAL, Tally("f"), Breaker(), False, 5.0, 7)


def call(began: float = 10.0) -> Any:
    return SimpleNamespace(began=began, request_id=b"", method="GET", script="/functions/f", path="", times=None)


def fault(status: Any) -> bytes:
    return msgspec.json.encode({"code": "guest_trap", "message": "It trapped.", "status": status})


def test_an_answer_and_a_fault_are_outcomes_and_are_counted() -> None:
    made, one = served(), call(9.9)
    answered, none = outcomes.of_frame(201, b"h", b"x", 7)
    assert (answered, none) == (Answer(201, b"h", b"x", 7), None)
    assert not made.settle(one, answered, 10.0, 0.0015)
    assert made.tally.outcomes == {"ok": 1}
    # Its waiting counts, too; but not in what decides where calls go.
    assert made.counts.times == {sketch.bucket(0.1): 1}
    assert made.tally.recent == 0.0015
    refused, found = outcomes.of_frame(frames.FAULT, b"", fault(503), 7)
    assert refused == Refusal(503, "guest_trap", "It trapped.", 1, release=7)
    assert found == frames.Fault("guest_trap", "It trapped.", 503)
    assert not made.settle(one, refused, 71.0, 60.0)
    assert made.tally.outcomes == {"ok": 1, "guest_trap": 1}
    assert made.counts.times[sketch.LONGER] == 1
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
    ("kind", "body"),
    [
        (600, b""),
        (65_535, b""),
        (frames.FAULT, fault(200)),
        (frames.FAULT, fault(600)),
        (frames.FAULT, fault(10**9)),
        (frames.FAULT, fault("502")),
        (frames.FAULT, b"{}"),
        (frames.DONE, b""),
    ],
)
def test_what_no_worker_says_is_no_outcome(kind: int, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        outcomes.of_frame(kind, b"", body, 7)


@pytest.mark.parametrize("denied", [{"sql": 0}, {"sql": -1}, {"x" * 1000: 1}, {"": 1}, {"sql": "1"}])
def test_a_worker_makes_up_no_label_of_the_metrics(denied: dict[str, Any]) -> None:
    assert outcomes.denials(b'{"sql":2,"http_host":1}') == {"sql": 2, "http_host": 1}
    with pytest.raises(ValueError, match=r"\w"):
        outcomes.denials(msgspec.json.encode(denied))


def test_every_kind_that_a_worker_counts_is_known() -> None:
    # The front doesn't import what opens databases, so it has a list of its own.
    assert set(outcomes.DENIED) == {*KINDS.values(), "http_host"}


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
        # Whatever ended it: what was being committed may be kept.
        (progress_page.COMMITTING, "", signal.SIGKILL, (502, "commit_unknown")),
        (progress_page.COMMITTING, outcomes.STUCK, signal.SIGKILL, (502, "commit_unknown")),
    ],
)
def test_what_the_client_is_told(state: int, reason: str, status: Any, expected: tuple[int, str]) -> None:
    told = outcomes.of_death(LOCAL, state, reason, status, LIMITS, "")
    assert (told.status, told.code) == expected
    assert (told.retry_after > 0) == (told.status == 503)
    assert ("Nothing was changed" in told.message) == (told.code != "commit_unknown")


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
