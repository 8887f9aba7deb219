"""Where a call's time went: noted by its worker within bounds, read by the front with distrust."""

from time import perf_counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.ipc import call_times
from edge_runtime.ipc.call_times import COMMIT, HOUR, HTTP, LOCK, MOST, MOST_TEXTS, SQL, TEXT, Slowest, StepClock


def test_steps_come_as_they_were():
    clock = StepClock()
    began = perf_counter()
    clock.add(LOCK, began)
    clock.add(SQL, began, "SELECT 'secret'")
    clock.add(HTTP, began, "example.org")
    clock.add(COMMIT, began)
    told = call_times.decode(clock.encode(began, perf_counter(), lambda sql: sql.replace("'secret'", "?")))
    assert [(step.kind, told.texts[step.text]) for step in told.steps] == [
        (LOCK, ""),
        (SQL, "SELECT ?"),
        (HTTP, "example.org"),
        (COMMIT, ""),
    ]
    assert all(0 <= step.start + step.micros <= told.micros + 1 for step in told.steps)
    # The next call's are its own.
    clock.clear()
    assert call_times.decode(clock.encode(began, perf_counter(), str)).steps == []


def test_a_call_of_many_statements_is_told_in_bounds():
    clock = StepClock()
    began = perf_counter()
    for number in range(10_000):
        clock.add(SQL, perf_counter(), f"SELECT {number % 500} " + "x" * 10_000)
    raw = clock.encode(began, perf_counter(), str)
    told = call_times.decode(raw)
    assert len(raw) < call_times.LONGEST
    assert (len(told.steps), len(told.others)) == (MOST, MOST_TEXTS + 1)
    assert len(told.steps) + sum(steps.count for steps in told.others) == 10_000
    assert max(map(len, told.texts)) == TEXT


@pytest.mark.parametrize(
    "value",
    [
        [-1, [], [], []],
        [2**41, [], [], []],
        [1.5, [], [], []],
        [1, [[4, 0, 0, 0]], [], [""]],
        [1, [[0, 0, 0, 0]], [], []],
        [1, [[0, 0, -5, 0]], [], [""]],
        [1, [], [[1, 0, 5, 0]], [""]],
        [1, [], [[1, 2**50, 5, 0]], [""]],
        [1, [], [[1, 1, 5, 1]], [""]],
        [1, [[0, 0, 0, 0]] * (MOST + 1), [], [""]],
        [1, [], [], ["x" * (TEXT + 1)]],
        [1, [], [], ["x"] * 1000],
        [1, [], []],
        {"micros": 1},
        "nonsense",
    ],
)
def test_what_no_honest_worker_tells_is_refused(value: Any):
    with pytest.raises(ValueError, match=r"\w"):
        call_times.decode(msgspec.msgpack.encode(value))


def test_more_than_a_worker_tells_is_refused_unread():
    with pytest.raises(ValueError, match="bytes"):
        call_times.decode(bytes(call_times.LONGEST + 1))


@given(st.lists(st.floats(0, 10), min_size=17, max_size=300))
def test_the_slowest_of_an_hour_are_slow(times):
    slowest = Slowest()
    found = [seconds for seconds in times if slowest.add(seconds, 5.0)]
    assert sorted(found)[-16:] == sorted(times)[-16:] or min(sorted(times)[-16:]) == 0.0
    assert slowest.bar <= sorted(times)[-16]


def test_the_bar_comes_down_with_the_hour():
    slowest = Slowest()
    assert all(slowest.add(1.0 + n / 100, 0.0) for n in range(16))
    assert slowest.bar == 1.0
    assert not slowest.add(0.9, HOUR - 1)
    assert slowest.add(0.9, HOUR + 1)
    assert slowest.bar == 0.5
    assert not slowest.add(0.1, HOUR + 2)
