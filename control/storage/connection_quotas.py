"""Shares of a pool's connections, so that no kind of work has to wait for another kind."""

import asyncio
import contextlib
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator

from control.clock import Clock
from control.metrics import NO_TIMES, SECONDS
from control.problems import ProblemError

WAIT = 3.0
"""Seconds that work waits for a connection of its share while none of them becomes free."""
LONGEST = 20.0
"""Seconds that it waits at most, while others become free and are taken by earlier callers."""


class Share:
    """A number of a pool's connections that one kind of work may use at once."""

    def __init__(
        self, connections: int, what: str, clock: Clock, times: defaultdict[str, list[float]] | None = None
    ) -> None:
        """`what` names the kind of work, for error messages: "lists". `times` takes, by that, how long connections were
        used, each in a list as of `metrics.NO_TIMES`.
        """
        self.times = defaultdict(NO_TIMES.copy) if times is None else times
        self._times = self.times[what.replace(" ", "_")]
        self._clock = clock
        self._connections = connections
        self._what = what
        self._free = asyncio.Semaphore(connections)
        self._done_at = -math.inf
        """The clock's `monotonic` when a connection of the share last became free."""

    def another(self, connections: int, what: str) -> "Share":
        """A share of the same pool for another kind of work."""
        return Share(connections, what, self._clock, self.times)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Have a connection until the block ends. Raises: ProblemError database_busy, when none gets free in time."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
            self._done_at = self._clock.monotonic()
        finally:
            self._free.release()
            seconds = loop.time() - began
            # Here, since another call would be one more for each poll that asks the database.
            self._times[bisect_left(SECONDS, seconds)] += 1
            self._times[-1] += seconds

    async def _wait(self) -> None:
        """Wait for a connection; callers get theirs in the order in which they came."""
        clock, began = self._clock, self._clock.monotonic()
        acquiring = asyncio.ensure_future(self._free.acquire())
        try:
            while not acquiring.done():
                # Quick transactions let many callers wait their turn; behind stuck ones no caller waits for long.
                end = min(max(began, self._done_at) + WAIT, began + LONGEST)
                if clock.monotonic() >= end:
                    raise ProblemError(
                        "database_busy",
                        f"the database connections for {self._what} ({self._connections}) are all busy; "
                        "nothing was changed, try again",
                    )
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(end - clock.monotonic()):
                        await asyncio.wait({acquiring})
        except BaseException:
            if not acquiring.cancel():
                self._free.release()
            raise
