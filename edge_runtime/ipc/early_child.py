"""A child that is started before it is needed: its start, some milliseconds, then passes beside other work."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from edge_runtime.ipc import frames
from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient

Work = Callable[[Child], Awaitable[None]]
"""Done with a child before it is taken; it must not raise."""


class EarlyChild:
    """One child at most: `begin` it early, `take` it when it is needed, `dismiss` it when it won't be."""

    def __init__(self, processes: ZygoteClient, kind: ChildKind, first: Work | None = None) -> None:
        """`first` is done with each child that is started before it is needed."""
        self._processes: Final = processes
        self._kind: Final = kind
        self._first: Final = first
        self._tasks: list[asyncio.Future[Child]] = []
        """The child's birth, and all that is done with it, each after the one before."""

    def begin(self) -> None:
        """Start the child, unless one is there already. Where there can be none now, `take` tries again."""
        if self._tasks and not _is_over(self._tasks[-1]):
            return
        self.dismiss()
        birth = self._processes.birth(self._kind, patience=0.0)
        self._tasks = [asyncio.create_task(birth)]
        if self._first is not None:
            self._then(self._first)

    def prepare(self, work: Work) -> None:
        """Have `work` done with the child; start one, unless it is there."""
        self.begin()
        self._then(work)

    def _then(self, work: Work) -> None:
        last = self._tasks[-1]
        # What was done before with one that waits for long isn't kept.
        self._tasks = [last] if last.done() else self._tasks
        self._tasks.append(asyncio.create_task(_prepared(last, work)))

    async def take(self) -> Child:
        """Return the child, which is the caller's from here on; a new one where none was begun, or it has ended.

        Raises: NotBorn, when there can be none.
        """
        tasks, self._tasks = self._tasks, []
        if tasks:
            try:
                child = await tasks[-1]
            except NotBorn:
                # It was asked for once; what follows asks again and again for a while.
                pass
            except BaseException:
                _end(tasks)
                raise
            else:
                if not child.exited.done():
                    return child
                child.close()
        return await self._processes.birth(self._kind)

    def give_back(self, child: Child) -> None:
        """Have a child that was taken be there to be taken once more."""
        self.dismiss()
        ready = asyncio.get_running_loop().create_future()
        ready.set_result(child)
        self._tasks = [ready]

    def dismiss(self) -> None:
        """End the child, if nobody has taken it."""
        tasks, self._tasks = self._tasks, []
        _end(tasks)


async def told(kind: int, child: Child) -> None:
    """Tell a child what it doesn't answer: `Work`, once its kind is given."""
    # Whoever takes the child meets the same, and tells it.
    with contextlib.suppress(frames.ChildGone):
        await child.tell(kind, None)


def _is_over(ready: asyncio.Future[Child]) -> bool:
    """Tell whether there is no child, or it has ended."""
    return ready.done() and (ready.cancelled() or ready.exception() is not None or ready.result().exited.done())


def _end(tasks: list[asyncio.Future[Child]]) -> None:
    """End a child, wherever its tasks are: a birth under way ends it itself, once it is cancelled."""
    for task in tasks:
        if not task.cancel() and not task.cancelled() and task.exception() is None:
            task.result().close()


async def _prepared(birth: asyncio.Future[Child], work: Work) -> Child:
    """Raises: NotBorn."""
    child = await birth
    await work(child)
    return child
