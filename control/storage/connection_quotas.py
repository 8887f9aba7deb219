"""Connections to the metadata database are shared out, so that no kind of work has to wait for another kind's."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from control.problems import ProblemError

WAIT = 3.0
"""Seconds for which work waits for a connection of its kind's share, as long as none of that kind is done."""
LONGEST = 20.0
"""Seconds for which it waits while others of its kind are done one after the other."""


class Share:
    """Connections of a pool that one kind of work may use, so that no other kind has to wait for them."""

    def __init__(self, connections: int, what: str) -> None:
        """`what` says in a word or two whose they are: "lists"."""
        self._connections = connections
        self._what = what
        self._free = asyncio.Semaphore(connections)
        self._done_at = -math.inf
        """The loop's time when work last came to its end with one of them."""

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Have one of them until the block ends; raises `ProblemError` database_busy where that takes too long."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        try:
            yield
            self._done_at = asyncio.get_running_loop().time()
        finally:
            self._free.release()

    async def _wait(self) -> None:
        """Have one that isn't free yet, in the order of asking."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        acquiring = loop.create_task(self._free.acquire())
        try:
            while not acquiring.done():
                # Many that are quick are all served; behind some that are stuck nobody waits for long.
                end = min(max(began, self._done_at) + WAIT, began + LONGEST)
                if loop.time() >= end:
                    raise ProblemError(
                        "database_busy",
                        f"the database connections for {self._what} ({self._connections}) are all busy; "
                        "nothing was changed, try again",
                    )
                await asyncio.wait({acquiring}, timeout=end - loop.time())
        except BaseException:
            if not acquiring.cancel():
                self._free.release()
            raise
