"""Records of slow and failed calls: what they say, and that there aren't too many."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.dispatch.served_functions import Tally
from edge_runtime.ipc.call_times import COMMIT, HOUR, HTTP, LOCK, SQL, TEXT, CallTimes, Step, Steps
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.redaction import redact
from edge_runtime.telemetry.call_records import BURST, BURST_OF_ALL, CallRecords, NotedCall, record


def noted(**changed: Any) -> NotedCall:
    function = LocalFunction(changed.pop("name", "f"), 3, "0" * 64, Manifest(sql=changed.pop("sql", "write")), "")
    call = NotedCall(1e9, 100.0, function, 12, b"ab-1", "GET", "/functions/f/a", "ok", 200, 0.5, 0.4, None)
    return call._replace(**changed)


def test_a_record_says_where_the_time_went():
    steps = [
        Step(LOCK, 0, 50_000, 0),
        Step(SQL, 50_000, 1000, 1),
        Step(SQL, 52_000, 100_000, 2),
        Step(COMMIT, 0, 20_000, 0),
    ]
    times = CallTimes(400_000, [*steps, Step(HTTP, 0, 30_000, 3)], [Steps(SQL, 9, 9000, 1)], ["", "A", "B", "host"])
    made = record(noted(times=times), "edge-1")
    assert made == {
        "t": "2001-09-09T01:46:40.000Z",
        "kind": "call",
        "function": "f",
        "version": 3,
        "release": 12,
        "call": "ab-1",
        "node": "edge-1",
        "method": "GET",
        "path": "/functions/f/a",
        "outcome": "ok",
        "status": 200,
        "seconds": 0.5,
        "times": {"queue": 0.1, "guest": 0.19, "lock": 0.05, "sql": 0.11, "http": 0.03, "commit": 0.02},
        "sql": [{"statement": "B", "count": 1, "seconds": 0.1}, {"statement": "A", "count": 10, "seconds": 0.01}],
        "http": [{"host": "host", "count": 1, "seconds": 0.03}],
    }
    assert sum(made["times"].values()) == pytest.approx(0.5)


def test_no_value_of_a_secret_is_in_a_record():
    key = "sk-0123456789abcdef"
    redact.know({"a": {"API_KEY": key}})
    cut = f"SELECT {'x, ' * 100}"[: TEXT - 8] + key[:8]
    steps = [Step(SQL, 0, 1000, 0), Step(HTTP, 0, 1000, 1), Step(SQL, 0, 500, 2)]
    made = record(noted(times=CallTimes(10, steps, [], [f'SELECT "{key}"', f"{key}.example.org", cut])))
    assert [step["statement"] for step in made["sql"]] == [
        'SELECT "[secret API_KEY]"',
        cut[:-8] + "[secret API_KEY]",
    ]
    assert made["http"][0]["host"] == "[secret API_KEY].example.org"


def test_a_call_whose_worker_told_nothing_or_that_had_none():
    assert record(noted())["times"] == {"queue": 0.1, "worker": 0.4}
    assert record(noted(sql="none"))["times"] == {"queue": 0.1, "guest": 0.4}
    refused = record(noted(outcome="queue_full", status=503, took=None))
    assert refused["times"] == {"queue": 0.5}
    assert "sql" not in refused


def test_a_worker_that_tells_absurd_times_makes_no_absurd_record():
    times = CallTimes(2**40, [Step(SQL, 0, 2**40, 0)] * 60, [Steps(COMMIT, 2**40, 2**40, 0)], ["X"])
    made = record(noted(times=times, path="/" + "x" * 100_000))
    assert all(0 <= seconds <= 0.5 for seconds in made["times"].values())
    assert made["times"]["guest"] == 0
    assert len(orjson.dumps(made)) < 1500


class World:
    """Functions whose calls are noted, and the records that are made of them."""

    def __init__(self, *names: str) -> None:
        self.tallies = [Tally(name) for name in names]
        self.made: list[Any] = []
        self.now = 100.0
        put = lambda line: self.made.append(orjson.loads(line))  # noqa: E731
        self.records = CallRecords(lambda: self.tallies, put, "", lambda: self.now)

    def calls(self, tally: Tally, count: int, make: Callable[[int], NotedCall]) -> None:
        for number in range(count):
            call = make(number)
            if call.outcome != "ok" or call.seconds > tally.slow:
                tally.noted.append(call)
            self.records.make()


def test_a_quick_call_is_no_record_once_there_were_sixteen_slower_ones():
    world = World("f")
    (tally,) = world.tallies
    world.calls(tally, 16, lambda n: noted(seconds=1.0 + n / 10))
    assert len(world.made) == 16
    assert tally.slow == 1.0
    world.calls(tally, 100, lambda n: noted(seconds=0.5))
    assert len(world.made) == 16
    world.calls(tally, 1, lambda n: noted(seconds=3.0))
    assert (len(world.made), tally.slow) == (17, 1.1)


def test_another_hour_finds_its_slowest_though_nothing_was_slow():
    world = World("f")
    (tally,) = world.tallies
    world.calls(tally, 16, lambda n: noted(seconds=4.0))
    assert tally.slow == 4.0
    for hours, bar in ((0.5, 4.0), (1.5, 2.0), (1.6, 2.0), (2.6, 1.0)):
        world.now = 100.0 + hours * HOUR
        world.records.make()
        assert tally.slow == bar


def test_failed_calls_are_bounded_and_what_is_left_out_is_said():
    world = World("f", "g")
    failing, other = world.tallies
    world.calls(failing, 1000, lambda n: noted(outcome="guest_trap", status=502))
    assert len(world.made) == BURST
    assert failing.unnoted == 1000 - BURST
    # Another function's are there all the same.
    world.calls(other, 1, lambda n: noted(name="g", outcome="time_limit", status=504))
    assert world.made[-1]["function"] == "g"
    world.calls(failing, 1, lambda n: noted(outcome="guest_trap", status=502, now=101.0))
    assert world.made[-1]["left_out"] == 1000 - BURST
    assert failing.unnoted == 0


def test_a_thousand_failing_functions_are_bounded_together():
    world = World(*(f"f{number}" for number in range(1000)))
    for tally in world.tallies:
        tally.noted = [noted(outcome="guest_trap")] * 3
    world.records.make()
    assert len(world.made) == BURST_OF_ALL
    assert sum(tally.unnoted for tally in world.tallies) == 3000 - BURST_OF_ALL


def test_a_clock_that_jumps_makes_no_flood():
    world = World("f")
    (tally,) = world.tallies
    world.calls(tally, 200, lambda n: noted(outcome="guest_trap", at=1e9 - n * 1e6, now=100.0 - n))
    assert len(world.made) == BURST
