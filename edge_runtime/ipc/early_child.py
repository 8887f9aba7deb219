"""A child that is started before it is needed: its start, some milliseconds, then passes beside other work."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient

Work = Callable[[Child], Awaitable[None]]
"""Done with a child before it is taken; it must not raise."""


class EarlyChild:
    """One child at most: `begin` it early, `take` it when it is needed, `dismiss` it when it won't be."""

    def __init__(
        self, processes: ZygoteClient, kind: ChildKind, first: Work | None = None, *, rehearsed: bool = False
    ) -> None:
        """Each child that is started before it is needed has called a function that does nothing, where it is
        `rehearsed`; `first` is done with it."""
        self._processes: Final = processes
        self._kind: Final = kind
        self._first: Final = first
        self._rehearsed: Final = rehearsed
        self._birth: asyncio.Task[Child] | None = None

    def begin(self) -> None:
        """Start the child, unless one is there already. Where there can be none now, `take` tries again."""
        self._begun()

    def prepare(self, work: Work) -> None:
        """Have `work` done with the child; start one, unless it is there."""
        self._birth = asyncio.create_task(_prepared(self._begun(), work))

    def _begun(self) -> asyncio.Task[Child]:
        birth = self._birth
        if birth is None or _is_over(birth):
            self.dismiss()
            birth = asyncio.create_task(self._processes.birth(self._kind, patience=0.0, rehearsed=self._rehearsed))
            if self._first is not None:
                birth = asyncio.create_task(_prepared(birth, self._first))
            self._birth = birth
        return birth

    async def take(self) -> Child:
        """Return the child, which is the caller's from here on; a new one where none was begun, or it has ended.

        Raises: NotBorn, when there can be none.
        """
        birth, self._birth = self._birth, None
        if birth is not None:
            try:
                child = await birth
            except NotBorn:
                # It was asked for once; what follows asks again and again for a while.
                pass
            else:
                if not child.exited.done():
                    return child
                child.close()
        return await self._processes.birth(self._kind)

    def dismiss(self) -> None:
        """End the child, if nobody has taken it."""
        birth, self._birth = self._birth, None
        if birth is None:
            return
        if not birth.done():
            birth.cancel()
        elif birth.exception() is None:
            birth.result().close()


def _is_over(birth: asyncio.Task[Child]) -> bool:
    """Tell whether there is no child, or it has ended."""
    return birth.done() and (birth.cancelled() or birth.exception() is not None or birth.result().exited.done())


async def _prepared(birth: asyncio.Task[Child], work: Work) -> Child:
    """Raises: NotBorn."""
    child = await birth
    try:
        await work(child)
    except BaseException:
        child.close()
        raise
    return child
