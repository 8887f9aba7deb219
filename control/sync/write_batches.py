"""Many small writes as few transactions: what nodes ask while one slice of them is written is the next slice.

A fleet asks and reports all at once. A transaction for each would conflict with the others until most are refused; one
for a slice costs hardly more than one for a single node, and a replica's slices seldom meet each other.

A node's row may be locked by another transaction, which may be stuck. A slice that waited for one in vain is decided
again without the nodes that are locked, and so are the next ones for a while; those nodes wait by themselves.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from control.problems import ProblemError
from control.storage.database import Locked

SLICE = 100
"""Nodes in one transaction."""
WAITING = 20_000
"""Nodes that may wait for their slice."""
CAREFUL_FOR = 10.0
"""Seconds after the last locked row that was met for which slices look for locked rows first."""
LOCKED_FOR = 2.0
"""Seconds for which a node whose row is locked is tried again before it is refused."""
LOCKED_PAUSE = 0.25
"""Seconds between two tries."""

A = TypeVar("A")
B = TypeVar("B")

log = logging.getLogger("skerry.slices")


class Held(Enum):
    """In the place of an answer: another transaction has locked what the node's answer needs."""

    LOCKED = "locked"


@dataclass(slots=True, eq=False)
class _Asked(Generic[A, B]):
    request: A
    future: "asyncio.Future[B | ProblemError]"
    locked_since: float | None = None
    """The loop's time when it was first found locked."""


class Slices(Generic[A, B]):
    """Takes requests of type `A`, at most one of a node into a slice, and answers each with a `B`.

    `decide(requests, careful)` answers a slice in one transaction, with a problem for the request that has one. It
    raises `Locked` for a row that it waited for in vain; with `careful` it waits for no node, and says `Held.LOCKED`.
    """

    def __init__(
        self,
        node_of: Callable[[A], str],
        decide: Callable[[list[A], bool], Awaitable[list[B | ProblemError | Held]]],
    ) -> None:
        self._node_of = node_of
        self._decide = decide
        self._waiting: list[_Asked[A, B]] = []
        self._wanted = asyncio.Event()
        self._locked: set[_Asked[A, B]] = set()
        """Those that wait until they are tried again."""
        self._careful_until = 0.0

    async def ask(self, request: A) -> B:
        """The answer to `request`; raises `ProblemError`."""
        if len(self._waiting) >= WAITING:
            raise ProblemError("database_busy", f"{WAITING} nodes wait to be served; try again")
        asked: _Asked[A, B] = _Asked(request, asyncio.get_running_loop().create_future())
        self._put(asked)
        answer = await asked.future
        if isinstance(answer, ProblemError):
            raise answer
        return answer

    async def run(self) -> None:
        """Answer slices until cancelled; what waits then is cancelled too."""
        try:
            while True:
                await self._wanted.wait()
                taken = self._take()
                if taken:
                    await self._answer(taken)
        finally:
            for asked in (*self._waiting, *self._locked):
                asked.future.cancel()

    def _put(self, asked: _Asked[A, B]) -> None:
        self._locked.discard(asked)
        self._waiting.append(asked)
        self._wanted.set()

    def _take(self) -> list[_Asked[A, B]]:
        taken: list[_Asked[A, B]] = []
        left: list[_Asked[A, B]] = []
        nodes: set[str] = set()
        for index, asked in enumerate(self._waiting):
            if len(taken) == SLICE:
                left += self._waiting[index:]
                break
            node = self._node_of(asked.request)
            if node in nodes:
                left.append(asked)
            elif not asked.future.done():
                nodes.add(node)
                taken.append(asked)
        self._waiting = left
        if not left:
            self._wanted.clear()
        return taken

    async def _answer(self, taken: list[_Asked[A, B]]) -> None:
        loop = asyncio.get_running_loop()
        careful = loop.time() < self._careful_until
        answers: list[B | ProblemError | Held]
        try:
            answers = await self._decide([asked.request for asked in taken], careful)
        except Locked as locked:
            self._careful_until = loop.time() + CAREFUL_FOR
            if not careful:
                return await self._answer(taken)
            if len(taken) > 1:
                # It isn't the nodes' own rows that are locked: find out whose.
                return await self._one_by_one(taken)
            answers = [locked]
        except ProblemError as problem:
            answers = [problem] * len(taken)
        except asyncio.CancelledError:
            for asked in taken:
                asked.future.cancel()
            raise
        except Exception:
            if len(taken) > 1:
                # One node's request must not cost the others theirs.
                return await self._one_by_one(taken)
            log.exception("what node %s asks could not be answered", self._node_of(taken[0].request))
            answers = [ProblemError("internal", "this is a fault of control; its log has more")]
        for asked, answer in zip(taken, answers, strict=True):
            if isinstance(answer, Held):
                self._hold(asked)
            elif not asked.future.done():
                asked.future.set_result(answer)
        return None

    async def _one_by_one(self, taken: list[_Asked[A, B]]) -> None:
        for number, asked in enumerate(taken):
            try:
                await self._answer([asked])
            except asyncio.CancelledError:
                for other in taken[number:]:
                    other.future.cancel()
                raise

    def _hold(self, asked: _Asked[A, B]) -> None:
        """Try a node whose row is locked again in a while, or refuse it."""
        loop = asyncio.get_running_loop()
        self._careful_until = loop.time() + CAREFUL_FOR
        if asked.locked_since is None:
            asked.locked_since = loop.time()
        if asked.future.done():
            return
        if loop.time() - asked.locked_since >= LOCKED_FOR:
            asked.future.set_result(Locked(f"the row of node {self._node_of(asked.request)}"))
        else:
            self._locked.add(asked)
            loop.call_later(LOCKED_PAUSE, self._put, asked)
