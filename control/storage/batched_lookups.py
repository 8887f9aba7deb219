"""Batched look-ups of ids, so that many unknown ids cost the database few queries."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from control.problems import ProblemError
from control.storage.connection_quotas import ASKS

PAUSE = 0.05
"""Seconds between two look-ups: made-up ids cost the database at most twenty queries a second."""
AT_ONCE = 16
"""Answers given before other tasks run: each answer wakes a request, which then does its work."""
WAITING = 5000
"""Maximum ids that wait for the next look-up."""

T = TypeVar("T")


class Lookups(Generic[T]):
    """Looks up, in one query, all ids that were requested since the last query. Answers aren't cached."""

    def __init__(self, what: str, find: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        """`what` names what is looked up, for error messages; `find` returns those of the ids that exist, by id."""
        self._what = what
        self._find = find
        self._unknown: dict[str, asyncio.Future[T | None]] = {}
        self._asked: dict[str, asyncio.Future[T | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, id: str) -> T | None:
        """Return what has this id, or None. Raises: ProblemError, when the query fails or too many ids wait."""
        future = self._unknown.get(id)
        if future is None:
            if len(self._unknown) >= WAITING:
                raise ProblemError("database_busy", f"{WAITING} {self._what} wait to be looked up; try again")
            loop = asyncio.get_running_loop()
            future = self._unknown[id] = loop.create_future()
            if self._task is None or self._task.done():
                self._task = loop.create_task(self._run())
        # A cancelled caller must not cancel the future that others share.
        return await asyncio.shield(future)

    async def stop(self) -> None:
        """End the query under way; callers of `find` are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for future in (*self._asked.values(), *self._unknown.values()):
            future.cancel()

    async def _run(self) -> None:
        ASKS.set("")  # on behalf of all waiting callers, not of the first one
        while self._unknown:
            asked, self._unknown = self._unknown, {}
            self._asked = asked
            try:
                found = await self._find(list(asked))
            except Exception as error:
                # Bugs in control too: the callers must get them.
                for future in asked.values():
                    future.set_exception(error)
                    future.exception()  # so that asyncio logs nothing if no caller waits any longer
            else:
                for number, (id, future) in enumerate(asked.items(), 1):
                    future.set_result(found.get(id))
                    if number % AT_ONCE == 0:
                        await asyncio.sleep(0)
            await asyncio.sleep(PAUSE)
