"""Ids that are looked up together, so that many unknown ones cost the database few queries."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from control.problems import ProblemError

PAUSE = 0.05
"""Seconds between two look-ups: made-up ids cost the database twenty queries a second at most."""
TOLD_AT_ONCE = 16
"""Answers that are given before others get their turn: each wakes a request, which is then answered."""
WAITING = 5000
"""Ids that may wait for the next look-up."""

T = TypeVar("T")


class Lookups(Generic[T]):
    """Asks for ids in one query what came in since the last one. It keeps no answer."""

    def __init__(self, what: str, find: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        """`what` says for people what is looked up; `find` returns, by id, those that there are."""
        self._what = what
        self._find = find
        self._unknown: dict[str, asyncio.Future[T | None]] = {}
        self._asked: dict[str, asyncio.Future[T | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, id: str) -> T | None:
        """Return what has this id, or None; raises `ProblemError`, database_busy where too many wait."""
        future = self._unknown.get(id)
        if future is None:
            if len(self._unknown) >= WAITING:
                raise ProblemError("database_busy", f"{WAITING} {self._what} wait to be looked up; try again")
            loop = asyncio.get_running_loop()
            future = self._unknown[id] = loop.create_future()
            if self._task is None or self._task.done():
                self._task = loop.create_task(self._run())
        # Someone who goes away must not take the answer from the others.
        return await asyncio.shield(future)

    async def stop(self) -> None:
        """End what is under way; who waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for future in (*self._asked.values(), *self._unknown.values()):
            future.cancel()

    async def _run(self) -> None:
        while self._unknown:
            asked, self._unknown = self._unknown, {}
            self._asked = asked
            try:
                found = await self._find(list(asked))
            except Exception as error:
                # Also a mistake of ours: whoever waits must hear of it.
                for future in asked.values():
                    future.set_exception(error)
                    future.exception()  # it may be that nobody waits any more
            else:
                for number, (id, future) in enumerate(asked.items(), 1):
                    future.set_result(found.get(id))
                    if number % TOLD_AT_ONCE == 0:
                        await asyncio.sleep(0)
            await asyncio.sleep(PAUSE)
