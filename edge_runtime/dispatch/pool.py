"""The pool decides: calls wait in their function's queue, workers take them, and a release holds those that must wait.

A function's calls use at most as many workers as its concurrency allows, so that it can't take the workers of others.
An idle worker gets a call at once. A worker may have several calls only of functions whose recent calls were short: for
these a handover costs more than the call. Calls behind one that turns out to be long are taken back (`claims`). Queues
are served in turn, each first come, first served. Everything happens in the event loop's thread, and nothing here waits
except `change`. The workers' links (`worker_link`) carry out what is decided.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from edge_runtime import clock
from edge_runtime.dispatch import outcomes
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call, Job, tick_key
from edge_runtime.dispatch.outcomes import Refusal, refused
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.dispatch.worker_deaths import WorkerDeaths
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.claims import ROOM
from edge_runtime.ipc.request_head import RequestUnfit, encode_head
from edge_runtime.settings import EdgeSettings
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.wal import Pressure

ATTEMPTS: Final = 20
"""How often a call is dispatched, if it turns out each time that it can't have run."""
STALE_PAUSE: Final = 0.02
"""Seconds that a call waits, per attempt, when the file is ahead of the front."""
# Not `Final`, whose value is built into what is compiled: tests change it.
QUICK = 0.001
"""Seconds: if a function's recent calls took less, its calls use few workers."""


class Hold(Enum):
    """Which calls stay in their queues."""

    NOTHING = 0
    WRITES = 1
    """A release is being prepared: calls that would write."""
    COMMIT = 2
    """The release is being committed: the same calls, and all calls once one finds the release in the file."""
    ALL = 3


@dataclass(slots=True, eq=False)
class FunctionQueue:
    """A function's calls on this node, of any version: those that wait, and the workers that have the others."""

    name: str
    concurrency: int = 1
    """Workers that the function's calls may use at once."""
    few: int = 1
    """As many workers as suffice while calls are quick: the front needs a processor too, and each wakeup costs."""
    capacity: int = 0
    """Calls that may wait."""
    served: ServedFunction | None = None
    """The function in the current release; None if the release doesn't have it."""
    calls: deque[Call] = field(default_factory=deque)
    """The waiting calls, the next one first."""
    links: dict[WorkerLink, int] = field(default_factory=dict)
    """The workers that have calls of the function, and how many each has."""

    def left(self, link: WorkerLink) -> None:
        """Note that a worker has one call fewer of the function."""
        if self.links[link] == 1:
            del self.links[link]
        else:
            self.links[link] -= 1

    @property
    def spreads(self) -> bool:
        """Whether the next call may go to a worker that has none of the function's calls."""
        if len(self.links) >= self.concurrency:
            return False
        # While recent calls took no longer than the front's own work for them, few workers are enough.
        if self.served is None or not 0.0 < self.served.tally.recent < QUICK:
            return True
        return sum(not link.longs for link in self.links) < self.few


