"""The pool's clock: looks every few milliseconds at what runs and waits, and ends what is overdue."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from .calls import Order, Refusal
from .verdict import overdue

if TYPE_CHECKING:
    from .pool import Pool

TICK: Final = 0.005
"""Seconds between two looks: how exact a time limit is."""
LONG: Final = 0.004
"""Seconds after which a call isn't short any more, and those behind it are taken back. No time limit is below it."""
LOAD_LIMIT: Final = 60.0
"""Seconds that a worker may take for an order of the front's."""


class Watch:
    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """There is something to look at."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        pool, now = self._pool, time.monotonic()
        busy = False
        for link in tuple(pool.links):
            if not link.jobs or link.killed:
                continue
            busy = True
            if now - link.since < LONG:
                continue
            job = link.jobs[0]
            if isinstance(job, Order):
                why = "load_limit" if now - link.since > LOAD_LIMIT else ""
            else:
                if len(link.jobs) > 1:
                    pool.take_back(link)
                others = pool.waiting > 0 or len(link.jobs) > 1
                why = overdue(job, pool.seen(link.child.slot), link.since, now, others, pool.limits)
            if why:
                pool.kill(link, why)
        if pool.waiting:
            self._expire(now)
        if busy or pool.waiting:
            self.soon()

    def _expire(self, now: float) -> None:
        """Refuse the calls that have waited too long."""
        pool = self._pool
        expired = False
        for line in list(pool.lines.turns):
            while line.calls and line.calls[0].deadline < now:
                call = line.calls[0]
                pool.lines.drop(line, call)
                pool.refuse(call, self._too_late())
                expired = True
        if expired:
            pool.feed()

    def _too_late(self) -> Refusal:
        wait = self._pool.limits.queue_wait
        if not self._pool.hold.value:
            return Refusal(503, "queue_timeout", f"The call waited {wait:g} s for a worker: the node is overloaded.", 1)
        text = f"The call waited {wait:g} s for a change of the node's release, which isn't done yet; try again."
        return Refusal(503, "release_changing", text, 1)
