"""The pool decides: calls wait in their function's queue, workers take them, and a release holds those that must wait.

A function's calls have at most so many workers as its concurrency says, so that it can't take those of the others. An
idle worker is given a call at once. A worker may have more than one only of functions whose recent calls were short: a
hand-over costs more than they do. Those behind a call that turns out to be long are taken back (`claims`). Queues are
served in turn, each first come, first served. Everything happens in the loop's thread, and nothing waits here but
`change`. What is decided is done by the workers' links (`worker_link`).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from edge_runtime import clock
from edge_runtime.dispatch import outcomes
from edge_runtime.dispatch.call import Call, Job
from edge_runtime.dispatch.outcomes import Refusal, refused
from edge_runtime.dispatch.placement import Placement
from edge_runtime.dispatch.queues import FunctionQueue, Hold, Queues
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.dispatch.worker_deaths import WorkerDeaths
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.call_head import RequestUnfit, encode_head
from edge_runtime.settings import EdgeSettings
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.wal import Pressure

ATTEMPTS: Final = 20
"""How often a call is dispatched, where each time it turns out that it can't have run."""
STALE_PAUSE: Final = 0.02
"""Seconds that a call waits, for each of its attempts, when the file is ahead of the front."""


def _nothing() -> None:
    """Nobody watches."""


def _nobody() -> str:
    """Nobody looks who holds the database."""
    return ""