class Queues:
    """All queues of the node: one for each function, served in turn, so that no function waits for another's calls."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.turns: list[FunctionQueue] = []
        """The queues with waiting calls, in the order of their turns."""
        self.held: deque[Call] = deque()
        """Calls that would write, and wait for a release to be applied. They are in no function's queue, so that the
        function's other calls go on. At most half of all waiting calls may be here, which leaves room for the
        others."""
        self.waiting = 0
        """Calls in all queues, and those that are held."""
        self._settings = settings
        self._queues: dict[str, FunctionQueue] = {}

    def of(self, name: str) -> FunctionQueue:
        """Return the queue of a function. The function may be missing from the current release and be in the next."""
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = FunctionQueue(name, capacity=self._settings.function_queue)
        return queue

    def serve(self, release: frames.LocalRelease, tallies: dict[str, Tally]) -> dict[str, ServedFunction]:
        """Return the functions of a new release by name, and by `tick_key`, which their queues serve now.

        A version keeps its breakers.
        """
        settings = self._settings
        made = {}
        places = {name: place for place, name in enumerate(sorted(f.name for f in release.functions))}
        for index, f in enumerate(release.functions):
            queue = self.of(f.name)
            manifest, before = f.manifest, queue.served
            queue.concurrency = min(manifest.concurrency or settings.concurrency, settings.workers)
            queue.few = settings.few
            queue.capacity = manifest.queue or settings.function_queue
            queue.served = made[f.name] = ServedFunction(
                index,
                f,
                tallies.setdefault(f.name, Tally(f.name)),
                before.breaker if before is not None and _same(before.function, f) else Breaker(),
                manifest.sql == "write",
                manifest.time_limit_ms / 1000,
                release.number,
                manifest.read_only_methods or (),
                places[f.name],
            )
            if manifest.schedule or manifest.on_release:
                made[tick_key(f.name)] = self._serve_ticks(made[f.name])
        for name, queue in list(self._queues.items()):
            if name not in made:
                queue.served = None
                if not queue.calls and not queue.links:
                    del self._queues[name]
        return made

    def _serve_ticks(self, served: ServedFunction) -> ServedFunction:
        """Return a function as its ticks are served: one at a time, with a queue and a breaker of their own."""
        queue = self.of(tick_key(served.function.name))
        before, queue.capacity = queue.served, 1
        kept = before is not None and _same(before.function, served.function)
        breaker = before.breaker if before is not None and kept else Breaker()
        queue.served = ServedFunction(
            served.index,
            served.function,
            served.tally,
            breaker,
            served.writes,
            served.limit,
            served.release,
            served.read_only,
            served.place,
        )
        return queue.served

    def add(self, queue: FunctionQueue, call: Call) -> None:
        """Put a call at the end of its queue."""
        if not queue.calls:
            self.turns.append(queue)
        queue.calls.append(call)
        self.waiting += 1

    def put_back(self, queue: FunctionQueue, call: Call) -> None:
        """Put a call, which has had its turn, back at the front of its queue, and serve that queue next."""
        if not queue.calls:
            self.turns.insert(0, queue)
        queue.calls.appendleft(call)
        self.waiting += 1

    def hold(self, call: Call, most: int) -> bool:
        """Keep a call that would write, if fewer than `most` are kept; return whether it was kept."""
        queue = self.of(call.key)
        mine = sum(other.key == call.key for other in self.held)
        if len(self.held) >= most or mine >= queue.capacity:
            return False
        self.held.append(call)
        self.waiting += 1
        return True

    def let_go(self) -> list[Call]:
        """Take all held calls, in order of arrival."""
        calls = list(self.held)
        self.held.clear()
        self.waiting -= len(calls)
        return calls

    def take(self, turn: int) -> Call:
        """Take the first call of the queue at this place in `turns`, and move the queue to the end of the turns."""
        queue = self.turns.pop(turn)
        self.waiting -= 1
        call = queue.calls.popleft()
        if queue.calls:
            self.turns.append(queue)
        return call

    def drop(self, queue: FunctionQueue, call: Call) -> bool:
        """Remove a call from its queue or from the held calls; return whether it was there."""
        if call in self.held:
            self.held.remove(call)
            self.waiting -= 1
            return True
        if call not in queue.calls:
            return False
        queue.calls.remove(call)
        self.waiting -= 1
        if not queue.calls:
            self.turns.remove(queue)
        return True

    def clear(self, queue: FunctionQueue) -> list[Call]:
        """Remove all calls from a queue."""
        calls = list(queue.calls)
        if calls:
            self.turns.remove(queue)
            self.waiting -= len(calls)
            queue.calls.clear()
        return calls


def _same(before: frames.LocalFunction, now: frames.LocalFunction) -> bool:
    """Return whether what is known about one function's calls applies to the other's."""
    return (before.sha256, before.manifest_digest) == (now.sha256, now.manifest_digest)


class Placement:
    """The workers that may take another call, by the number of calls that they have."""

    def __init__(self, depth: int) -> None:
        """`depth`: calls that one worker may have if they are short."""
        self.depth = depth
        self.open = 0
        """Workers that may take another call. Some may be unusable by now, which turns out when they are picked."""
        self._free: list[list[WorkerLink]] = [[] for _ in range(depth)]

    def place(self, link: WorkerLink, serial: int) -> None:
        """Put a link where it belongs after its jobs or abilities have changed; `serial`: the set of modules being
        served."""
        level = len(link.jobs)
        if (
            level >= self.depth
            or link.longs
            or not link.usable
            or link.spare
            or link.rests
            or serial not in link.serials
            or abs(link.last - link.replied) > ROOM
        ):
            level = -1
        old = link.level
        if level != old:
            if old >= 0:
                self._free[old].remove(link)
                self.open -= 1
            if level >= 0:
                self._free[level].append(link)
                self.open += 1
            link.level = level

    def pick(self, queue: FunctionQueue, *, spreads: bool, short: bool) -> WorkerLink | None:
        """Return the worker for a queue's next call, None if the call must wait.

        `spreads`: a worker without a call of the function may be picked; `short`: the function's recent calls were
        short.
        """
        if spreads:
            for free in self._free if short else self._free[:1]:
                while free:
                    link = free[-1]
                    if link.usable:
                        return link
                    # Killed since it was placed.
                    free.pop()
                    self.open -= 1
                    link.level = -1
            return None
        if not short:
            return None
        # Behind the function's own calls, on the worker with the fewest.
        best, least = None, self.depth
        for link in queue.links:
            if 0 <= link.level < least and link.usable:
                best, least = link, link.level
        return best


def _nothing() -> None:
    """Do nothing: there is no watchdog."""


def _nobody() -> str:
    """Return an empty string: nothing looks up who holds the database."""
    return ""


class Pool:
    """Until the first `serve` all calls are held."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.tallies: dict[str, Tally] = {}
        self.refusals: dict[str, int] = {}
        """By code: calls to names that aren't functions of the release."""
        self.links: set[WorkerLink] = set()
        self.deaths = 0
        """Workers that died since the start."""
        self.release: frames.LocalRelease | None = None
        """The release that is served; None before the first `serve`."""
        self.serial = 0
        """Serial number of the set of modules that is served."""
        self.functions: dict[str, ServedFunction] = {}
        """The functions of the release, by name, and by `tick_key` for calls that ticks make."""
        self.queues = Queues(settings)
        self.hold = Hold.ALL
        self.applying = False
        """Whether a release is being applied, during which calls that would write must not wait in their workers."""
        self.pressure = Pressure.NONE
        """What calls may do at the write-ahead log's present length."""
        self.held_by = ""
        """The process outside the node that has held the database for a while, in words; empty for none."""
        self.find_holder: Callable[[], str] = _nobody
        """Looks up which process holds the database right now; returns it as in `held_by`."""
        self.find_writer: Callable[[], str] = _nobody
        """Looks up which of the node's own processes holds the writer lock right now, in words."""
        self.worker_deaths = WorkerDeaths(settings, self._opened, self.holder)
        self.watch: Callable[[], None] = _nothing
        """Called when something has a time limit: a waiting call, a running job."""
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
        """Accept a call. It always gets an outcome."""
        call.began = time.monotonic()
        served = self.functions.get(call.key)
        if served is None:
            if self.hold is Hold.ALL:
                self._wait(call, self.queues.of(call.key))
            else:
                self.refuse(call, outcomes.unknown(call.name))
            return
        if not served.breaker.closed and self._cut_off(call, served):
            return
        queue = self.queues.of(call.key)
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
        """Note that the client has disconnected: the call leaves its queue, or runs on until others need its worker."""
        if call.gone or call.ended:
            return
        call.gone = True
        if not call.id and self.queues.drop(self.queues.of(call.key), call):
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
                # The call needs an idle worker: others that go first now might do so forever.
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
        if call.generation and (self.release is None or self.release.generation != call.generation):
            self.refuse(call, outcomes.release_changing("The node's release changed while the tick waited"))
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
        """Note that a worker's jobs or abilities have changed."""
        self._placement.place(link, self.serial)
        self.watch()

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """End a call that waits or was about to wait."""
        if self.held_by and refusal.code in ("queue_full", "queue_timeout"):
            # The workers wait for that process.
            refusal = outcomes.database_held(self.held_by, "Calls wait for it.")
        served = self.functions.get(call.key)
        if served is None and call.attempts:
            served = call.served
        if served is None:
            self.refusals[refusal.code] = self.refusals.get(refusal.code, 0) + 1
        else:
            served.settle(call, refusal, time.monotonic())
        call.end(refusal)

    def holder(self) -> str:
        """Return which process outside the node holds the database, in words; empty if none does."""
        return self.held_by or self.find_holder()

    def named(self, code: str, message: str) -> str:
        """Return an error's message; if the error is a locked database, with the process that holds it."""
        by = self.holder() if code == outcomes.HELD else ""
        return f"{message} It is held by {by}." if by else message

    def _cut_off(self, call: Call, served: ServedFunction) -> bool:
        """Refuse the call if the function's breaker is open; return whether it was refused."""
        left = served.breaker.left(call, clock.monotonic())
        if left:
            self.refuse(call, outcomes.cut_off(call.name, left))
        return left > 0

    def _opened(self, served: ServedFunction) -> None:
        """Refuse the waiting calls of a function whose breaker was opened by a worker's death."""
        queue = self.queues.of(served.function.name)
        if queue.served is not None and queue.served.breaker is served.breaker:
            self.again(self.queues.clear(queue))

    # What links tell: `worker_link.Owner`

    def freed(self, link: WorkerLink, job: Job, *, stale: bool, held: bool) -> None:
        """Take the next call for a worker that has done its first job."""
        self._placement.place(link, self.serial)
        if isinstance(job, Call):
            self.queues.of(job.key).left(link)
        if self.queues.turns:
            self.feed()
        if stale and isinstance(job, Call):
            self._stale(job)
        elif held and isinstance(job, Call):
            self._held(job)
        self.changed()

    def requeue(self, link: WorkerLink, calls: list[Call]) -> None:
        """Put calls that were taken back from a worker back into their queues."""
        for call in calls:
            self.queues.of(call.key).left(link)
            # Nothing happened to the call that may end.
            call.attempts -= 1
        self._placement.place(link, self.serial)
        if calls:
            self.again(calls)
            self.changed()

    def lost(self, link: WorkerLink, running: Call | None, waiting: list[Call], seen: progress_page.Seen) -> None:
        """Forget a worker that has died; settle the call that it ran, and requeue those that waited in it."""
        self.links.discard(link)
        self.deaths += 1
        self._placement.place(link, self.serial)
        for call in waiting:
            self.queues.of(call.key).left(link)
        if running is not None:
            self.queues.of(running.key).left(link)
        self.worker_deaths.add(link, running, seen, idle=not waiting)
        self.again(waiting)
        self.changed()

    def _stale(self, call: Call) -> None:
        """Dispatch a call again that did nothing in the libsql file because the file holds another release."""
        if call.sent:
            self.refuse(call, outcomes.release_changed(call.name))
            return
        if self.hold is Hold.COMMIT:
            # The release is in the file, and the front will hear of it any moment.
            self.hold = Hold.ALL
        # The call has run: its waiting time before that doesn't count.
        call.deadline = 0.0
        if self.holds(call.served) or self.functions.get(call.key) is not call.served:
            # Once the front knows of the release, or at once, if it has heard of it since.
            self.again([call])
        else:
            # The file is ahead of the front for as long as the news of a commit takes to arrive here.
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
            served = self.functions.get(call.key)
            if call.gone:
                self.refuse(call, outcomes.client_gone())
            elif served is None and self.hold is not Hold.ALL:
                self.refuse(call, outcomes.unknown(call.name))
            elif call.attempts >= ATTEMPTS:
                text = "The node's release or its workers changed again and again while the call waited"
                self.refuse(call, outcomes.release_changing(text))
            elif served is None or served.breaker.closed or not self._cut_off(call, served):
                call.deadline = call.deadline or clock.monotonic() + self.settings.queue_wait
                self.queues.put_back(self.queues.of(call.key), call)
        self.feed()

    # Releases

    def release_number(self) -> int | None:
        """Return the number of the release being served."""
        return None if self.release is None else self.release.number

    def serve(self, serial: int, release: frames.LocalRelease) -> None:
        """Dispatch to these modules from now on, in the workers that have loaded them."""
        self.serial, self.release = serial, release
        self.functions = self.queues.serve(release, self.tallies)
        for link in self.links:
            self._placement.place(link, serial)
        self._refuse_unknown()
        self.feed()

    def serve_nothing(self) -> None:
        """Dispatch no call from now on: the database has no release."""
        self.serial, self.release = 0, None
        self.functions = self.queues.serve(frames.LocalRelease("", 0, 0, 0, []), self.tallies)
        for link in self.links:
            self._placement.place(link, 0)
        self._refuse_unknown()

    def holds(self, served: ServedFunction | None) -> bool:
        """Return whether calls of a function stay in their queue."""
        if served is None or self.hold is Hold.ALL:
            return self.hold is Hold.ALL
        return self.pressure is Pressure.WAIT and served.function.manifest.sql != "none"

    def hold_writes(self, limit: float) -> None:
        """Hold calls that would write while a release is prepared, for `limit` seconds at most. Calls that only read go
        on, and so do those that hold the writer lock or wait for it."""
        self.hold = Hold.WRITES
        self.applying = True
        self._held_since = clock.monotonic()
        self._held_until = self._held_since + limit
        for link in self.links:
            link.set_applying(True)

    @property
    def hold_left(self) -> int:
        """Seconds for which writes will still be held: an estimate, as long as they have been held, up to the limit."""
        now = clock.monotonic()
        return max(1, math.ceil(min(now - self._held_since, self._held_until - now)))

    def hold_at_commit(self) -> None:
        """Hold all calls as well once one finds the release in the file: it is about to be committed."""
        if self.hold is Hold.WRITES:
            self.hold = Hold.COMMIT

    def hold_all(self) -> None:
        """Keep all new calls in their queues."""
        self.hold = Hold.ALL

    def let_go(self) -> None:
        """Dispatch the held calls."""
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
        """Wake those that wait for a change: a worker replied, was lost, or is ready for calls."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def change(self) -> Awaitable[object]:
        """Return an awaitable for the next `changed`. (It isn't a coroutine of this module, which may be compiled.)"""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed.wait()

    def close(self) -> None:
        """Refuse all waiting calls."""
        for queue in list(self.queues.turns):
            for call in self.queues.clear(queue):
                self.refuse(call, refused("node_stopping", "The node is being stopped.", 1))
        for call in self.queues.let_go():
            self.refuse(call, refused("node_stopping", "The node is being stopped.", 1))
        self.worker_deaths.close()
