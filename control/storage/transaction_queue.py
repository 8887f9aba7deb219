"""Turns of transactions: they seldom conflict then, and one that is stuck doesn't hold up the others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from control.clock import Clock

PATIENCE = 0.2
"""Seconds after which the next turn begins though this one hasn't ended; a transaction takes some milliseconds."""
SHORT_PATIENCE = 0.02
"""`PATIENCE`, in seconds, while a transaction runs that has exceeded it: the next one may be stuck too."""


class Turns:
    """One turn at a time, in the order of the callers. After `PATIENCE` the next turn begins in any case.

    A transaction may thus run beside others: turns make conflicts rare, they don't exclude them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._overdue = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        await self._lock.acquire()
        over = False

        def pass_on() -> None:
            nonlocal over
            over = True
            self._overdue += 1
            self._lock.release()

        patience = SHORT_PATIENCE if self._overdue else PATIENCE
        timer = self._clock.call_later(patience, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            if over:
                self._overdue -= 1
            else:
                self._lock.release()
