"""Turns that are shared out by who asks, so that whoever asks for many waits for its own, and holds up no other."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

EACH = 32
"""Turns that one may wait for."""
TOGETHER = 256
"""Turns that all may wait for together; beyond them, whoever waits for none yet may wait for one."""


class TooManyWaiting(Exception):
    """There are as many waiting already as there may be."""


class FairTurns:
    """So many turns at once; the next one is of another, where others wait."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Who waits, in the order in which they have their next turns."""

    @contextlib.asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends. Raises: TooManyWaiting."""
        await self._begin(who)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, who: str) -> None:
        if self._free:
            self._free -= 1
            return
        own = len(self._waiting.get(who, ()))
        if own >= EACH or (own and sum(map(len, self._waiting.values())) >= TOGETHER):
            raise TooManyWaiting
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(who, turn)
            else:
                self._end()  # it was given meanwhile
            raise

    def _leave(self, who: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(who)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[who]

    def _end(self) -> None:
        """Give the turn to the next one that still waits."""
        while self._waiting:
            who, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            if line:
                self._waiting.move_to_end(who)
            else:
                del self._waiting[who]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
