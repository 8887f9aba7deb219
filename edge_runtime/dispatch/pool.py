"""The pool: calls wait in their function's line, workers take them, and a release's flip holds what must wait.

A function's calls have at most so many workers as its concurrency says, so that it can't take those of the others. An
idle worker is given a call at once. A worker may have more than one only of functions whose recent calls were short: a
hand-over costs more than they do. Those behind a call that turns out to be long are taken back (`claims`). Lines are
served in turn, each first come, first served. Everything happens in the loop's thread, and nothing waits here but
`change`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from edge_runtime.dispatch.call import Call, Job, Line, Order, Refusal, Tally, Target, cut_off, log_full, unknown
from edge_runtime.dispatch.placement import Room
from edge_runtime.dispatch.queues import Lines
from edge_runtime.dispatch.release_gate import Hold, stale
from edge_runtime.dispatch.replies import LOG_BURST, LOG_RATE, MEANWHILE, finish, meanwhile
from edge_runtime.dispatch.watchdog import Watch
from edge_runtime.dispatch.worker_deaths import Burials
from edge_runtime.dispatch.worker_link import Link
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.zygote_client import decode_failure
from edge_runtime.logs import Budget
from edge_runtime.settings import PoolLimits
from edge_runtime.wal import Pressure

log = logging.getLogger("skerry.pool")

ATTEMPTS: Final = 20
"""How often a call is dispatched, where each time it turns out that it can't have run."""


