"""A child that is started before it is needed: its start, some milliseconds, then passes beside other work."""

import asyncio
from typing import Final

from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient


class EarlyChild:
    """One child at most: `begin` it early, `take` it when it is needed, `dismiss` it when it won't be."""

    def __init__(self, processes: ZygoteClient, kind: ChildKind) -> None:
        self._processes: Final = processes
        self._kind: Final = kind
        self._birth: asyncio.Future[Child] | None = None

    def begin(self) -> None:
        """Start the child, unless one is there already. Where there can be none now, `take` tries again."""
        if self._birth is None or _is_over(self._birth):
            self.dismiss()
            self._birth = asyncio.create_task(self._processes.birth(self._kind, patience=0.0))

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
            except BaseException:
                _end(birth)
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
        self._birth = ready

    def dismiss(self) -> None:
        """End the child, if nobody has taken it."""
        birth, self._birth = self._birth, None
        if birth is not None:
            _end(birth)


def _is_over(ready: asyncio.Future[Child]) -> bool:
    """Tell whether there is no child, or it has ended."""
    return ready.done() and (ready.cancelled() or ready.exception() is not None or ready.result().exited.done())


def _end(birth: asyncio.Future[Child]) -> None:
    """End a child; a birth under way ends it itself, once it is cancelled."""
    if not birth.cancel() and not birth.cancelled() and birth.exception() is None:
        birth.result().close()
