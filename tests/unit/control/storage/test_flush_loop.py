"""What a replica collects is written again and again, whatever happens, and once more at the end."""

import asyncio
import logging

import pytest

from control.problems import ProblemError
from control.storage import flush_loop
from tests.support.clock import SetClock
from tests.support.deadlines import deadline

PERIOD = 5.0

log = logging.getLogger("skerry.test")


class Counts:
    """What is written; each flush first does what `faults` has next."""

    def __init__(self, *faults: Exception | None) -> None:
        self.waiting = 3
        self.flushes = 0
        self.faults = list(faults)
        self.clock = SetClock(timers="stand")

    async def flush(self) -> None:
        self.flushes += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.waiting = 0

    def start(self) -> "asyncio.Task[None]":
        return asyncio.create_task(flush_loop.run(log, "counts", self.clock, PERIOD, self.flush, lambda: self.waiting))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Its own lines alone: what an earlier test has left behind may log as it is collected."""
    return [record.getMessage() for record in caplog.records if record.name == log.name]


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with deadline(30):
            await task


async def test_no_failure_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts(ProblemError("database_unavailable", "away"), ValueError("a fault of its own"))
    task = counts.start()
    for flushes in (1, 2, 3):
        await counts.clock.passes(PERIOD - 0.01)
        assert counts.flushes == flushes - 1
        await counts.clock.passes(0.01)
        assert counts.flushes == flushes
    await ended(task)
    assert said(caplog) == ["counts can't be written yet: 3 wait; away", "counts could not be written, 3 wait"]


async def test_what_is_left_is_written_at_the_end() -> None:
    counts = Counts()
    task = counts.start()
    await asyncio.sleep(0)
    await ended(task)
    assert (counts.flushes, counts.waiting) == (1, 0)


@pytest.mark.parametrize("away", [True, False])
async def test_an_end_that_can_not_write_says_what_is_lost(
    away: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts(ProblemError("database_unavailable", "away"))
    if not away:
        # It doesn't answer.
        monkeypatch.setattr(counts, "flush", asyncio.Event().wait)
    task = counts.start()
    await asyncio.sleep(0)
    task.cancel()
    if not away:
        await counts.clock.passes(flush_loop.LAST_FLUSH - 0.01)
        assert not task.done()
        await counts.clock.passes(0.01)
    await ended(task)
    assert said(caplog)[-1] == "counts were not written before the end: 3"