class Pool:
    """Until the first `serve` all calls are held."""

    def __init__(self, limits: PoolLimits, words: memoryview) -> None:
        """`words`: the page that the front and its workers share."""
        self.limits = limits
        self._words = words
        self.tallies: dict[str, Tally] = {}
        self.refusals: dict[str, int] = {}
        """By code: calls of what is no function of the release."""
        self.log = Budget(LOG_BURST, LOG_RATE)
        """What the calls of all functions may log."""
        self.links: set[Link] = set()
        self.deaths = 0
        """Workers that ended, since the start."""
        self.release: frames.LocalRelease | None = None
        """What is served; None before the first `serve`."""
        self.serial = 0
        """Of the modules that are served."""
        self.targets: dict[str, Target] = {}
        self.lines = Lines(limits)
        self.hold = Hold.ALL
        self.damaged: Callable[[str], None] = lambda sha256: None
        """Told the artifact of which a worker couldn't load the module any more."""
        self.http: Callable[[Link, Call, bytes], None] = lambda link, call, request: None
        """Told that the guest of a running call asks for an HTTP request; it must not raise."""
        self.pressure = Pressure.NONE
        self._room = Room(limits.depth)
        self._watch = Watch(self)
        self.burials = Burials(self)
        self._changed: asyncio.Event | None = None
        """Set at each reply, loss and birth, while someone waits."""

    # Calls

    @property
    def waiting(self) -> int:
        """Calls in the lines."""
        return self.lines.waiting

    def submit(self, call: Call) -> None:
        """Take a call; its outcome comes, whatever happens."""
        target = self.targets.get(call.name)
        if target is None:
            if self.hold is Hold.ALL:
                self._wait(call, self.lines.of(call.name))
            else:
                self.refuse(call, unknown(call.name))
            return
        if not target.breaker.closed and self._cut_off(call, target):
            return
        line = target.line
        if not self.lines.turns and self.hold is Hold.NOTHING and self.pressure is not Pressure.WAIT:
            link = self._room.pick(line, target.tally.short)
            if link is not None:
                self._dispatch(call, target, link)
            else:
                self._wait(call, line)
            return
        first = not line.calls
        self._wait(call, line)
        if first:
            self.feed()

    def seen(self, slot: int) -> progress_page.Seen:
        """How far the worker of a slot has come."""
        return progress_page.read(self._words, slot)

    def _wait(self, call: Call, line: Line) -> None:
        # Writing calls that a release holds leave room for those that go on.
        held = self.hold is not Hold.ALL and self.holds(line.target)
        if self.lines.waiting >= (self.limits.queue // 2 if held else self.limits.queue):
            self.refuse(call, Refusal(503, "queue_full", "Too many calls are waiting on this node; try again.", 1))
        elif len(line.calls) >= line.queue:
            text = f"Too many calls of {line.name} are waiting, {line.queue} of them; try again."
            self.refuse(call, Refusal(503, "queue_full", text, 1))
        else:
            call.deadline = time.monotonic() + self.limits.queue_wait
            self.lines.add(line, call)
            self._watch.soon()

    def leave(self, call: Call) -> None:
        """The client has gone: the call leaves its line, or runs on until others need its worker."""
        if call.gone or call.ended:
            return
        call.gone = True
        if not call.id and self.lines.drop(self.lines.of(call.name), call):
            self.refuse(call, Refusal(499, "client_gone", "The client went away."))
            self.feed()

    def feed(self) -> None:
        """Dispatch from the lines as long as there is a worker for one of them."""
        if self.hold is Hold.ALL:
            return
        turns, room, at = self.lines.turns, self._room, 0
        while at < len(turns) and room.open:
            line = turns[at]
            target = line.target
            if target is None or self.holds(target):
                at += 1
                continue
            link = room.pick(line, target.tally.short)
            if link is not None:
                self._dispatch(self.lines.take(at), target, link)
            elif line.spreads:
                # It needs an idle worker: who goes before it now might do so for ever.
                return
            else:
                at += 1

    def _dispatch(self, call: Call, target: Target, link: Link) -> None:
        call.target = target
        call.short = target.tally.short
        call.attempts += 1
        head = call.head(self.serial)
        if call.route and not target.has(call.route):
            text = "The node's release changed while the call waited, and with it the function's route; try again."
            self.refuse(call, Refusal(503, "release_changing", text, 1))
            return
        if target.writes and self.pressure is Pressure.REFUSE:
            self.refuse(call, log_full())
            return
        if len(head) > frames.HEAD_LIMIT:
            self.refuse(call, Refusal(431, "head_too_large", "The request's headers are too large for a function."))
            return
        links = target.line.links
        links[link] = links.get(link, 0) + 1
        self.give(call, link)
        link.claims.offer(call.id)
        link.send(call.id, frames.CALL, head, call.body)

    def give(self, job: Job, link: Link) -> None:
        """Make a job the worker's last; its frame is the caller's to send, at once."""
        link.last = job.id = link.last % (progress_page.NONE - 1) + 1
        if not link.jobs:
            link.since = time.monotonic()
        link.jobs.append(job)
        if not job.short:
            link.longs += 1
        self._room.place(link, self.serial)
        self._watch.soon()

    def place(self, link: Link) -> None:
        """What a worker can do has changed."""
        self._room.place(link, self.serial)

    def _count(self, call: Call, code: str) -> None:
        target = call.target if call.attempts else self.targets.get(call.name)
        counts = self.refusals if target is None else target.tally.outcomes
        counts[code] = counts.get(code, 0) + 1

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """End a call without an answer of its function's."""
        self._count(call, refusal.code)
        target = self.targets.get(call.name)
        if target is not None:
            target.breaker.untried(call)
        call.end(refusal)

    def _cut_off(self, call: Call, target: Target) -> bool:
        """Whether the function's breaker doesn't let a call go, which is refused then."""
        left = target.breaker.left(call, time.monotonic())
        if left:
            self.refuse(call, cut_off(call.name, left))
        return left > 0

    # What workers say: `worker_link.Owner`

    def replied(self, link: Link, request: int, kind: int, head: bytes, body: bytes | memoryview) -> None:
        jobs = link.jobs
        if request == progress_page.NONE:
            if kind == frames.FAILED:
                log.error("worker %d: %s", link.child.pid, decode_failure(body).message)
            elif not link.ready.done():
                link.ready.set_result(None)
            return
        if not jobs or jobs[0].id != request:
            log.error("worker %d answered %d out of turn: it is ended", link.child.pid, request)
            self.kill(link, "out_of_turn")
            return
        job = jobs[0]
        if kind in MEANWHILE and isinstance(job, Call):
            try:
                meanwhile(self, link, job, kind, bytes(body))
            except Exception:
                log.exception("worker %d said what can't be read: it is ended", link.child.pid)
                self.kill(link, "unreadable")
            return
        jobs.popleft()
        link.replied = request
        if not job.short:
            link.longs -= 1
        now = time.monotonic()
        took, link.since = now - link.since, now
        self._room.place(link, self.serial)
        if isinstance(job, Call):
            job.target.line.left(link)
        if self.lines.turns:
            self.feed()
        if isinstance(job, Order):
            if not job.answer.done():
                job.answer.set_result(frames.Frame(request, kind, head, bytes(body)))
        elif kind == frames.STALE:
            stale(self, job)
        else:
            try:
                finish(self, job, took, kind, head, body)
            except Exception:
                log.exception("worker %d gave an answer that can't be read: it is ended", link.child.pid)
                self.kill(link, "unreadable")
                self.refuse(job, Refusal(502, "worker_crashed", "The function's process answered what can't be read."))
        self.changed()

    def take_back(self, link: Link) -> None:
        """Take the calls that wait behind a worker's first one, and give it no others until that is done."""
        jobs = link.jobs
        if jobs[0].short:
            jobs[0].short = False
            link.longs += 1
        taken = [job for job in jobs if isinstance(job, Call) and job is not jobs[0] and link.claims.take(job.id)]
        if taken:
            link.jobs = deque(job for job in jobs if job not in taken)
            for call in taken:
                call.target.line.left(link)
                # Nothing happened to it that may end.
                call.attempts -= 1
        self._room.place(link, self.serial)
        if taken:
            self.again(taken)
            self.changed()

    def lost(self, link: Link) -> None:
        seen = self.seen(link.child.slot)
        jobs, link.jobs, link.longs = list(link.jobs), deque(), 0
        self.links.discard(link)
        self.deaths += 1
        link.detach()
        self._room.place(link, self.serial)
        waited: list[Call] = []
        for job in jobs:
            if isinstance(job, Order):
                job.crashed = job is jobs[0]
                if not job.answer.done():
                    job.answer.set_exception(frames.ChildGone("the worker ended"))
                continue
            job.target.line.left(link)
            if job is jobs[0] and job.id == seen.request:
                self.burials.add(link, job, seen)
            else:
                waited.append(job)
        self.again(waited)
        self.changed()

    def again(self, calls: list[Call]) -> None:
        """Put calls that can't have run back to the front of their lines."""
        for call in reversed(calls):
            call.id = 0
            target = self.targets.get(call.name)
            if call.gone:
                self.refuse(call, Refusal(499, "client_gone", "The client went away."))
            elif target is None and self.hold is not Hold.ALL:
                self.refuse(call, unknown(call.name))
            elif call.attempts >= ATTEMPTS:
                text = "The node's release or its workers changed again and again while the call waited; try again."
                self.refuse(call, Refusal(503, "release_changing", text, 1))
            elif target is None or target.breaker.closed or not self._cut_off(call, target):
                call.deadline = call.deadline or time.monotonic() + self.limits.queue_wait
                self.lines.put_back(self.lines.of(call.name), call)
        self.feed()

    def kill(self, link: Link, why: str) -> None:
        """End a worker."""
        link.kill(why)
        link.usable = False
        self._room.place(link, self.serial)

    # Releases

    def serve(self, serial: int, release: frames.LocalRelease) -> None:
        """Dispatch to these modules from now on, in the workers that have loaded them."""
        self.serial, self.release = serial, release
        self.targets = self.lines.serve(release, self.tallies)
        for link in self.links:
            self._room.place(link, serial)
        self._refuse_unknown()
        self.feed()

    def holds(self, target: Target | None) -> bool:
        """Whether calls of a function stay in their line."""
        if target is None or self.hold is Hold.ALL:
            return self.hold is Hold.ALL
        pressed = self.pressure is Pressure.WAIT and target.function.manifest.sql != "none"
        return pressed or (target.writes and self.hold is not Hold.NOTHING)

    def hold_writes(self) -> None:
        """Keep new calls of functions that may write in their lines, for a release that is prepared. Running ones go
        on, but for those that would have to wait for it."""
        self.hold = Hold.WRITES
        for link in tuple(self.links):
            progress_page.set_applying(self._words, link.child.slot, True)
            if any(isinstance(job, Call) and job.target.writes for job in islice(link.jobs, 1, None)):
                self.take_back(link)

    def hold_at_commit(self) -> None:
        """The release that was prepared is committed now: hold all calls, too, once one finds it in the file."""
        if self.hold is Hold.WRITES:
            self.hold = Hold.COMMIT

    def hold_all(self) -> None:
        self.hold = Hold.ALL

    def let_go(self) -> None:
        """Dispatch what was held."""
        self.hold = Hold.NOTHING
        for link in self.links:
            progress_page.set_applying(self._words, link.child.slot, False)
        self._refuse_unknown()
        self.feed()

    def _refuse_unknown(self) -> None:
        if self.hold is not Hold.ALL:
            for line in [line for line in self.lines.turns if line.target is None]:
                for call in self.lines.clear(line):
                    self.refuse(call, unknown(call.name))

    def changed(self) -> None:
        """A worker replied, was lost, or is fit for calls."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def change(self) -> None:
        """Wait for the next `changed`."""
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def close(self) -> None:
        """Refuse what waits, and watch no more."""
        self._watch.close()
        for line in list(self.lines.turns):
            for call in self.lines.clear(line):
                self.refuse(call, Refusal(503, "node_stopping", "The node is being stopped.", 1))
        self.burials.close()
