"""Turns: one at a time, but none waits for one that is stuck."""

import asyncio

import pytest

from control.storage import transaction_queue
from control.storage.transaction_queue import Turns


async def test_quick_ones_run_one_at_a_time_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that stands still for a moment makes none of them one that is stuck.
    monkeypatch.setattr(transaction_queue, "PATIENCE", 60.0)
    taken, running, order = Turns(), 0, []

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


async def test_one_that_is_stuck_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_queue, "PATIENCE", 0.01)
    taken, free, done = Turns(), asyncio.Event(), 0

    async def stuck() -> None:
        async with taken.turn():
            await free.wait()

    async def quick() -> None:
        nonlocal done
        async with taken.turn():
            done += 1

    hanging = [asyncio.create_task(stuck()) for _ in range(3)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(quick() for _ in range(5)))
    assert done == 5
    assert not any(task.done() for task in hanging)
    free.set()
    await asyncio.gather(*hanging)
    # And then it is one at a time again.
    assert taken._overdue == 0
    assert not taken._lock.locked()


async def test_one_that_is_cancelled_passes_its_turn_on() -> None:
    taken = Turns()

    async def endless() -> None:
        async with taken.turn():
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(20), taken.turn():
        pass
