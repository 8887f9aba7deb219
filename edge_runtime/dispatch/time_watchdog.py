"""The time limits of calls: every few milliseconds it checks what runs and waits, and stops what is overdue."""

import asyncio
import itertools
import logging
import time
from typing import Final

from edge_runtime import clock
from edge_runtime.dispatch.call import Call, Order
from edge_runtime.dispatch.outcomes import (
    CLIENT_GONE,
    HELD,
    LOCK_HELD,
    LOCK_WAIT,
    STUCK,
    TIME_LIMIT,
    Refusal,
    refused,
    release_changing,
    writes_held,
)
from edge_runtime.dispatch.pool import FunctionQueue, Pool
from edge_runtime.ipc import progress_page
from edge_runtime.pauses import Pauses
from edge_runtime.settings import EdgeSettings

log = logging.getLogger("skerry.pool")

TICK: Final = 0.005
"""Seconds between two checks: the precision of a time limit."""
LONG: Final = 0.004
"""Seconds after which a call is no longer short, and those behind it are taken back. No time limit is below this."""
ORDER_LIMIT: Final = 60.0
"""Seconds that a worker may take for an order from the front."""
GRACE: Final = 1.0
"""Seconds beyond its time limit for a call that its worker hasn't started yet."""
COMMIT_LIMIT: Final = 5.0
"""Seconds that a COMMIT may take beyond the call's own limit: the disk's time, not the guest's."""
CALLED_LOAD_LIMIT: Final = 30.0
"""Seconds that a worker may take to load a function when it is called; the call's time doesn't include them."""
UNDER_WAY: Final = 1.0
"""Seconds within which a call's answer arrives after its worker has begun the next call."""
ABANDONED: Final = 0.05
"""Seconds that a call may run on when its client has disconnected and others wait: killing a worker costs about as
much."""


class Watchdog:
    """The pool calls `soon` when there is something to watch; its timer runs only while there is."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        pool.watch = self.soon
        self._pauses = Pauses()
        self._due = 0.0
        """When the timer is due."""
        self._busy = 0.0
        """Processor seconds that this process had used when the timer was set."""
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Check soon: something has a time limit."""
        if self._timer is None:
            # Inlined: every call passes here, and the time per call in the front is limited.
            self._busy = time.process_time()
            self._due = time.monotonic() + TICK
            self._timer = asyncio.get_running_loop().call_at(self._due, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        pool, now, patience = self._pool, time.monotonic(), clock.monotonic()
        busy, self._busy = self._busy, time.process_time()
        pause = self._pauses.notice(self._due, now, self._busy - busy)
        # First of all: the next check then sees a pause during this one.
        self._due = now + TICK
        self._timer = asyncio.get_running_loop().call_at(self._due, self._tick)
        if pause:
            self._resumed(pause)
        for link in tuple(pool.links):
            if not link.jobs or link.killed:
                continue
            if now - link.since < LONG:
                continue
            job = link.jobs[0]
            if isinstance(job, Order):
                why = "load_limit" if self._pauses.passed(link.since, now) > ORDER_LIMIT else ""
            else:
                if len(link.jobs) > 1 and link.take_back() and self._pauses.passed(link.since, now) > UNDER_WAY:
                    link.end("it has begun a call and not answered the one before")
                    continue
                others = pool.waiting > 0 or len(link.jobs) > 1
                why = overdue(job, link.seen(), link.since, now, others, pool.settings, self._pauses)
            if why in (LOCK_HELD, LOCK_WAIT) and pool.holder():
                why = HELD
            elif why == LOCK_WAIT and (writer := pool.find_writer()):
                log.warning("worker %d has waited too long for the writer lock, which %s has", link.child.pid, writer)
            if why:
                link.kill(why)
        if pool.waiting:
            self._expire(patience)
        # Checked only now: calls that were taken back or expired may have made room for others.
        if not pool.waiting and not any(link.jobs and not link.killed for link in pool.links):
            self.close()

    def _resumed(self, pause: float) -> None:
        """Extend the deadlines of waiting calls by the seconds in which the front didn't run."""
        log.warning("this process didn't run for %.1f s: limits of calls don't count that time", pause)
        queues = self._pool.queues
        for call in itertools.chain(queues.held, *(queue.calls for queue in queues.turns)):
            call.deadline += pause

    def _expire(self, now: float) -> None:
        """Refuse the calls that have waited too long, at `now` of `clock.monotonic`."""
        pool = self._pool
        expired = False
        for call in [call for call in pool.queues.held if call.deadline < now]:
            pool.queues.drop(pool.queues.of(call.key), call)
            pool.refuse(call, writes_held(pool.hold_left))
        for queue in list(pool.queues.turns):
            while queue.calls and queue.calls[0].deadline < now:
                call = queue.calls[0]
                pool.queues.drop(queue, call)
                pool.refuse(call, self._too_late(queue))
                expired = True
        if expired:
            pool.feed()

    def _too_late(self, queue: FunctionQueue) -> Refusal:
        wait = self._pool.settings.queue_wait
        if not self._pool.holds(queue.served):
            return refused("queue_timeout", f"The call waited {wait:g} s for a worker: the node is overloaded.", 1)
        return release_changing(f"The call waited {wait:g} s for a change of the node's release, which isn't done yet")


def overdue(
    call: Call,
    seen: progress_page.Seen,
    since: float,
    now: float,
    others_wait: bool,
    settings: EdgeSettings,
    pauses: Pauses,
) -> str:
    """Return why a worker must be killed, or an empty string if its first job, `call`, may go on.

    `since` is when the call became the first job, `others_wait` whether other calls need the worker; times are seconds
    of the monotonic clock. Waiting for the writer lock doesn't count as running, and has a separate limit. Time in
    which the front didn't run (`pauses`) counts toward no limit. What the worker reports (`seen`) counts only as far as
    the front's own clock bears it out.
    """
    limit, gone = call.served.limit, pauses.passed(since, now)
    if gone > bound(call, settings):
        return STUCK if seen.state == progress_page.COMMITTING else TIME_LIMIT
    if seen.request != call.id:
        return STUCK if gone > limit + GRACE else ""
    in_state = pauses.passed(seen.since_ns / 1e9, now)
    if seen.state == progress_page.LOADING:
        return STUCK if in_state > CALLED_LOAD_LIMIT else ""
    ran = pauses.passed(seen.started_ns / 1e9, now) - seen.waited_ns / 1e9
    if seen.state == progress_page.COMMITTING:
        return STUCK if in_state > limit + COMMIT_LIMIT else ""
    if seen.state == progress_page.WAITING:
        ran -= in_state
        if in_state > settings.lock_wait:
            return LOCK_WAIT
    if ran > limit:
        return TIME_LIMIT
    if seen.state == progress_page.WRITING and in_state > settings.lock_hold:
        return LOCK_HELD
    return CLIENT_GONE if call.gone and others_wait and ran > ABANDONED else ""


def bound(call: Call, settings: EdgeSettings) -> float:
    """Return for how many seconds a call may be its worker's first job, whatever the worker says: the sum of its
    limits."""
    limit = call.served.limit
    most = GRACE + CALLED_LOAD_LIMIT + limit
    if call.served.function.manifest.sql != "none":
        most += settings.lock_wait + limit + COMMIT_LIMIT
    return most
