"""The pool's line: calls wait here, workers take them, and a release's flip holds what must wait.

An idle worker is given a call at once. A worker may have more than one only of functions whose recent calls were
short: a hand-over costs more than they do, but one that loops holds up those behind it. The order is first come, first
served. Everything happens in the loop's thread, and nothing waits here but `drained` and `change`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec

from . import frames, page
from .calls import Answer, Call, Job, Order, Refusal, Tally, Target, log_guest, targets, unknown
from .link import Link
from .processes import how
from .verdict import Limits, overdue, verdict

log = logging.getLogger("skerry.pool")

TICK: Final = 0.01
"""Seconds between two looks at what runs: how exact a time limit is."""
LOAD_LIMIT: Final = 60.0
STATUS_WAIT: Final = 1.0
"""Seconds that an answer waits for the zygote to say how its worker ended."""
STALE_PAUSE: Final = 0.02
ATTEMPTS: Final = 20
"""How often a call is dispatched, where each time it turns out that it can't have run."""

_decode_denied: Final = msgspec.json.Decoder(dict[str, int]).decode
_decode_failure: Final = msgspec.json.Decoder(frames.Failure).decode
_decode_fault: Final = msgspec.json.Decoder(frames.Fault).decode


class Hold(Enum):
    NOTHING = 0
    WRITES = 1
    """Calls of functions that may write."""
    ALL = 2


