"""The front's clock, which is the system's; and the one that tests put in its place, which does as asyncio does but for
the time."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from edge_runtime import clock
from tests.support.deadlines import deadline, scaled
from tests.support.moved_clock import ClockOfProcess, MovedClock, moved_clock


@pytest.fixture
def moved() -> Iterator[MovedClock]:
    with moved_clock() as made:
        made.stand()
        yield made


async def test_the_systems_clock_goes() -> None:
    before, day = time.monotonic(), datetime.now(UTC)
    assert before <= clock.monotonic() <= time.monotonic()
    assert day <= clock.now() <= datetime.now(UTC)
    came = asyncio.Event()
    timer = clock.call_later(0.01, came.set)
    clock.call_later(0.0, lambda what: what.append(1), said := []).cancel()
    async with deadline(60):
        await came.wait()
    assert clock.monotonic() >= before + 0.01
    assert not said
    timer.cancel()


async def test_timers_fire_in_their_order_each_at_its_own_time(moved: MovedClock) -> None:
    began, said = clock.monotonic(), []

    def say(what: str) -> None:
        said.append((what, round(clock.monotonic() - began, 6)))

    for delay, what in ((3.0, "third"), (1.0, "first"), (1.0, "second"), (10.0, "never")):
        clock.call_later(delay, say, what)
    await moved.move(0.999)
    assert said == []
    await moved.move(4.0)
    assert said == [("first", 1.0), ("second", 1.0), ("third", 3.0)]
    assert clock.monotonic() == pytest.approx(began + 4.999)
    assert moved.waiting == 1


async def test_a_timer_that_a_timer_sets_is_due_on_the_same_way(moved: MovedClock) -> None:
    began, at = clock.monotonic(), []

    async def loop() -> None:
        while True:
            await clock.sleep(2.0)
            at.append(round(clock.monotonic() - began, 6))

    looping = asyncio.ensure_future(loop())
    await moved.move(7.0)
    assert at == [2.0, 4.0, 6.0]
    looping.cancel()


async def test_one_that_is_cancelled_never_fires(moved: MovedClock) -> None:
    said: list[str] = []
    second = clock.call_later(1.0, said.append, "cancelled by the first")
    second.cancel()
    later = clock.call_later(2.0, said.append, "cancelled on the way")
    clock.call_later(1.0, later.cancel)
    sleeping = asyncio.ensure_future(clock.sleep(1.5))
    await asyncio.sleep(0)
    sleeping.cancel()
    await moved.move(5.0)
    assert said == []
    assert sleeping.cancelled()
    assert moved.waiting == 0


async def test_no_time_passes_while_it_stands(moved: MovedClock) -> None:
    at, day = clock.monotonic(), clock.now()
    sleeping = asyncio.ensure_future(clock.sleep(0.001))
    await asyncio.sleep(0.05)
    assert not sleeping.done()
    assert (clock.monotonic(), clock.now()) == (at, day)
    await moved.move(0.001)
    assert sleeping.done()
    assert clock.now() - day == timedelta(milliseconds=1)


async def test_a_timeout_ends_what_it_is_around_when_it_is_moved_past(moved: MovedClock) -> None:
    async def work(limit: float | None) -> str:
        try:
            async with clock.timeout(limit) as timer:
                await asyncio.Event().wait()
        except TimeoutError:
            assert timer.expired()
            return "late"
        return "done"

    working, endless = asyncio.ensure_future(work(5.0)), asyncio.ensure_future(work(None))
    await moved.move(4.9)
    assert not working.done()
    await moved.move(0.1)
    assert await working == "late"
    assert not endless.done()
    endless.cancel()
    assert await work(0.0) == "late"
    assert await work(-1.0) == "late"


async def test_the_inner_of_two_timeouts_leaves_the_outer_one_its_time(moved: MovedClock) -> None:
    async def work() -> list[str]:
        said = []
        try:
            async with clock.timeout(3.0):
                try:
                    async with clock.timeout(1.0):
                        await clock.sleep(10.0)
                except TimeoutError:
                    said.append("inner")
                async with clock.timeout(5.0) as inner:
                    await clock.sleep(10.0)
        except TimeoutError:
            said.append("outer")
        assert not inner.expired()
        return said

    working = asyncio.ensure_future(work())
    await moved.move(1.0)
    await moved.move(1.9)
    assert not working.done()
    await moved.move(0.1)
    assert await working == ["inner", "outer"]
    assert moved.waiting == 0


async def test_a_timeout_may_be_given_another_time(moved: MovedClock) -> None:
    async def work() -> None:
        async with clock.timeout(1.0) as timer:
            timer.reschedule(clock.monotonic() + 4.0)
            await clock.sleep(3.0)
            timer.reschedule(None)
            await clock.sleep(100.0)

    working = asyncio.ensure_future(work())
    await moved.move(103.5)
    assert working.done()
    await working


async def test_a_cancellation_from_outside_stays_one(moved: MovedClock) -> None:
    async def work() -> None:
        async with clock.timeout(1.0):
            await clock.sleep(10.0)

    working = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await moved.move(2.0)


async def test_it_goes_with_the_systems_until_it_stands_and_again(moved: MovedClock) -> None:
    await moved.move(1000.0)
    at = clock.monotonic()
    sleeping = asyncio.ensure_future(clock.sleep(0.02))
    await asyncio.sleep(0)
    moved.go()
    async with deadline(60):
        await sleeping
    assert clock.monotonic() >= at + 0.02
    moved.stand()
    at = clock.monotonic()
    await asyncio.sleep(0.02)
    assert clock.monotonic() == at


async def test_it_is_moved_until_something_is_so(moved: MovedClock) -> None:
    began, came = clock.monotonic(), asyncio.Event()
    clock.call_later(2.5, came.set)
    await moved.until(came.is_set)
    assert clock.monotonic() == pytest.approx(began + 3.0)


PROGRAM = """
import asyncio, sys
from edge_runtime import clock
from tests.support import moved_clock

async def main(moved):
    obeying = moved_clock.obey(moved, int(sys.argv[1]))
    await clock.sleep(3600.0)
    print("an hour has passed", flush=True)
    await obeying

with moved_clock.moved_clock() as moved:
    moved.stand()
    asyncio.run(main(moved))
"""


async def test_the_clock_of_another_process_is_moved() -> None:
    moved = ClockOfProcess()
    command = (sys.executable, "-c", PROGRAM, str(moved.theirs.fileno()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(moved.theirs.fileno(),)) as process:
        try:
            moved.theirs.close()
            await moved.move(3599.0)
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            assert process.stdout.read() is None
            await moved.move(1.0)
            os.set_blocking(process.stdout.fileno(), True)
            assert process.stdout.readline() == b"an hour has passed\n"
            moved.close()
            assert process.wait(scaled(60)) == 0
        finally:
            process.kill()
