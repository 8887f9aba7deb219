"""A child that is started before it is needed: its start, some milliseconds, then passes beside other work."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient


class EarlyChild:
    """One child at most: `begin` it early, `take` it when it is needed, `dismiss` it when it won't be."""

    def __init__(
        self,
        processes: ZygoteClient,
        kind: ChildKind,
        prepare: Callable[[Child], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare`: what is done with a child that was begun, before it is taken. It must not raise."""
        self._processes: Final = processes
        self._kind: Final = kind
        self._prepare: Final = prepare
        self._birth: asyncio.Task[Child] | None = None

    def begin(self) -> None:
        """Start the child, unless one is there already. Where there can be none now, `take` tries again."""
        if self._birth is None:
            self._birth = asyncio.get_running_loop().create_task(self._born())

    async def _born(self) -> Child:
        """Raises: NotBorn."""
        child = await self._processes.birth(self._kind, patience=0.0)
        if self._prepare is not None:
            try:
                await self._prepare(child)
            except BaseException:
                child.close()
                raise
        return child

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
