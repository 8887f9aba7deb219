"""Turns: one at a time, but none waits for one that is stuck."""

import asyncio

from control.storage.connection_quotas import SHORT_TURN, TURN, Turns
from tests.support.clock import SetClock
from tests.support.deadlines import deadline


async def test_quick_ones_run_one_at_a_time_in_their_order() -> None:
    taken, running, order = Turns(SetClock(timers="stand")), 0, []

    async def quick(number: int) -> None:
        nonlocal running
        async with taken.turn():
            assert running == 0
            running += 1
            await asyncio.sleep(0)
            running -= 1
            order.append(number)

    await asyncio.gather(*(quick(number) for number in range(20)))
    assert order == list(range(20))


async def test_one_that_is_stuck_holds_up_nobody_for_long() -> None:
    clock = SetClock(timers="stand")
    taken, free, done = Turns(clock), asyncio.Event(), 0

    async def stuck() -> None:
        async with taken.turn():
            await free.wait()

    async def quick() -> None:
        nonlocal done
        async with taken.turn():
            done += 1

    hanging = [asyncio.create_task(stuck()) for _ in range(3)]
    others = [asyncio.create_task(quick()) for _ in range(5)]
    await clock.passes(TURN - 0.001)
    assert done == 0
    await clock.passes(0.001)
    assert done == 0, "the next one is stuck as well"
    await clock.passes(2 * SHORT_TURN - 0.001)
    assert done == 0
    await clock.passes(0.001)
    assert done == 5
    await asyncio.gather(*others)
    assert not any(task.done() for task in hanging)
    free.set()
    await asyncio.gather(*hanging)
    # And then it is one at a time again.
    assert taken._overdue == 0
    assert not taken._lock.locked()


async def test_one_that_is_cancelled_passes_its_turn_on() -> None:
    taken = Turns(SetClock(timers="stand"))

    async def endless() -> None:
        async with taken.turn():
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with deadline(20), taken.turn():
        pass
