"""How long a reading of the database that many share is kept."""

import asyncio

import pytest

from control.telemetry import shared_reading
from control.telemetry.shared_reading import LONGEST, REST, SharedReading
from tests.support.clock import SetClock

PERIOD = 1.0


@pytest.mark.parametrize(
    ("took", "kept"),
    [
        (0.0, PERIOD),
        (PERIOD / REST, PERIOD),
        (2 * PERIOD / REST, 2 * PERIOD),
        (LONGEST / REST, LONGEST),
        (LONGEST / 2, LONGEST),
        (2 * LONGEST, LONGEST),
    ],
)
async def test_it_is_kept_by_how_long_it_took(took: float, kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its beginning: for the period, twenty times as long as it took, and half a minute at most."""
    monkeypatch.setattr(shared_reading, "REST", REST)
    clock, count = SetClock(timers="stand"), 0

    async def read() -> int:
        nonlocal count
        count += 1
        clock.advance(took)
        return count

    shared = SharedReading(read, PERIOD, clock)
    assert await shared.get() == 1
    left = kept - took
    if left > 0.01:
        clock.advance(left - 0.01)
        assert await shared.get() == 1
        clock.advance(0.02)
    assert await shared.get() == 2
    await shared.stop()


async def test_who_asks_meanwhile_waits_for_the_reading_that_is_under_way() -> None:
    clock, free, count = SetClock(timers="stand"), asyncio.Event(), 0

    async def read() -> int:
        nonlocal count
        count += 1
        await free.wait()
        return count

    shared = SharedReading(read, PERIOD, clock)
    asking = [asyncio.create_task(shared.get()) for _ in range(5)]
    await clock.passes(10 * PERIOD)
    assert not any(task.done() for task in asking)
    asking[0].cancel()
    free.set()
    assert await asyncio.gather(*asking[1:]) == [1] * 4
    assert count == 1


async def test_what_a_reading_raises_is_told_to_all_and_it_is_made_again() -> None:
    wrong = [True]

    async def read() -> str:
        if wrong:
            wrong.clear()
            raise ValueError("away")
        return "read"

    shared = SharedReading(read, PERIOD, SetClock(timers="stand"))
    told = await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
    assert [str(one) for one in told] == ["away"] * 3
    assert await shared.get() == "read"
