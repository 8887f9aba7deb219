"""Many small writes as few transactions: what nodes ask while one slice of them is written is the next slice.

A fleet asks and reports all at once. A transaction for each would conflict with the others until most are refused; one
for a slice costs hardly more than one for a single node, and a replica's slices never meet each other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from control.problems import ProblemError

SLICE = 100
"""Nodes in one transaction."""
WAITING = 20_000
"""Nodes that may wait for their slice."""

A = TypeVar("A")
B = TypeVar("B")

log = logging.getLogger("skerry.slices")


class Slices(Generic[A, B]):
    """Takes requests of type `A`, at most one of a node into a slice, and answers each with a `B`.

    `decide` answers a slice in one transaction, a problem for the request that has one; `writing` is the lock of all
    the slices of a replica.
    """

    def __init__(
        self,
        node_of: Callable[[A], str],
        decide: Callable[[list[A]], Awaitable[list[B | ProblemError]]],
        writing: asyncio.Lock,
    ) -> None:
        self._node_of = node_of
        self._decide = decide
        self._writing = writing
        self._waiting: list[tuple[A, asyncio.Future[B | ProblemError]]] = []
        self._wanted = asyncio.Event()

    async def ask(self, request: A) -> B:
        """The answer to `request`; raises `ProblemError`."""
        if len(self._waiting) >= WAITING:
            raise ProblemError("database_busy", f"{WAITING} nodes wait to be served; try again")
        future: asyncio.Future[B | ProblemError] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._wanted.set()
        answer = await future
        if isinstance(answer, ProblemError):
            raise answer
        return answer

    async def run(self) -> None:
        """Answer slices until cancelled; what waits then is cancelled too."""
        try:
            while True:
                await self._wanted.wait()
                async with self._writing:
                    taken = self._take()
                    if taken:
                        await self._answer(taken)
        finally:
            for _, future in self._waiting:
                future.cancel()

    def _take(self) -> list[tuple[A, asyncio.Future[B | ProblemError]]]:
        taken: list[tuple[A, asyncio.Future[B | ProblemError]]] = []
        left: list[tuple[A, asyncio.Future[B | ProblemError]]] = []
        nodes: set[str] = set()
        for index, (request, future) in enumerate(self._waiting):
            if len(taken) == SLICE:
                left += self._waiting[index:]
                break
            node = self._node_of(request)
            if node in nodes:
                left.append((request, future))
            elif not future.done():
                nodes.add(node)
                taken.append((request, future))
        self._waiting = left
        if not left:
            self._wanted.clear()
        return taken

    async def _answer(self, taken: list[tuple[A, asyncio.Future[B | ProblemError]]]) -> None:
        answers: list[B | ProblemError]
        try:
            answers = await self._decide([request for request, _ in taken])
        except ProblemError as problem:
            answers = [problem] * len(taken)
        except asyncio.CancelledError:
            for _, future in taken:
                future.cancel()
            raise
        except Exception:
            if len(taken) > 1:
                # One node's request must not cost the others theirs.
                for one in taken:
                    await self._answer([one])
                return
            log.exception("what node %s asks could not be answered", self._node_of(taken[0][0]))
            answers = [ProblemError("internal", "this is a fault of control; its log has more")]
        for (_, future), answer in zip(taken, answers, strict=True):
            if not future.done():
                future.set_result(answer)
