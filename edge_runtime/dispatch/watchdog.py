"""The pool's clock: looks every few milliseconds at what runs and waits, and ends what is overdue."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from edge_runtime.dispatch.call import Line, Order, Refusal
from edge_runtime.dispatch.termination import overdue
from edge_runtime.pauses import Pauses

if TYPE_CHECKING:
    from edge_runtime.dispatch.pool import Pool

log = logging.getLogger("skerry.pool")

TICK: Final = 0.005
"""Seconds between two looks: how exact a time limit is."""
LONG: Final = 0.004
"""Seconds after which a call isn't short any more, and those behind it are taken back. No time limit is below it."""
LOAD_LIMIT: Final = 60.0
"""Seconds that a worker may take for an order of the front's."""


class Watch:
    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._pauses = Pauses()
        self._due = 0.0
        """When the timer is to ring."""
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """There is something to look at."""
        if self._timer is None:
            self._due = time.monotonic() + TICK
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        pool, now = self._pool, time.monotonic()
        pause = self._pauses.notice(self._due, now)
        if pause:
            self._resumed(pause)
        busy = False
        for link in tuple(pool.links):
            if not link.jobs or link.killed:
                continue
            busy = True
            if now - link.since < LONG:
                continue
            job = link.jobs[0]
            if isinstance(job, Order):
                why = "load_limit" if self._pauses.passed(link.since, now) > LOAD_LIMIT else ""
            else:
                if len(link.jobs) > 1:
                    pool.take_back(link)
                others = pool.waiting > 0 or len(link.jobs) > 1
                seen = pool.seen(link.child.slot)
                why = overdue(job, seen, link.since, now, others, pool.limits, self._pauses)
            if why:
                pool.kill(link, why)
        if pool.waiting:
            self._expire(now)
        if busy or pool.waiting:
            self.soon()

    def _resumed(self, pause: float) -> None:
        """The front didn't run for so many seconds: what waits has them more."""
        log.warning("this process didn't run for %.1f s: limits of calls don't count that time", pause)
        for line in self._pool.lines.turns:
            for call in line.calls:
                call.deadline += pause

    def _expire(self, now: float) -> None:
        """Refuse the calls that have waited too long."""
        pool = self._pool
        expired = False
        for line in list(pool.lines.turns):
            while line.calls and line.calls[0].deadline < now:
                call = line.calls[0]
                pool.lines.drop(line, call)
                pool.refuse(call, self._too_late(line))
                expired = True
        if expired:
            pool.feed()

    def _too_late(self, line: Line) -> Refusal:
        wait = self._pool.limits.queue_wait
        if not self._pool.holds(line.target):
            return Refusal(503, "queue_timeout", f"The call waited {wait:g} s for a worker: the node is overloaded.", 1)
        text = f"The call waited {wait:g} s for a change of the node's release, which isn't done yet; try again."
        return Refusal(503, "release_changing", text, 1)
