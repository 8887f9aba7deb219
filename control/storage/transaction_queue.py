"""Transactions that take turns, so that they seldom conflict, without one that is stuck holding up the others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

PATIENCE = 0.2
"""Seconds for which a turn is the only one; a transaction takes some milliseconds."""
SHORT_PATIENCE = 0.02
"""The same, in seconds, while a transaction that used its turn up still runs: the next one may be stuck like it."""


class Turns:
    """One turn at a time, in the order of asking; a turn that lasts longer than `PATIENCE` stops counting.

    What runs on after that runs beside the turns of others. So turns make conflicts rare, and don't rule them out.
    """

    def __init__(self) -> None:
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
        timer = asyncio.get_running_loop().call_later(patience, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            if over:
                self._overdue -= 1
            else:
                self._lock.release()
