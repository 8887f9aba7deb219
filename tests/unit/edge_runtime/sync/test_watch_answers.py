"""Which records answer a question, and what is left out where there are too many."""

import itertools
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.sync import watch_answers
from edge_runtime.sync.watch_answers import WatchAnswer
from edge_runtime.telemetry import records, search
from edge_runtime.telemetry.ring import Ring, RingFiles


def question(**more: Any) -> wire.Question:
    return wire.Question("one", datetime.now(UTC), **{"rate": 1e9, **more})


def line(number: int, at: float | None = None, **more: Any) -> bytes:
    t = records.time_text(time.time() if at is None else at)
    head = {"t": t, "kind": "log", "level": "info", "function": "orders", "call": "a-1"}
    return records.encode({**head, **more, "message": str(number)})


def messages(lines: list[bytes]) -> list[int]:
    return [int(orjson.loads(line)["message"]) for line in lines]


def following(**more: Any) -> WatchAnswer:
    made = WatchAnswer(question(**more))
    made._at -= 10  # as if its rate had been there for a while
    return made


@pytest.mark.parametrize(
    ("asked", "other", "fits"),
    [
        ({}, {}, True),
        ({}, {"kind": "node"}, True),
        ({}, {"kind": "call"}, False),
        ({"kind": "calls"}, {}, False),
        ({"kind": "calls"}, {"kind": "call", "outcome": "ok"}, True),
        ({"kind": "calls", "failed": True}, {"kind": "call", "outcome": "ok"}, False),
        ({"kind": "calls", "failed": True}, {"kind": "call", "outcome": "timeout"}, True),
        ({"level": "warning"}, {"level": "info"}, False),
        ({"level": "warning"}, {"level": "error"}, True),
        ({"function": "orders"}, {}, True),
        ({"function": "other"}, {}, False),
        ({"call": "a-1"}, {}, True),
        ({"call": "a-2"}, {}, False),
        ({}, {"level": None}, False),
    ],
)
def test_a_record_answers_a_question(asked: dict[str, Any], other: dict[str, Any], fits: bool) -> None:
    one = following(**asked)
    one.put(line(1, **other))
    assert messages(one.take().lines) == [1] * fits


def test_what_isnt_a_record_answers_nothing() -> None:
    one = following()
    for wrong in (b"", b"x\n", b"\xff\n", b'{"t":"2026-11-28T06:00:00.123Z"', b"[]\n"):
        one.put(wrong)
    assert one.take() == ([], 0)


def test_what_came_before_is_left_to_the_search_and_what_waits_isnt_found_twice() -> None:
    one = following()
    now = time.time()
    early, late = line(1, now), [line(2, now - 5), line(3, now), line(3, now)]
    one.put(early)
    one.begin()
    for each in late:
        one.put(each)
    # It was made after `begin`, of something before; and the same line twice, of which one was there already.
    found = [each.rstrip(b"\n") for each in (early, *late, late[2])]
    assert messages(one.without_waiting(found)) == [1, 3]
    assert messages(one.take().lines) == [2, 3, 3]
    one.rest()
    one.put(late[0])
    assert one.take().lines == []


