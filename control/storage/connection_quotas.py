"""Waiting for connections: shares of a pool, and turns of transactions.

A pool's connections are divided into shares, so that no kind of work has to wait for another kind. Within a share,
callers take turns, and each has half of it at most: a caller with many requests waits for its own.

Transactions that would conflict also take turns (`Turns`); one that is stuck doesn't block the others.
"""

import asyncio
import contextlib
import math
from bisect import bisect_left
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator
from contextvars import ContextVar

from control.clock import Clock
from control.metrics import NO_TIMES, SECONDS
from control.problems import ProblemError

WAIT = 3.0
"""Seconds that work waits for a connection of its share while none becomes free."""
LONGEST = 20.0
"""Maximum seconds that work waits while connections become free and earlier callers take them."""
ASKS: ContextVar[str] = ContextVar("asks", default="")
"""On whose behalf this task works: the id of an operator or a node, or a stranger's address; '' for control itself."""


class Places:
    """A limited number of places. Waiting callers take turns, and each caller has `each` at most."""

    def __init__(self, count: int, each: int) -> None:
        self.free = count
        self.each = each
        self.held: Counter[str] = Counter()
        self.waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Waiting callers, in the order of their next turns."""

    def ask(self, who: str) -> asyncio.Future[None]:
        """Request a place, which is taken once the future is done and must be given back in any case."""
        given = asyncio.get_running_loop().create_future()
        if self.free and self._may(who):
            self._take(who, given)
        else:
            self.waiting.setdefault(who, deque()).append(given)
        return given

    def give_back(self, who: str, given: asyncio.Future[None] | None) -> None:
        """Give a place back, or stop waiting for it: the next waiting caller that may have it gets it."""
        if given is not None and not given.done():
            line = self.waiting[who]
            line.remove(given)
            if not line:
                del self.waiting[who]
            return
        self.free += 1
        if who:
            self.held[who] -= 1
            if not self.held[who]:
                del self.held[who]
        for other, line in self.waiting.items():
            if self._may(other):
                self._take(other, line.popleft())
                if line:
                    self.waiting.move_to_end(other)
                else:
                    del self.waiting[other]
                return

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a place until the block ends."""
        who = ASKS.get()
        given = self.ask(who)
        try:
            # Not the future itself: a cancelled caller would cancel it.
            await asyncio.wait({given})
            yield
        finally:
            self.give_back(who, given)

    def _may(self, who: str) -> bool:
        return not who or self.held[who] < self.each

    def _take(self, who: str, given: asyncio.Future[None]) -> None:
        self.free -= 1
        if who:
            self.held[who] += 1
        given.set_result(None)


class Share:
    """A number of a pool's connections that one kind of work may use at once."""

    def __init__(
        self, connections: int, what: str, clock: Clock, times: defaultdict[str, list[float]] | None = None
    ) -> None:
        """`what` names the kind of work for error messages: "lists". `times` collects, by that name, how long
        connections were used, each in a list like `metrics.NO_TIMES`.
        """
        self.times = defaultdict(NO_TIMES.copy) if times is None else times
        self._times = self.times[what.replace(" ", "_")]
        self._clock = clock
        self._connections = connections
        self._what = what
        self._places = Places(connections, (connections + 1) // 2)
        self._done_at = -math.inf
        """When a connection of the share last became free, by the clock's `monotonic`."""

    def another(self, connections: int, what: str) -> "Share":
        """Return a share of the same pool for another kind of work."""
        return Share(connections, what, self._clock, self.times)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a connection until the block ends. Raises: ProblemError database_busy, when none is free in time."""
        who, places = ASKS.get(), self._places
        given: asyncio.Future[None] | None = None
        if places.free and not who:
            # Control's own work, such as the results of polls: a turn would be one more call.
            places.free -= 1
        else:
            given = places.ask(who)
            if not given.done():
                await self._wait(who, given)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
            self._done_at = self._clock.monotonic()
        finally:
            if given is None and not places.waiting:
                places.free += 1
            else:
                places.give_back(who, given)
            seconds = loop.time() - began
            # Inline, since every poll that asks the database would pay for another call.
            self._times[bisect_left(SECONDS, seconds)] += 1
            self._times[-1] += seconds

    async def _wait(self, who: str, given: asyncio.Future[None]) -> None:
        """Wait for a connection; callers on behalf of the same one get theirs in order of arrival."""
        clock, began = self._clock, self._clock.monotonic()
        try:
            while not given.done():
                # Many callers may wait behind fast transactions; behind stuck ones no caller waits for long.
                end = min(max(began, self._done_at) + WAIT, began + LONGEST)
                if clock.monotonic() >= end:
                    raise ProblemError(
                        "database_busy",
                        f"the database connections for {self._what} ({self._connections}, of which one who asks has "
                        f"{self._places.each} at most) are busy; nothing was changed, try again",
                    )
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(end - clock.monotonic()):
                        await asyncio.wait({given})
        except BaseException:
            self._places.give_back(who, given)
            raise


TURN = 0.2
"""Seconds after which the next turn begins even if this one hasn't ended; a transaction takes some milliseconds."""
SHORT_TURN = 0.02
"""`TURN`, in seconds, while a transaction that has exceeded it still runs: the next one may be stuck too."""


class Turns:
    """One turn at a time, in the order of the callers. After `TURN` seconds the next turn begins in any case.

    So transactions may overlap: turns make conflicts rare but don't prevent them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._overdue = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it until the block ends."""
        await self._lock.acquire()
        over = False

        def pass_on() -> None:
            nonlocal over
            over = True
            self._overdue += 1
            self._lock.release()

        patience = SHORT_TURN if self._overdue else TURN
        timer = self._clock.call_later(patience, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            if over:
                self._overdue -= 1
            else:
                self._lock.release()
