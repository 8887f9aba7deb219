"""Calls whose worker died while it ran them: each gets the refusal that fits, and its function's breaker is told."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from edge_runtime import clock
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.guest_log import fields_of, shown_with
from edge_runtime.dispatch.outcomes import FOREIGN, HELD, KILL_CODES, blames, of_death
from edge_runtime.dispatch.served_functions import ServedFunction
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.births import how
from edge_runtime.settings import EdgeSettings

log = logging.getLogger("skerry.pool")

STATUS_WAIT: Final = 1.0
"""Seconds that a call's end waits for the zygote to report how the worker exited."""


async def _nothing_to_settle() -> None:
    """Do nothing: no database is written."""


class WorkerDeaths:
    def __init__(
        self, settings: EdgeSettings, opened: Callable[[ServedFunction], None], holder: Callable[[], str]
    ) -> None:
        """`opened`: called with a function whose breaker was opened by a death; `holder`: `Pool.holder`."""
        self.settle_commit: Callable[[], Awaitable[None]] = _nothing_to_settle
        """Ensures that a COMMIT during which the worker was killed is either kept or undone; it must not raise."""
        self._settings = settings
        self._opened = opened
        self._holder = holder
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, link: WorkerLink, call: Call | None, seen: progress_page.Seen, *, idle: bool) -> None:
        """End the call that a worker was running when it died, if any; `seen`: how far the call had come. `idle`: no
        call was waiting for the worker either."""
        if call is None:
            if idle and link.ran is not None and link.killed in ("", FOREIGN):
                self._begin(self._blame(link, link.ran))
        elif link.killed in KILL_CODES and seen.state != progress_page.COMMITTING:
            self._end(link, call, seen, None)
        else:
            self._begin(self._ask(link, call, seen))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, link: WorkerLink, call: Call, seen: progress_page.Seen) -> None:
        """End a call once the zygote has reported how its worker exited."""
        status = await _status(link)
        if seen.state == progress_page.COMMITTING:
            # Before the client is told: what it then reads of the changes must not change again.
            await self.settle_commit()
        self._end(link, call, seen, status)

    async def _blame(self, link: WorkerLink, served: ServedFunction) -> None:
        """Attribute the death of a worker that had no call to the function whose call it answered last."""
        status = await _status(link)
        if blames(link.killed, progress_page.IDLE, status):
            what = "was ended by the front" if link.killed else how(status)
            log.warning("worker %d %s after a call of %s", link.child.pid, what, served.function.name)
            if served.breaker.died(link, clock.monotonic()):
                self._cut_off(served)

    def _end(self, link: WorkerLink, call: Call, seen: progress_page.Seen, status: int | None) -> None:
        holder = self._holder() if link.killed == HELD else ""
        refusal = of_death(call.served.function, seen.state, link.killed, status, self._settings, holder)
        what = "was ended by the front" if link.killed else how(status)
        refusal = refusal._replace(release=call.served.release)
        shown, fields = shown_with(call.name, call), fields_of(call)
        log.warning("worker %d %s: %s, %s", link.child.pid, what, shown, link.killed or refusal.code, extra=fields)
        now = time.monotonic()
        blamed = blames(link.killed, seen.state, status)
        if call.served.settle(call, refusal, now, blamed=blamed, ran=max(0.0, now - link.since)):
            self._cut_off(call.served)
        call.end(refusal)

    def _cut_off(self, served: ServedFunction) -> None:
        text = "%s is cut off for %.0f s: its calls ended their processes again and again"
        log.error(text, served.function.name, served.breaker.until - clock.monotonic())
        self._opened(served)


async def _status(link: WorkerLink) -> int | None:
    """Return a worker's exit status as from waitpid; None if the zygote doesn't report it in time."""
    try:
        async with clock.timeout(STATUS_WAIT):
            return await asyncio.shield(link.child.exited)
    except TimeoutError:
        return None
