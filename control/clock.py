"""The one source of time in control, and of its timers: a test sets the time, and decides when it passes (ADR 69).

SQL's now() is never used. A machine's clock may be wrong, briefly or for long. Every replica compares its clock with
the database's, which all replicas share, and uses the database's while the two differ by more than `AHEAD`. Times that
a wrong clock stored further ahead than that are corrected (`control.sync.future_times`).
A clock that shows a time before `EARLIEST` isn't trusted at all: such a machine has no battery for its clock and hasn't
got the time from the network yet. What was stored now would be years old once it has.

Everything that waits until enough time has passed uses this clock: patience, holds, leases, how long an answer is
trusted, and the periods of background loops. These use real time:

- limits of a library's connections, statements and requests (asyncpg, botocore, aiohttp), and of the end of a server, a
  connection pool or a checking process: no test could move a clock for something that is stuck;
- pauses that only space out work: between tries of a transaction or of a locked row, between look-ups (`Lookups`),
  woken polls, and messages of a view: the work continues after them, however long they take;
- how long something took, in metrics and logs, and commands, which are separate processes.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

AHEAD = timedelta(seconds=10)
"""A time further ahead than this was written by a wrong clock."""
EARLIEST = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""Unix seconds before which Skerry didn't exist: a clock that shows an earlier time is wrong."""

log = logging.getLogger("skerry.clock")


class Limit(Protocol):
    """When a block ends with TimeoutError; `asyncio.Timeout` is one."""

    def reschedule(self, when: float | None, /) -> None:
        """End the block at `when`, in the clock's `monotonic`; soon where that has passed."""

    def expired(self) -> bool:
        """Return whether the time is up."""


class Timer(Protocol):
    """A scheduled call; `asyncio.TimerHandle` is one."""

    def cancel(self) -> None:
        """Cancel the call."""


class ClockError(Exception):
    """The time isn't known; the message says why, and what to do."""


class Clock(Protocol):
    """A source of time, and of timers."""

    def now(self) -> datetime:
        """Return the time, in UTC."""

    @property
    def doubt(self) -> str:
        """Return why no time may be stored: no clock shows a plausible time. '' if one does."""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """Compare with `theirs`, the time of the database's clock, which was requested at `before` by this clock."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary moment, whatever happened to the clock."""

    async def sleep(self, seconds: float) -> None:
        """Wait for this number of seconds."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Limit]:
        """End a block with TimeoutError after this number of seconds, as `asyncio.timeout` does."""

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> Timer:
        """Call `call` after this number of seconds, in the loop."""


class LoopTimers:
    """A clock's timers, based on the running event loop."""

    def monotonic(self) -> float:
        # Not time.monotonic(): uvloop counts in milliseconds, so a timer would seem to fire early.
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
        self._told = ""
        """What is wrong, as logged; '' while all is well."""

    @property
    def doubt(self) -> str:
        if (now := _passed() + self._offset) >= EARLIEST:
            return ""
        return (
            f"this machine's clock says {_shown(now)}, and neither it nor the database's says a time that can be "
            "right: set them right, by NTP. Control starts once one of them is"
        )

    def now(self) -> datetime:
        # `_passed` written inline: this runs several times in each poll.
        return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME) + self._offset, UTC)

    def compare(self, theirs: datetime, before: datetime) -> None:
        took = self.now() - before
        if took > AHEAD:
            return  # the answer took too long to say anything
        machine, database = time.time(), theirs.timestamp()
        ahead = machine - database
        if max(machine, database) < EARLIEST:
            if not self.doubt:
                self._tell(
                    f"this machine's clock says {_shown(machine)} and the database's {_shown(database)}, and neither "
                    "can be right; going by the time that has passed: set them right, by NTP"
                )
            return
        if database < EARLIEST:
            self._tell(
                f"the database's clock says {_shown(database)}, which can't be right; going by this machine's: set the "
                "database's right, by NTP"
            )
        elif not -AHEAD.total_seconds() <= ahead <= (AHEAD + took).total_seconds():
            self._tell(
                f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database's; "
                "going by the database's until they agree: set the clocks of both right, by NTP",
            )
            machine = database
        else:
            self._tell("")
        self._offset = machine - _passed()

    def _tell(self, wrong: str) -> None:
        """Log what is wrong with the clocks when that begins, and when it is over."""
        if wrong and not self._told:
            log.warning("%s", wrong)
        elif self._told and not wrong:
            log.info("this machine's clock and the database's agree again")
        self._told = wrong


def _shown(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _passed() -> float:
    """Return the seconds since the machine's start, with those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
