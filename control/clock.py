"""The one source of time in control, and of its timers: a test sets the time, and says when it passes (ADR 69).

SQL's now() is never used. A machine's clock may be wrong, for a moment or for long. Every replica compares its clock
with the database's, which all replicas share, and goes by the database's while the two differ by more than `AHEAD`.
Times that a wrong clock has stored further ahead than that are corrected (`control.sync.passes.future_times`).

By the clock goes what waits until enough time has passed: patience, holds, leases, how long an answer is believed, and
the periods of background loops. Real stay

- what bounds a connection, a statement or a request of a library (asyncpg, botocore, aiohttp), and the end of a server,
  of a connection pool and of a checking process: nobody could move a clock for what is stuck;
- pauses that only space work out: between tries of a transaction or of a locked row, between look-ups (`Lookups`), held
  polls that are woken, and messages of a view: the work goes on after them, however long they take;
- how long something took, as metrics and logs tell it, and commands, which are processes of their own.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

AHEAD = timedelta(seconds=10)
"""A time that is further ahead than this was written by a wrong clock."""

log = logging.getLogger("skerry.clock")


class Limit(Protocol):
    """When a block ends with TimeoutError; `asyncio.Timeout` is one."""

    def reschedule(self, when: float | None, /) -> None:
        """End the block at `when`, in the clock's `monotonic`; soon where that has passed."""

    def expired(self) -> bool:
        """Whether the time is up."""


class Timer(Protocol):
    """A call that is to be made; `asyncio.TimerHandle` is one."""

    def cancel(self) -> None:
        """Don't make it."""


class Clock(Protocol):
    """A source of time, and of timers."""

    def now(self) -> datetime:
        """The time, in UTC."""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """Compare with `theirs`, the time of the database's clock, which was asked for at `before` by this clock."""

    def monotonic(self) -> float:
        """Seconds that have passed since some moment, whatever happened to the clock."""

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Limit]:
        """End a block with TimeoutError after so many seconds, as `asyncio.timeout` does."""

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> Timer:
        """Call it after so many seconds, in the loop."""


class LoopTimers:
    """A clock's timers, by the event loop that runs."""

    def monotonic(self) -> float:
        # Not time.monotonic(): uvloop's counts in milliseconds, and a timer would seem to be early by it.
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds)

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, call, *arguments)


class SystemClock(LoopTimers):
    """The machine's clock while it is within `AHEAD` of the database's, else the database's.

    Between two comparisons it adds the time that has passed, so a jump of the machine's clock has no effect in between.
    """

    def __init__(self) -> None:
        self._offset = time.time() - _passed()
        self._wrong = False

    def now(self) -> datetime:
        # As `_passed`, written out: it runs several times in each poll.
        return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME) + self._offset, UTC)

    def compare(self, theirs: datetime, before: datetime) -> None:
        took = self.now() - before
        if took > AHEAD:
            return  # the answer took too long to say anything
        machine = time.time()
        ahead = machine - theirs.timestamp()
        wrong = not -AHEAD.total_seconds() <= ahead <= (AHEAD + took).total_seconds()
        if wrong and not self._wrong:
            log.warning(
                "this machine's clock is %.0f s %s the database's; going by the database's until they agree: set the "
                "clocks of both right, by NTP",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )
        elif self._wrong and not wrong:
            log.info("this machine's clock and the database's agree again")
        self._wrong = wrong
        self._offset = (theirs.timestamp() if wrong else machine) - _passed()


def _passed() -> float:
    """Seconds since the machine's start, with those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
