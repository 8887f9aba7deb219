"""A test's clock: what is due fires, in order and no sooner, and its timeouts are those of asyncio."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clock import SetClock

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOON, timers="stand")


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_is_due_fires_in_its_order_and_nothing_else_does(clock: SetClock) -> None:
    fired: list[str] = []
    began = clock.monotonic()
    clock.call_later(3.0, fired.append, "c")
    clock.call_later(1.0, fired.append, "a")
    clock.call_later(1.0, fired.append, "b")
    clock.call_later(3.1, fired.append, "d")
    clock.advance(0.9)
    assert fired == []
    clock.advance(0.1)
    assert fired == ["a", "b"], "those of the same time in the order in which they were set"
    clock.advance(2.0)
    assert fired == ["a", "b", "c"]
    clock.advance(minutes=1)
    assert fired == ["a", "b", "c", "d"]
    assert clock.monotonic() - began == pytest.approx(63.0)
    assert clock.now() == NOON + timedelta(seconds=63)


def test_a_timer_sees_its_own_time(clock: SetClock) -> None:
    seen: list[datetime] = []
    for seconds in (1.0, 5.0):
        clock.call_later(seconds, lambda: seen.append(clock.now()))
    clock.advance(10.0)
    assert seen == [NOON + timedelta(seconds=1), NOON + timedelta(seconds=5)]


def test_fractions_that_add_up_are_due(clock: SetClock) -> None:
    fired: list[int] = []
    clock.call_later(0.3, fired.append, 1)
    for _ in range(3):
        clock.advance(0.1)
    assert fired == [1]


def test_what_is_cancelled_does_not_fire(clock: SetClock) -> None:
    fired: list[str] = []
    timers = [clock.call_later(1.0, fired.append, name) for name in "ab"]
    timers[0].cancel()
    clock.advance(1.0)
    assert fired == ["b"]
    timers[1].cancel()  # says nothing any more


def test_a_jump_of_the_clock_lets_no_time_pass(clock: SetClock) -> None:
    fired: list[int] = []
    clock.call_later(1.0, fired.append, 1)
    clock.jump(2 * 86400)
    clock.jump(-86400)
    clock.advance(0.5)
    assert (fired, clock.now()) == ([], NOON + timedelta(days=1, seconds=0.5))


async def test_a_loop_runs_each_time_that_passes_and_once_where_it_is_skipped(clock: SetClock) -> None:
    rounds: list[datetime] = []

    async def loop() -> None:
        while True:
            await clock.sleep(1.0)
            rounds.append(clock.now())

    task = asyncio.create_task(loop())
    await clock.passes(3.5)
    assert rounds == [NOON + timedelta(seconds=number) for number in (1, 2, 3)]
    clock.advance(10.0)
    await settled()
    assert len(rounds) == 4
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock._due() == float("inf"), "a sleep that is cancelled leaves no timer"


async def test_a_timeout_ends_its_block_alone_and_at_its_time(clock: SetClock) -> None:
    async def limited(seconds: float) -> str:
        try:
            async with clock.timeout(seconds) as limit:
                await asyncio.Event().wait()
        except TimeoutError:
            assert limit.expired()
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            return f"over at {(clock.now() - NOON).total_seconds()}"
        return "not limited"

    tasks = [asyncio.create_task(limited(seconds)) for seconds in (2.0, 1.0)]
    await clock.passes(0.9)
    assert not any(task.done() for task in tasks)
    await clock.passes(1.5)
    assert [task.result() for task in tasks] == ["over at 2.0", "over at 1.0"]


async def test_a_block_that_ends_in_time_has_no_limit_any_more(clock: SetClock) -> None:
    async with clock.timeout(1.0) as limit:
        await asyncio.sleep(0)
    clock.advance(2.0)
    await settled()
    assert not limit.expired()


@pytest.mark.parametrize("inner", [1.0, 3.0])
async def test_of_two_limits_the_one_that_is_up_raises(clock: SetClock, inner: float) -> None:
    said: list[str] = []

    async def nested() -> None:
        try:
            async with clock.timeout(2.0):
                try:
                    async with clock.timeout(inner):
                        await asyncio.Event().wait()
                except TimeoutError:
                    said.append("inner")
                    await asyncio.Event().wait()
        except TimeoutError:
            said.append("outer")

    task = asyncio.create_task(nested())
    await clock.passes(5.0)
    assert said == (["inner", "outer"] if inner == 1.0 else ["outer"])
    await task


async def test_a_cancellation_from_outside_stays_one(clock: SetClock) -> None:
    async def limited() -> None:
        async with clock.timeout(1.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(limited())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Also where the time is up in the same moment.
    task = asyncio.create_task(limited())
    await settled()
    clock.advance(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_limit_can_be_put_off_taken_away_and_be_now(clock: SetClock) -> None:
    async with clock.timeout(1.0) as limit:
        limit.reschedule(clock.monotonic() + 5.0)
        await clock.passes(4.9)
        limit.reschedule(None)
        await clock.passes(10.0)
        assert not limit.expired()
        limit.reschedule(0)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        assert limit.expired()


async def test_a_limit_of_no_time_ends_at_the_first_wait(clock: SetClock) -> None:
    with pytest.raises(TimeoutError):
        async with clock.timeout(0):
            await asyncio.Event().wait()
    await clock.sleep(0)


async def test_it_is_said_when_the_program_waits(clock: SetClock) -> None:
    waits = asyncio.create_task(clock.until_waiting(2.0))
    tasks = [asyncio.create_task(clock.sleep(3.0))]
    await asyncio.sleep(0.01)
    assert not waits.done()
    tasks.append(asyncio.create_task(clock.sleep(2.0)))
    await waits
    await clock.passes(3.0)
    await asyncio.gather(*tasks)


async def test_timers_that_are_not_to_stand_run_with_the_loop() -> None:
    clock = SetClock(NOON)
    began = clock.monotonic()
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.01):
            await clock.sleep(60.0)
    called = asyncio.Event()
    clock.call_later(0.01, called.set)
    await called.wait()
    assert clock.monotonic() > began
    assert clock.now() == NOON