@pytest.mark.parametrize("count", [1, 2000, 2001, 10_000, 100_000])
def test_too_many_are_sampled_evenly_within_bounds(count: int) -> None:
    one = following()
    for number in range(count):
        one.put(line(number))
        assert len(one._lines) <= watch_answers.KEPT_LINES
        assert one._size <= watch_answers.KEPT_BYTES
    taken = one.take()
    shown = messages(taken.lines)
    assert len(shown) + taken.sampled == count
    assert len(shown) >= min(count, watch_answers.KEPT_LINES // 4)
    gaps = {b - a for a, b in itertools.pairwise(shown)}
    assert len(gaps) <= 1, gaps


def test_a_large_record_is_kept_alone() -> None:
    one = following()
    for number in range(3):
        one.put(line(number, function="x" * 1_000_000))
    taken = one.take()
    assert (len(taken.lines), taken.sampled) == (1, 2)


def test_the_rate_is_kept_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The time stands still: on a busy machine another record may be sent meanwhile.
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)
    one = following(rate=10.0)
    for number in range(1000):
        one.put(line(number))
    taken = one.take()
    assert (len(taken.lines), taken.sampled) == (20, 980)
    assert messages(taken.lines) == list(range(0, 1000, 50))
    one.put(line(1))
    taken = one.take()
    assert (len(taken.lines), taken.sampled) == (0, 1)
    assert one.take().sampled == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ring with a hundred lines and ten calls, and one line of the node's."""
    ring = Ring(tmp_path / "telemetry", 1 << 20, 3600.0)
    ring.start()
    for number in range(100):
        ring.put(line(number, 1000.0 + number, level="warning" if number % 10 == 0 else "info"))
        if number % 10 == 0:
            seconds = (number * 7 % 100) / 10
            outcome = "ok" if number else "timeout"
            ring.put(line(number, 1000.5 + number, kind="call", seconds=seconds, outcome=outcome))
    ring.put(line(100, 1050.2, kind="node", level="error", function="", call=""))
    ring.close()
    return ring.folder


def test_the_past_has_the_newest_in_order(folder: Path) -> None:
    past = WatchAnswer(question(limit=60)).past(folder, 1010.0)
    assert messages(past.lines) == [*range(41, 51), 100, *range(51, 100)]
    assert past.more
    past = WatchAnswer(question(limit=200)).past(folder, 1090.0)
    assert (messages(past.lines), past.more) == (list(range(90, 100)), False)
    past = WatchAnswer(question(limit=200, level="warning", function="orders")).past(folder, 0.0)
    assert messages(past.lines) == list(range(0, 100, 10))


def of_kind(kind: str, lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if orjson.loads(line)["kind"] == kind]


def test_calls_are_found_by_their_seconds_and_their_failure(folder: Path) -> None:
    past = WatchAnswer(question(kind="calls", limit=2, slowest=True)).past(folder, 0.0)
    assert [orjson.loads(line)["seconds"] for line in of_kind("call", past.lines)] == [8.0, 9.0]
    assert past.more
    past = WatchAnswer(question(kind="calls", limit=10, failed=True)).past(folder, 0.0)
    assert (messages(of_kind("call", past.lines)), past.more) == ([0], False)
    # With the first lines that they have logged.
    assert messages(of_kind("log", past.lines)) == list(range(wire.LINES_OF_CALL))


def test_what_a_call_logged_is_found_among_any_number_of_other_lines(tmp_path: Path) -> None:
    calls = [
        made
        for number in range(2)
        for made in (
            line(number, 1000.0, call=f"b-{number}"),
            line(number, 1001.0, kind="call", seconds=1.0, call=f"b-{number}"),
        )
    ]
    others = [line(number, 1001.5) for number in range(search.MOST + 1)]
    later = [line(7, 1020.0, kind="node", call="b-1"), line(8, 1020.0, kind="node")]
    files = RingFiles(tmp_path, 16 << 20, 1e9)
    files.write([*calls, *others, *later])
    files.close()
    past = WatchAnswer(question(kind="calls", limit=10)).past(tmp_path, 0.0)
    assert messages(of_kind("log", past.lines)) == [0, 1]
    assert messages(of_kind("node", past.lines)) == [7], "the node's own log says more of a call some seconds later"


def test_the_nodes_own_lines_of_a_function_are_found_as_they_are_followed(tmp_path: Path) -> None:
    asked, made = following(function="orders"), line(1, kind="node", level="error")
    asked.put(made)
    ring = Ring(tmp_path / "telemetry", 1 << 20, 3600.0)
    ring.start()
    ring.put(made)
    ring.close()
    assert asked.past(ring.folder, 0.0).lines == [line.rstrip(b"\n") for line in asked.take().lines] != []


def test_what_a_newer_control_asks_is_left_out() -> None:
    assert watch_answers.known(question())
    assert not watch_answers.known(question(kind="traces"))
    assert not watch_answers.known(question(level="verbose"))