class Pool:
    """Until the first `serve` all calls are held."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.tallies: dict[str, Tally] = {}
        self.refusals: dict[str, int] = {}
        """By code: calls of names that aren't functions of the release."""
        self.links: set[WorkerLink] = set()
        self.deaths = 0
        """Workers that ended, since the start."""
        self.release: frames.LocalRelease | None = None
        """The release that is served; None before the first `serve`."""
        self.serial = 0
        """Serial number of the set of modules that is served."""
        self.functions: dict[str, ServedFunction] = {}
        """The functions of the release, by name."""
        self.queues = Queues(settings)
        self.hold = Hold.ALL
        self.applying = False
        """Whether a release is being applied, so that calls that would write must not wait in their workers."""
        self.pressure = Pressure.NONE
        """What the length of the write-ahead log lets calls do."""
        self.held_by = ""
        """Which process that is none of the node's has held the database for a while, for a person; empty for none."""
        self.find_holder: Callable[[], str] = _nobody
        """Looks which process holds the database just now, with an answer as in `held_by`."""
        self.find_writer: Callable[[], str] = _nobody
        """Looks which of the node's own processes has the writer lock just now, for a person."""
        self.worker_deaths = WorkerDeaths(settings, self._opened, self.holder)
        self.watch: Callable[[], None] = _nothing
        """Called when there is something with a time limit: a call that waits, a job that runs."""
        self._placement = Placement(settings.depth)
        self._held_since = self._held_until = 0.0
        """When writes began to be held, and when that must end (`clock.monotonic`)."""
        self._changed: asyncio.Event | None = None
        """Set at each reply, loss and birth, while someone waits."""

    # Calls

    def counted(self) -> list[CallCounts]:
        """Return the counts of calls, by function and release."""
        return [counts for tally in self.tallies.values() for counts in tally.counts.values()]

    @property
    def waiting(self) -> int:
        """Calls in the queues."""
        return self.queues.waiting

    def submit(self, call: Call) -> None:
        """Take a call; its outcome comes, whatever happens."""
        call.began = time.monotonic()
        served = self.functions.get(call.name)
        if served is None:
            if self.hold is Hold.ALL:
                self._wait(call, self.queues.of(call.name))
            else:
                self.refuse(call, outcomes.unknown(call.name))
            return
        if not served.breaker.closed and self._cut_off(call, served):
            return
        queue = self.queues.of(call.name)
        if not self.queues.turns and self.hold is Hold.NOTHING and self.pressure is not Pressure.WAIT:
            link = self._placement.pick(queue, spreads=queue.spreads, short=served.tally.short)
            if link is not None:
                self._dispatch(call, served, queue, link)
            else:
                self._wait(call, queue)
            return
        first = not queue.calls
        self._wait(call, queue)
        if first:
            self.feed()

    def _wait(self, call: Call, queue: FunctionQueue) -> None:
        if self.queues.waiting >= self.settings.queue_limit:
            self.refuse(call, outcomes.queue_full())
        elif len(queue.calls) >= queue.capacity:
            self.refuse(call, outcomes.queue_full(queue.name, queue.capacity))
        else:
            # First: a pause of this process is seen from then on.
            self.watch()
            call.deadline = clock.monotonic() + self.settings.queue_wait
            self.queues.add(queue, call)

    def leave(self, call: Call) -> None:
        """The client has gone: the call leaves its queue, or runs on until others need its worker."""
        if call.gone or call.ended:
            return
        call.gone = True
        if not call.id and self.queues.drop(self.queues.of(call.name), call):
            self.refuse(call, outcomes.client_gone())
            self.feed()

    def feed(self) -> None:
        """Dispatch from the queues as long as there is a worker for one of them."""
        if self.hold is Hold.ALL:
            return
        turns, placement, at = self.queues.turns, self._placement, 0
        while at < len(turns) and placement.open:
            queue = turns[at]
            served = queue.served
            if served is None or self.holds(served):
                at += 1
                continue
            spreads = queue.spreads
            link = placement.pick(queue, spreads=spreads, short=served.tally.short)
            if link is not None:
                self._dispatch(self.queues.take(at), served, queue, link)
            elif spreads:
                # The call needs an idle worker: others that go before it now might do so for ever.
                return
            else:
                at += 1

    def _dispatch(self, call: Call, served: ServedFunction, queue: FunctionQueue, link: WorkerLink) -> None:
        call.served = served
        call.short = served.tally.short
        call.attempts += 1
        try:
            head = call.head = encode_head(
                self.serial, served.index, call.via, call.method, call.path, call.query, call.headers, call.script,
                call.route, call.params, call.client,
            )  # fmt: skip
        except RequestUnfit as unfit:
            self.refuse(call, refused("request_unfit", f"The request can't be handed to a function: {unfit}."))
            return
        if call.route and not served.has(call.route, call.host):
            text = "The node's release changed while the call waited, and with it the function's route"
            self.refuse(call, outcomes.release_changing(text))
            return
        if self.pressure is Pressure.REFUSE and call.writes:
            self.refuse(call, outcomes.log_full())
            return
        if len(head) > frames.HEAD_LIMIT:
            self.refuse(call, refused("head_too_large", "The request's headers are too large for a function."))
            return
        queue.links[link] = queue.links.get(link, 0) + 1
        self.watch()
        link.run(call, head)
        self._placement.place(link, self.serial)

    def place(self, link: WorkerLink) -> None:
        """Note that a worker's jobs, or what it can do, have changed."""
        self._placement.place(link, self.serial)
        self.watch()

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """End a call that waits, or was to wait."""
        if self.held_by and refusal.code in ("queue_full", "queue_timeout"):
            # The workers wait for that process.
            refusal = outcomes.database_held(self.held_by, "Calls wait for it.")
        served = self.functions.get(call.name)
        if served is None and call.attempts:
            served = call.served
        if served is None:
            self.refusals[refusal.code] = self.refusals.get(refusal.code, 0) + 1
        else:
            served.settle(call, refusal, time.monotonic())
        call.end(refusal)

    def holder(self) -> str:
        """Return which process holds the database that is none of the node's, for a person; empty where none does."""
        return self.held_by or self.find_holder()

    def named(self, code: str, message: str) -> str:
        """Return an error's message; with the process that holds the database, where that is the error."""
        by = self.holder() if code == outcomes.HELD else ""
        return f"{message} It is held by {by}." if by else message

    def _cut_off(self, call: Call, served: ServedFunction) -> bool:
        """Refuse the call, if the function's breaker doesn't let it go; return whether that is so."""
        left = served.breaker.left(call, clock.monotonic())
        if left:
            self.refuse(call, outcomes.cut_off(call.name, left))
        return left > 0

    def _opened(self, served: ServedFunction) -> None:
        """A worker's death has opened a function's breaker: refuse what waits behind it."""
        queue = self.queues.of(served.function.name)
        if queue.served is not None and queue.served.breaker is served.breaker:
            self.again(self.queues.clear(queue))

    # What links tell: `worker_link.Owner`

    def freed(self, link: WorkerLink, job: Job, *, stale: bool, held: bool) -> None:
        """A worker has done its first job."""
        self._placement.place(link, self.serial)
        if isinstance(job, Call):
            self.queues.of(job.name).left(link)
        if self.queues.turns:
            self.feed()
        if stale and isinstance(job, Call):
            self._stale(job)
        elif held and isinstance(job, Call):
            self._held(job)
        self.changed()

    def requeue(self, link: WorkerLink, calls: list[Call]) -> None:
        """Calls were taken back from a worker."""
        for call in calls:
            self.queues.of(call.name).left(link)
            # Nothing happened to the call that may end.
            call.attempts -= 1
        self._placement.place(link, self.serial)
        if calls:
            self.again(calls)
            self.changed()

    def lost(self, link: WorkerLink, running: Call | None, waiting: list[Call], seen: progress_page.Seen) -> None:
        """A worker has ended."""
        self.links.discard(link)
        self.deaths += 1
        self._placement.place(link, self.serial)
        for call in waiting:
            self.queues.of(call.name).left(link)
        if running is not None:
            self.queues.of(running.name).left(link)
        self.worker_deaths.add(link, running, seen, idle=not waiting)
        self.again(waiting)
        self.changed()

    def _stale(self, call: Call) -> None:
        """Have a call dispatched again that has done nothing in the libsql file, because the file holds another
        release."""
        if call.sent:
            self.refuse(call, outcomes.release_changed(call.name))
            return
        if self.hold is Hold.COMMIT:
            # The release is in the file, and the front told so any moment.
            self.hold = Hold.ALL
        # The call has run: what it waited before that doesn't count.
        call.deadline = 0.0
        if self.holds(call.served) or self.functions.get(call.name) is not call.served:
            # Once the front knows of the release, or at once, if it has heard of it since.
            self.again([call])
        else:
            # The file is ahead of the front, by the moment that the end of a commit takes to get known here.
            clock.call_later(STALE_PAUSE * call.attempts, self.again, [call])

    def _held(self, call: Call) -> None:
        """Keep a call that would write while a release is applied, and has done nothing that lasts."""
        if call.sent:
            self.refuse(call, outcomes.release_changed(call.name))
        elif call.gone:
            self.refuse(call, outcomes.client_gone())
        elif self.hold is Hold.NOTHING:
            # The release is there by now, or has failed.
            call.deadline = 0.0
            self.again([call])
        elif self.queues.hold(call, self.settings.queue_limit // 2):
            self.watch()
            call.id = 0
            call.deadline = clock.monotonic() + self.settings.queue_wait
        else:
            self.refuse(call, outcomes.writes_held(self.hold_left))

    def again(self, calls: list[Call]) -> None:
        """Put calls that can't have run back to the front of their queues."""
        for call in reversed(calls):
            call.id = 0
            served = self.functions.get(call.name)
            if call.gone:
                self.refuse(call, outcomes.client_gone())
            elif served is None and self.hold is not Hold.ALL:
                self.refuse(call, outcomes.unknown(call.name))
            elif call.attempts >= ATTEMPTS:
                text = "The node's release or its workers changed again and again while the call waited"
                self.refuse(call, outcomes.release_changing(text))
            elif served is None or served.breaker.closed or not self._cut_off(call, served):
                call.deadline = call.deadline or clock.monotonic() + self.settings.queue_wait
                self.queues.put_back(self.queues.of(call.name), call)
        self.feed()

    # Releases

    def release_number(self) -> int | None:
        """Return the number of the release that is served."""
        return None if self.release is None else self.release.number

    def serve(self, serial: int, release: frames.LocalRelease) -> None:
        """Dispatch to these modules from now on, in the workers that have loaded them."""
        self.serial, self.release = serial, release
        self.functions = self.queues.serve(release, self.tallies)
        for link in self.links:
            self._placement.place(link, serial)
        self._refuse_unknown()
        self.feed()

    def holds(self, served: ServedFunction | None) -> bool:
        """Tell whether calls of a function stay in their queue."""
        if served is None or self.hold is Hold.ALL:
            return self.hold is Hold.ALL
        return self.pressure is Pressure.WAIT and served.function.manifest.sql != "none"

    def hold_writes(self, limit: float) -> None:
        """Hold calls that would write, for a release that is prepared, in `limit` seconds at most. Calls go on as long
        as they only read, and those that have the writer lock or wait for it go on too."""
        self.hold = Hold.WRITES
        self.applying = True
        self._held_since = clock.monotonic()
        self._held_until = self._held_since + limit
        for link in self.links:
            link.set_applying(True)

    @property
    def hold_left(self) -> int:
        """Seconds for which writes will be held yet: as long as they have been, but no longer than they can be."""
        now = clock.monotonic()
        return max(1, math.ceil(min(now - self._held_since, self._held_until - now)))

    def hold_at_commit(self) -> None:
        """The release that was prepared is committed now: hold all calls, too, once one finds it in the file."""
        if self.hold is Hold.WRITES:
            self.hold = Hold.COMMIT

    def hold_all(self) -> None:
        """Keep all new calls in their queues."""
        self.hold = Hold.ALL

    def let_go(self) -> None:
        """Dispatch what was held."""
        self.hold = Hold.NOTHING
        self.applying = False
        for link in self.links:
            link.set_applying(False)
        self._refuse_unknown()
        self.again(self.queues.let_go())

    def _refuse_unknown(self) -> None:
        if self.hold is not Hold.ALL:
            for queue in [queue for queue in self.queues.turns if queue.served is None]:
                for call in self.queues.clear(queue):
                    self.refuse(call, outcomes.unknown(call.name))

    def changed(self) -> None:
        """A worker replied, was lost, or is fit for calls."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def change(self) -> Awaitable[object]:
        """Return what to wait for the next `changed` with. (No coroutine of this module's: it may be compiled.)"""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed.wait()

    def close(self) -> None:
        """Refuse what waits."""
        for queue in list(self.queues.turns):
            for call in self.queues.clear(queue):
                self.refuse(call, refused("node_stopping", "The node is being stopped.", 1))
        for call in self.queues.let_go():
            self.refuse(call, refused("node_stopping", "The node is being stopped.", 1))
        self.worker_deaths.close()
