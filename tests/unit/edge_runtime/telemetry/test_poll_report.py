"""When polls tell what was counted, and that nothing is told twice or lost while control doesn't answer."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from control.protocol import histogram, wire
from edge_runtime.telemetry import poll_report
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.telemetry.poll_report import MOST, PERIOD, SOON, SOON_FOR, PollReport


def decode(numbers: bytes) -> wire.Numbers:
    return msgspec.msgpack.decode(numbers, type=wire.Numbers)


@dataclass
class World:
    """A node whose clock stands still until `now` is set."""

    now: float = 1000.0
    release: int | None = 1
    counts: list[CallCounts] = field(default_factory=lambda: [CallCounts(0, 1)])
    node: Any = None

    def __post_init__(self) -> None:
        measure = None if self.node is None else self.measure
        self.numbers = PollReport(
            lambda: self.counts, lambda: self.release, measure, clock=lambda: self.now, jitter=lambda: 0.5
        )

    async def measure(self) -> wire.NodeNumbers:
        if isinstance(self.node, Exception):
            raise self.node
        return self.node  # type: ignore[no-any-return]

    def call(self, counts: CallCounts | None = None) -> None:
        counts = counts or self.counts[0]
        counts.outcomes["ok"] = counts.outcomes.get("ok", 0) + 1
        counts.times[50] = counts.times.get(50, 0) + 1

    async def after(self, seconds: float) -> bytes:
        self.now += seconds
        return await self.numbers.next()


def told(numbers: bytes) -> int:
    return sum(sum(histogram.unpack(f.seconds).values()) for f in decode(numbers).functions)


async def test_once_a_minute():
    world = World()
    world.call()
    assert await world.after(0) == b""
    assert await world.after(PERIOD - 1) == b""
    assert world.numbers.hold(25.0) == 25.0
    first = await world.after(1)
    assert (decode(first).sequence, decode(first).seconds, told(first)) == (1, PERIOD, 1)
    world.numbers.answered(first)
    assert await world.after(PERIOD - 1) == b""
    # Nothing was called.
    assert await world.after(1) == b""
    world.call()
    assert decode(await world.after(PERIOD)).sequence == 2


async def test_the_times_of_nodes_are_spread():
    for jitter, due in ((0.0, 45.0), (1.0, 75.0)):
        world = World()
        world.numbers = PollReport(lambda w=world: w.counts, clock=lambda w=world: w.now, jitter=lambda j=jitter: j)
        world.call()
        assert await world.after(due - 0.1) == b""
        assert await world.after(0.2) != b""


async def test_what_was_not_answered_is_sent_again_unchanged_and_counting_goes_on():
    world = World()
    world.call()
    first = await world.after(PERIOD)
    world.call()
    for _ in range(500):
        assert await world.after(PERIOD) == first
        world.call()
    world.numbers.answered(b"")
    world.numbers.answered(b"another")
    assert await world.after(1) == first
    world.numbers.answered(first)
    second = await world.after(1)
    assert (decode(second).sequence, told(first) + told(second)) == (2, 502)
    world.numbers.answered(second)
    assert await world.after(PERIOD) == b""


async def test_often_for_two_minutes_after_a_change_of_release():
    world = World()
    assert await world.after(0) == b""
    world.release = 2
    world.counts.append(CallCounts(0, 2))
    assert await world.after(10) == b""
    assert world.numbers.hold(25.0) == SOON
    assert world.numbers.hold(0.0) == 0.0
    sent, began = 0, world.now
    while world.now - began < SOON_FOR:
        world.call(world.counts[1])
        numbers = await world.after(SOON)
        assert [f.release for f in decode(numbers).functions] == [2]
        world.numbers.answered(numbers)
        sent += told(numbers)
    assert sent == SOON_FOR / SOON
    assert world.numbers.hold(25.0) == 25.0
    world.call()
    assert await world.after(SOON) == b""


async def test_a_poll_that_control_answers_a_little_early_carries_the_next_message():
    world = World()
    await world.after(0)
    world.release = 2
    world.call()
    first = await world.after(0) or await world.after(SOON)
    world.numbers.answered(first)
    for _ in range(10):
        world.call()
        wait = world.numbers.hold(25.0)
        numbers = await world.after(wait * 0.8)
        world.numbers.answered(numbers)
        assert told(numbers) == 1


async def test_the_start_of_the_process_is_no_change_of_release_but_the_first_release_is():
    world = World(release=7)
    await world.after(0)
    assert world.numbers.hold(25.0) == 25.0
    world = World(release=None)
    await world.after(0)
    world.release = 1
    await world.after(0)
    assert world.numbers.hold(25.0) == SOON


async def test_numbers_that_control_refuses_are_given_up(caplog):
    world = World()
    world.call()
    first = await world.after(PERIOD)
    world.numbers.refused(b"")
    assert await world.after(1) == first
    world.numbers.refused(first)
    assert "given up" in caplog.text
    assert await world.after(1) == b""
    world.call()
    assert told(await world.after(PERIOD)) == 1


async def test_the_nodes_own_numbers_come_about_once_a_minute_as_what_is_and_what_happened_since():
    world = World(node=wire.NodeNumbers(database=5, worker_deaths=3, edge="1.0"))
    first = await world.after(PERIOD)
    assert decode(first).node == wire.NodeNumbers(database=5, worker_deaths=3, edge="1.0")
    world.numbers.answered(first)
    world.node = wire.NodeNumbers(database=4, worker_deaths=5, failed_syncs=1, edge="1.0")
    world.release = 2
    world.call()
    await world.after(0)
    soon = await world.after(SOON)
    assert decode(soon).node is None
    world.numbers.answered(soon)
    later = await world.after(PERIOD)
    assert decode(later).node == wire.NodeNumbers(database=4, worker_deaths=2, failed_syncs=1, edge="1.0")


async def test_a_node_that_can_not_be_measured_tells_of_its_calls_all_the_same(caplog):
    world = World(node=OSError("no /proc"))
    world.call()
    numbers = await world.after(PERIOD)
    assert (decode(numbers).node, told(numbers)) == (None, 1)
    assert "can't be made" in caplog.text


async def test_a_thousand_functions_fit_into_a_poll_and_more_come_with_the_next():
    world = World(counts=[CallCounts(i % 1000, 1 + i // 1000) for i in range(MOST + 5)])
    for counts in world.counts:
        world.call(counts)
    first = await world.after(PERIOD)
    assert len(decode(first).functions) == MOST
    assert len(first) < 64 * MOST
    world.numbers.answered(first)
    assert told(await world.after(PERIOD)) == 5


async def test_an_agent_of_which_nothing_is_counted_tells_nothing():
    numbers = PollReport()
    assert await numbers.next() == b""
    assert numbers.hold(25.0) == 25.0
    assert poll_report.SPREAD < 1
