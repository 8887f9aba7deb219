"""Control's clock in a test: the time stands until the test moves it, and so do the timers where the test says so."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Literal

from control.clock import Limit, LoopTimers, Timer
from tests.support.deadlines import deadline

ROUNDING = 1e-6
"""Seconds by which a timer may seem to be due later, after additions of fractions."""
TURNS = 20
"""How often the loop runs what is ready after a timer has fired: a woken task may wake others, and set timers anew."""


class StandingTimer:
    """A call that is made when the test has moved the clock so far."""

    def __init__(self, due: float, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.due = due
        self._call: Callable[..., object] | None = call
        self._arguments = arguments

    @property
    def pending(self) -> bool:
        """Whether it was neither made nor cancelled."""
        return self._call is not None

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call(*self._arguments)


class StandingLimit:
    """The limit of a block by a standing clock: when its time is up, the loop's own timeout ends the block at once."""

    def __init__(self, clock: "SetClock", real: asyncio.Timeout) -> None:
        self._clock = clock
        self._real = real
        self._timer: Timer | None = None

    def reschedule(self, when: float | None, /) -> None:
        self.cancel()
        if when is not None:
            self._timer = self._clock.call_later(when - self._clock.monotonic(), self._end)

    def expired(self) -> bool:
        return self._real.expired()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if not self._real.expired():
            self._real.reschedule(0)


class SetClock:
    """A clock that stands until the test moves it; with `time="run"` it goes on by itself as well.

    Its timers run with the loop, or, with `timers="stand"`, stand as well: then nothing times out and no background
    loop goes on until the test has moved the clock so far.
    """

    def __init__(
        self,
        now: datetime | None = None,
        *,
        time: Literal["run", "stand"] = "stand",
        timers: Literal["run", "stand"] = "run",
    ) -> None:
        today = datetime.now(UTC)
        # Much is counted by minutes: a test whose clock stands has the whole of one before it.
        self.time = now or (today if time == "run" else today.replace(second=0, microsecond=0))
        """What the clock says, where it stands."""
        self._runs_since = monotonic() if time == "run" else None
        self._real = LoopTimers() if timers == "run" else None
        self._passed = 1e6
        self._timers: list[tuple[float, int, StandingTimer]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        return self.time if self._runs_since is None else self.time + timedelta(seconds=monotonic() - self._runs_since)

    @property
    def doubt(self) -> str:
        """It is what the test says."""
        return ""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """The database's time is none of a test's."""

    def monotonic(self) -> float:
        return self._passed if self._real is None else self._real.monotonic()

    async def sleep(self, seconds: float) -> None:
        if self._real is not None or seconds <= 0:
            return await asyncio.sleep(seconds)
        over = asyncio.Event()
        timer = self.call_later(seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Limit]:
        return self._timeout(seconds) if self._real is None else self._real.timeout(seconds)

    @asynccontextmanager
    async def _timeout(self, seconds: float) -> AsyncIterator[Limit]:
        async with asyncio.timeout(None) as real:
            limit = StandingLimit(self, real)
            limit.reschedule(self._passed + seconds)
            try:
                yield limit
            finally:
                limit.cancel()

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> Timer:
        if self._real is not None:
            return self._real.call_later(seconds, call, *arguments)
        if seconds <= 0:
            return asyncio.get_running_loop().call_soon(call, *arguments)
        timer = StandingTimer(self._passed + seconds, call, arguments)
        heapq.heappush(self._timers, (timer.due, next(self._numbers), timer))
        return timer

    # What the test does

    def jump(self, seconds: float) -> None:
        """Set the clock, to an earlier time too: no time passes, and no timer fires."""
        self.time += timedelta(seconds=seconds)

    def advance(self, seconds: float = 0.0, **parts: float) -> None:
        """Have so much time passed at once, in seconds and `parts` as of `timedelta`: fires all timers that are due, in
        their order. Who is woken runs when the test awaits something.
        """
        end = self._end(seconds, parts)
        while self._due() <= end + ROUNDING:
            self._fire()
        self._pass_to(end)

    async def passes(self, seconds: float = 0.0, **parts: float) -> None:
        """Have so much time pass from one timer to the next: who is woken runs at the time of its timer, and may set
        others, which fire as well.
        """
        end = self._end(seconds, parts)
        await self._others_run()
        while self._due() <= end + ROUNDING:
            self._fire()
            await self._others_run()
        self._pass_to(end)

    async def passes_until(self, holds: Callable[[], object], step: float) -> None:
        """Have time pass, so many seconds at a time, until `holds()`: for what needs real work beside the time."""
        async with deadline(60):
            while not holds():
                self.advance(step)
                await asyncio.sleep(0.01)

    async def until_waiting(self, seconds: float) -> None:
        """Wait until a timer is set that ends within so many seconds from now: the program has come so far."""
        async with deadline(60):
            while self._due() > self._passed + seconds + ROUNDING:
                await asyncio.sleep(0.002)

    def _end(self, seconds: float, parts: dict[str, float]) -> float:
        passes = (timedelta(seconds=seconds) + timedelta(**parts)).total_seconds()
        assert passes >= 0, "time doesn't go back; a clock may jump"
        return self._passed + passes

    def _due(self) -> float:
        """When the next timer fires."""
        while self._timers and not self._timers[0][2].pending:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else float("inf")

    def _fire(self) -> None:
        due, _, timer = heapq.heappop(self._timers)
        self._pass_to(due)
        timer.fire()

    def _pass_to(self, when: float) -> None:
        when = max(when, self._passed)  # what was due by a fraction that additions have lost
        self.time += timedelta(seconds=when - self._passed)
        self._passed = when

    async def _others_run(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
