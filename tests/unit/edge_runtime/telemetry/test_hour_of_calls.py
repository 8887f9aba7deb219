"""The node's calls of the last hour: all of them, none twice, in bounded memory, and none of the release that they are
compared with."""

from dataclasses import dataclass, field

import msgspec
import pytest

from control.protocol import histogram, wire
from control.sync import hours_before
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.telemetry.hour_of_calls import PERIOD, TALLIES, HourOfCalls
from edge_runtime.telemetry.poll_report import PollReport


@dataclass
class Function:
    name: str
    counts: dict[int, CallCounts] = field(default_factory=dict)

    def call(self, release: int = 1, outcome: str = "ok", seconds: float = 0.01, times: int = 1) -> None:
        counts = self.counts.setdefault(release, CallCounts(0, release))
        counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + times
        bucket = histogram.bucket(seconds)
        counts.times[bucket] = counts.times.get(bucket, 0) + times


@dataclass
class World:
    """A node whose clock stands still until `now` is set."""

    now: float = 1000.0
    functions: list[Function] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hour = HourOfCalls(lambda: self.functions, lambda: self.now)
        self.numbers = PollReport(hour=self.hour, clock=lambda: self.now)

    async def passes(self, seconds: float) -> None:
        """As many polls as a node makes in that time."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 25)
            await self.numbers.next()

    async def before(self, release: int = 2) -> dict[str, tuple[int, dict[str, int]]]:
        """Calls and outcomes by function, as control reads them."""
        sent = await self.numbers.hour_before(release)
        found = hours_before.read(sent) if sent else []
        return {calls.function: (sum(calls.times.values()), calls.outcomes) for calls in found}


def seconds(sent: bytes) -> float:
    return msgspec.msgpack.decode(sent, type=wire.HourBefore).seconds


async def test_calls_of_an_hour_are_kept_and_older_ones_are_not() -> None:
    orders = Function("orders")
    world = World(functions=[orders])
    for _ in range(30):
        orders.call(times=10)
        orders.call(outcome="guest_trap")
        await world.passes(PERIOD)
    calls, outcomes = (await world.before())["orders"]
    assert (calls, outcomes) == (TALLIES * 11, {"guest_trap": TALLIES})
    assert seconds(await world.hour.before(2)) == TALLIES * PERIOD
    # With those since the last tally.
    orders.call(times=5)
    await world.passes(PERIOD / 2)
    assert (await world.before())["orders"][0] == TALLIES * 11 + 5
    assert seconds(await world.hour.before(2)) == TALLIES * PERIOD + PERIOD / 2


async def test_the_calls_of_the_release_itself_are_left_out() -> None:
    orders, stock = Function("orders"), Function("stock")
    world = World(functions=[orders, stock])
    orders.call(1, times=3)
    await world.passes(PERIOD)
    orders.call(2, times=4)
    await world.passes(PERIOD)
    orders.call(3, "guest_trap", times=100)
    stock.call(3, "guest_trap", times=100)
    assert await world.before(3) == {"orders": (7, {})}
    await world.passes(PERIOD)
    assert await world.before(3) == {"orders": (7, {})}


async def test_counts_that_were_replaced_begin_anew() -> None:
    orders = Function("orders")
    world = World(functions=[orders])
    orders.call(times=10)
    await world.passes(PERIOD)
    # As `Tally.of_release` does when the function's place in a release is another one.
    del orders.counts[1]
    orders.call(times=3)
    assert (await world.before())["orders"] == (13, {})


async def test_without_calls_nothing_is_known() -> None:
    world = World(functions=[Function("orders")])
    await world.passes(3 * PERIOD)
    assert await world.numbers.hour_before(2) == b""
    assert await PollReport().hour_before(2) == b""


async def test_times_survive() -> None:
    orders = Function("orders")
    world = World(functions=[orders])
    orders.call(seconds=0.001, times=980)
    await world.passes(PERIOD)
    orders.call(seconds=0.5, times=20)
    (calls,) = hours_before.read(await world.numbers.hour_before(2))
    assert histogram.quantile(calls.times, 0.5) == pytest.approx(0.001, rel=0.1)
    assert histogram.quantile(calls.times, 0.99) == pytest.approx(0.5, rel=0.1)


async def test_any_node_is_within_what_control_takes() -> None:
    functions = [Function(f"{'x' * 50}{number}") for number in range(wire.MOST_FUNCTIONS + 10)]
    for function in functions:
        for place, outcome in enumerate(wire.OUTCOMES):
            function.call(outcome=outcome, seconds=0.0001 * 1.3**place, times=2**40)
        function.call(seconds=20.0)
    functions[5].call(times=2**45)
    world = World(functions=functions)
    sent = await world.numbers.hour_before(2)
    found = hours_before.read(sent)
    assert len(found) == wire.MOST_FUNCTIONS
    assert found[0].function == functions[5].name
