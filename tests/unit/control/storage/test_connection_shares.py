"""How connections to the metadata database are shared out: who waits for how long, and in which order."""

import asyncio

import pytest

from control.problems import ProblemError
from control.storage.batched_lookups import Lookups
from control.storage.connection_quotas import ASKS, LONGEST, WAIT, Share
from control.telemetry.shared_reading import SharedReading
from tests.support.clock import SetClock
from tests.support.deadlines import deadline


async def test_a_share_is_given_back_however_its_use_ends() -> None:
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(use())
    await clock.passes(WAIT - 0.01)
    assert not waiting.done()
    await clock.passes(0.01)
    with pytest.raises(ProblemError, match=r"database_busy.*for tests"):
        await waiting
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ValueError, match="mine"):
        async with share.one():
            raise ValueError("mine")
    async with share.one():
        pass


async def test_many_that_are_quick_are_all_served_in_their_order() -> None:
    clock = SetClock(timers="stand")
    share, order = Share(2, "tests", clock), []

    async def use(number: int) -> None:
        async with share.one():
            await clock.sleep(WAIT / 5)
            order.append(number)

    tasks = [asyncio.create_task(use(number)) for number in range(20)]
    # Many wait for longer than `WAIT`, but in no such time does none of the connections become free.
    await clock.passes(2 * WAIT)
    await asyncio.gather(*tasks)
    assert [number // 2 for number in order] == [number // 2 for number in range(20)]


async def test_who_waits_for_longer_than_the_longest_is_refused_though_others_are_served() -> None:
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await clock.sleep(2.1)

    tasks = [asyncio.create_task(use()) for _ in range(20)]
    await clock.passes(LONGEST + 2.1)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(error, ProblemError) for error in ended] == [False] * 10 + [True] * 10


async def test_behind_those_that_fail_nobody_waits_for_long() -> None:
    """As those do which wait for a locked row: one after the other would take for ever."""
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await clock.sleep(WAIT * 2 / 3)
            raise ProblemError("database_locked", "no")

    tasks = [asyncio.create_task(use()) for _ in range(20)]
    await clock.passes(2 * WAIT)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    codes = [error.code for error in ended if isinstance(error, ProblemError)]
    # The second one begins within `WAIT` and is under way at its end, when all others are refused.
    assert codes == ["database_locked"] * 2 + ["database_busy"] * 18
    async with share.one():
        pass


async def test_who_goes_away_while_it_waits_takes_none() -> None:
    share, free = Share(1, "tests", SetClock(timers="stand")), asyncio.Event()

    async def use() -> None:
        async with share.one():
            await free.wait()

    holding = asyncio.create_task(use())
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    # This one is given it in the same moment.
    free.set()
    await holding
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with deadline(20), share.one():
        pass
    assert share._places.free == 1


async def test_whoever_asks_for_much_waits_for_its_own() -> None:
    clock = SetClock(timers="stand")
    share, order = Share(4, "tests", clock), []

    async def use(who: str) -> None:
        ASKS.set(who)
        async with share.one():
            await clock.sleep(1)
            order.append(who)

    tasks = [asyncio.create_task(use(who)) for who in [*["much"] * 20, "other", "another", "other"]]
    # Half of the share is left to others, and they have turns after one another.
    await clock.passes(1)
    assert order == ["much", "much", "other", "another"]
    await clock.passes(1)
    assert sorted(order[4:]) == ["much", "much", "other"]
    await clock.passes(20)
    await asyncio.gather(*tasks)
    places = share._places
    assert (places.free, places.held, places.waiting) == (4, {}, {})


async def test_what_many_wait_for_together_is_asked_for_none_of_them() -> None:
    """It would wait behind all that the first one has asked for."""
    asked = []

    async def find(*_: object) -> dict[str, None]:
        asked.append(ASKS.get())
        return {}

    async def first() -> None:
        ASKS.set("much")
        await Lookups("tests", find).find("one")
        await SharedReading(find, 1.0, SetClock()).get()

    await asyncio.create_task(first())
    assert asked == ["", ""]