class Pool:
    """Until the first `serve` all calls are held."""

    def __init__(self, limits: Limits, seen: Callable[[int], page.Seen]) -> None:
        """`seen` reads a worker's slot of the page."""
        self.limits = limits
        self.tallies: dict[str, Tally] = {}
        self.refusals: dict[str, int] = {}
        """By code: calls of what is no function of the release."""
        self.links: set[Link] = set()
        self.deaths = 0
        """Workers that ended, since the start."""
        self.release: frames.LocalRelease | None = None
        """What is served; None before the first `serve`."""
        self.serial = 0
        """Of the modules that are served."""
        self.targets: dict[str, Target] = {}
        self.hold = Hold.ALL
        self.damaged: Callable[[str], None] = lambda sha256: None
        """Told the artifact of which a worker couldn't load the module any more."""
        self.http: Callable[[Link, Call, bytes], None] = lambda link, call, request: None
        self._seen = seen
        self._waiting: deque[Call] = deque()
        self._held: deque[Call] = deque()
        """Calls that may write, taken out of the line by Hold.WRITES."""
        self._free: list[deque[Link]] = [deque() for _ in range(limits.depth)]
        """Links by the number of jobs that they have, as far as they may have another one."""
        self._next = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None
        """Set at each reply, loss and birth, while someone waits."""
        self._burials: set[asyncio.Task[None]] = set()

    # Calls

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._waiting) + len(self._held)

    def submit(self, call: Call) -> None:
        """Take a call; its outcome comes, whatever happens."""
        if not self._waiting and self.hold is Hold.NOTHING:
            target = self.targets.get(call.name)
            if target is None:
                self._refuse(call, unknown(call.name))
                return
            link = self._pick(target)
            if link is not None:
                self._dispatch(call, target, link)
                return
        if self.waiting >= self.limits.queue:
            self._refuse(call, Refusal(503, "queue_full", "Too many calls are waiting on this node; try again.", 1))
            return
        call.deadline = time.monotonic() + self.limits.queue_wait
        self._waiting.append(call)
        self.feed()

    def leave(self, call: Call) -> None:
        """The client has gone: the call leaves the queue, or runs on until others need its worker."""
        if call.gone or call.ended:
            return
        call.gone = True
        for line in (self._waiting, self._held):
            if not call.id and call in line:
                line.remove(call)
                self._refuse(call, Refusal(499, "client_gone", "The client went away."))

    def feed(self) -> None:
        """Dispatch from the line as long as there is a worker for its first."""
        waiting = self._waiting
        while waiting and self.hold is not Hold.ALL:
            call = waiting[0]
            target = self.targets.get(call.name)
            if target is None:
                waiting.popleft()
                self._refuse(call, unknown(call.name))
            elif target.writes and self.hold is Hold.WRITES:
                waiting.popleft()
                self._held.append(call)
            else:
                link = self._pick(target)
                if link is None:
                    break
                waiting.popleft()
                self._dispatch(call, target, link)
        if self._ticking is None and (waiting or self._held):
            self._tick_soon()

    def _pick(self, target: Target) -> Link | None:
        free = self._free
        if free[0]:
            return free[0][0]
        if target.tally.short:
            for level in range(1, len(free)):
                if free[level]:
                    return free[level][0]
        return None

    def _dispatch(self, call: Call, target: Target, link: Link) -> None:
        call.target = target
        call.short = target.tally.short
        call.attempts += 1
        head = call.head(self.serial)
        if len(head) > frames.HEAD_LIMIT:
            self._refuse(call, Refusal(431, "head_too_large", "The request's headers are too large for a function."))
            return
        self.give(call, link)
        link.send(call.id, frames.CALL, head, call.body)

    def give(self, job: Job, link: Link) -> None:
        """Make a job the worker's last; its frame is the caller's to send, at once."""
        self._next = job.id = self._next % (page.NONE - 1) + 1
        if not link.jobs:
            link.since = time.monotonic()
        link.jobs.append(job)
        if not job.short:
            link.longs += 1
        self.place(link)
        if self._ticking is None:
            self._tick_soon()

    def place(self, link: Link) -> None:
        """Put a link where it belongs, after its jobs or what it can do have changed."""
        level = len(link.jobs)
        if level >= self.limits.depth or link.longs or not link.usable or self.serial not in link.serials:
            level = -1
        old = link.level
        if level != old:
            if old >= 0:
                self._free[old].remove(link)
            if level >= 0:
                self._free[level].append(link)
            link.level = level

    def _count(self, call: Call, code: str) -> None:
        target = call.target if call.attempts else self.targets.get(call.name)
        counts = self.refusals if target is None else target.tally.outcomes
        counts[code] = counts.get(code, 0) + 1

    def _refuse(self, call: Call, refusal: Refusal) -> None:
        self._count(call, refusal.code)
        call.end(refusal)

    # What workers say: `link.Owner`

    def replied(self, link: Link, request: int, kind: int, head: bytes, body: bytes) -> None:
        jobs = link.jobs
        if request == page.NONE:
            if kind == frames.FAILED:
                log.error("worker %d: %s", link.child.pid, _decode_failure(body).message)
            elif not link.ready.done():
                link.ready.set_result(None)
            return
        if not jobs or jobs[0].id != request:
            log.error("worker %d answered %d out of turn: it is ended", link.child.pid, request)
            self.kill(link, "out_of_turn")
            return
        if kind in (frames.LOG, frames.HTTP, frames.DENIED):
            self._meanwhile(link, jobs[0], kind, body)
            return
        job = jobs.popleft()
        if not job.short:
            link.longs -= 1
        now = time.monotonic()
        took, link.since = now - link.since, now
        self.place(link)
        if self._waiting:
            self.feed()
        if isinstance(job, Order):
            if not job.answer.done():
                job.answer.set_result(frames.Frame(request, kind, head, body))
        elif kind == frames.STALE:
            if self.hold is Hold.ALL:
                self._again([job])
            else:
                # The file is ahead of the front, by the moment that the end of a commit takes to get known here.
                asyncio.get_running_loop().call_later(STALE_PAUSE * job.attempts, self._again, [job])
        else:
            try:
                self._finish(job, took, kind, head, body)
            except Exception:
                log.exception("worker %d gave an answer that can't be read: it is ended", link.child.pid)
                self.kill(link, "unreadable")
                self._refuse(job, Refusal(502, "worker_crashed", "The function's process answered what can't be read."))
        self.changed()

    def _finish(self, call: Call, took: float, kind: int, head: bytes, body: bytes) -> None:
        target = call.target
        tally = target.tally
        tally.took(took)
        if kind >= frames.FIRST_STATUS:
            tally.outcomes["ok"] = tally.outcomes.get("ok", 0) + 1
            call.end(Answer(kind, head, body, target.release))
        else:
            fault = _decode_fault(body)
            if fault.log:
                log_guest(target, fault.log)
            if fault.code == "function_unloadable":
                self.damaged(target.function.sha256)
            self._refuse(call, Refusal(fault.status, fault.code, fault.message, int(fault.status == 503)))

    def _meanwhile(self, link: Link, job: Job, kind: int, body: bytes) -> None:
        assert isinstance(job, Call)  # noqa: S101
        if kind == frames.HTTP:
            self.http(link, job, body)
        elif kind == frames.LOG:
            log_guest(job.target, body.decode(errors="replace"))
        else:
            for what, times in _decode_denied(body).items():
                job.target.tally.deny(what, times)

    def lost(self, link: Link) -> None:
        seen = self._seen(link.child.slot)
        jobs, link.jobs, link.longs = list(link.jobs), deque(), 0
        self.links.discard(link)
        self.deaths += 1
        link.detach()
        self.place(link)
        waited: list[Call] = []
        for job in jobs:
            if isinstance(job, Order):
                if not job.answer.done():
                    job.answer.set_exception(frames.ChildGone("the worker ended"))
            elif job is jobs[0] and job.id == seen.request:
                burial = asyncio.get_running_loop().create_task(self._bury(link, job, seen))
                self._burials.add(burial)
                burial.add_done_callback(self._burials.discard)
            else:
                waited.append(job)
        self._again(waited)
        self.changed()

    async def _bury(self, link: Link, call: Call, seen: page.Seen) -> None:
        """Answer the call with which its worker ended."""
        try:
            async with asyncio.timeout(STATUS_WAIT):
                status = await asyncio.shield(link.child.exited)
        except TimeoutError:
            status = None
        refusal = verdict(call, seen.state, link.killed, status, self.limits)
        log.warning("worker %d %s: %s, %s", link.child.pid, how(status), call.name, refusal.code)
        self._refuse(call, refusal)

    def _again(self, calls: list[Call]) -> None:
        """Put calls that can't have run back to the front of the line."""
        for call in reversed(calls):
            call.id = 0
            if call.gone:
                self._refuse(call, Refusal(499, "client_gone", "The client went away."))
            elif call.attempts >= ATTEMPTS:
                text = "The node's release or its workers changed again and again while the call waited; try again."
                self._refuse(call, Refusal(503, "release_changing", text, 1))
            else:
                call.deadline = call.deadline or time.monotonic() + self.limits.queue_wait
                self._waiting.appendleft(call)
        self.feed()

    # Time

    def _tick_soon(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = time.monotonic()
        busy = False
        for link in self.links:
            if not link.jobs or link.killed:
                continue
            busy = True
            job = link.jobs[0]
            if isinstance(job, Order):
                why = "load_limit" if now - link.since > LOAD_LIMIT else ""
            else:
                others = bool(self._waiting) or len(link.jobs) > 1
                why = overdue(job, self._seen(link.child.slot), link.since, now, others, self.limits)
            if why:
                self.kill(link, why)
        for line in (self._waiting, self._held):
            while line and line[0].deadline < now:
                self._refuse(line.popleft(), self._too_late())
        if busy or self.waiting:
            self._tick_soon()

    def _too_late(self) -> Refusal:
        wait = self.limits.queue_wait
        if self.hold is Hold.NOTHING:
            return Refusal(503, "queue_timeout", f"The call waited {wait:g} s for a worker: the node is overloaded.", 1)
        text = f"The call waited {wait:g} s for a change of the node's release, which isn't done yet; try again."
        return Refusal(503, "release_changing", text, 1)

    def kill(self, link: Link, why: str) -> None:
        """End a worker."""
        link.kill(why)
        link.usable = False
        self.place(link)

    # Releases

    def serve(self, serial: int, release: frames.LocalRelease) -> None:
        """Dispatch to these modules from now on, in the workers that have loaded them."""
        self.serial, self.release = serial, release
        self.targets = targets(release, self.tallies)
        for link in self.links:
            self.place(link)
        self.feed()

    def hold_writes(self) -> None:
        """Keep new calls of functions that may write in the queue; running ones go on."""
        self.hold = Hold.WRITES

    def hold_all(self) -> None:
        self.hold = Hold.ALL

    def let_go(self) -> None:
        """Dispatch what was held, in its order."""
        self.hold = Hold.NOTHING
        # They had been taken from the front of the line, one after the other.
        self._waiting.extendleft(reversed(self._held))
        self._held.clear()
        self.feed()

    async def drained(self, *, writes_only: bool, limit: float) -> None:
        """Wait until no call runs (or none that may write). Error: TimeoutError after `limit` seconds."""
        async with asyncio.timeout(limit):
            while any(
                isinstance(job, Call) and (job.target.writes or not writes_only)
                for link in self.links
                for job in link.jobs
            ):
                await self.change()

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
        if self._ticking is not None:
            self._ticking.cancel()
        for line in (self._waiting, self._held):
            while line:
                self._refuse(line.popleft(), Refusal(503, "node_stopping", "The node is being stopped.", 1))
        for burial in self._burials:
            burial.cancel()
