"""Calls whose worker ended while it ran them: each is told how, and its function's breaker is."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.termination import CODES, blames, verdict
from edge_runtime.dispatch.worker_link import Link
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.zygote_client import how

if TYPE_CHECKING:
    from edge_runtime.dispatch.pool import Pool

log = logging.getLogger("skerry.pool")

STATUS_WAIT: Final = 1.0
"""Seconds that an answer waits for the zygote to say how its worker ended."""


async def _settled() -> None:
    """Nothing is to be settled where no database is written."""


class Burials:
    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self.settle: Callable[[], Awaitable[None]] = _settled
        """Sees to it that a COMMIT whose worker was killed in it is either kept or undone; it must not raise."""
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, link: Link, call: Call, seen: progress_page.Seen) -> None:
        """`seen`: how far its worker had come."""
        if link.killed in CODES and seen.state != progress_page.COMMITTING:
            self._bury(link, call, seen, None)
        else:
            task = asyncio.get_running_loop().create_task(self._ask(link, call, seen))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(self, link: Link, call: Call, seen: progress_page.Seen) -> None:
        """The zygote knows how the worker ended."""
        try:
            async with asyncio.timeout(STATUS_WAIT):
                status = await asyncio.shield(link.child.exited)
        except TimeoutError:
            status = None
        if seen.state == progress_page.COMMITTING:
            # Who reads then what became of it reads what stays so.
            await self.settle()
        self._bury(link, call, seen, status)

    def _bury(self, link: Link, call: Call, seen: progress_page.Seen, status: int | None) -> None:
        refusal = verdict(call, seen.state, link.killed, status, self._pool.limits)
        what = "was ended by the front" if link.killed else how(status)
        why = link.killed or refusal.code
        log.warning("worker %d %s: %s, %s", link.child.pid, what, call.name, why)
        line, breaker = call.target.line, call.target.breaker
        if blames(link.killed, seen.state, status) and breaker.died(call, time.monotonic()):
            text = "%s is cut off for %.0f s: its calls ended their processes again and again"
            log.error(text, call.name, breaker.until - time.monotonic())
            if line.target is not None and line.target.breaker is breaker:
                self._pool.again(self._pool.lines.clear(line))
        self._pool.refuse(call, refusal)
