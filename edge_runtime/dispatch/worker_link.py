"""The front's end of one worker's socket: the worker's jobs in order, the frames sent, and the answer to each.

Nothing here waits. It uses the raw socket, not a transport: a transport's write to a dead worker discards replies that
had already arrived.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from edge_runtime.dispatch import worker_socket
from edge_runtime.dispatch.call import Body, Call, Job, Order
from edge_runtime.dispatch.guest_log import GuestLog, fields_of, shown_with
from edge_runtime.dispatch.outcomes import FOREIGN, AnswerBody, Outcome, Refusal, whole
from edge_runtime.dispatch.served_functions import ServedFunction
from edge_runtime.dispatch.worker_socket import FrameUnfit, IncomingFrames, OutgoingFrames
from edge_runtime.ipc import frames, log_lines, progress_page
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.redaction import redact

log = logging.getLogger("skerry.pool")

_READS: Final = 64
"""How often a dead worker's socket is read: enough to empty it."""
DEATHS: Final = 3
"""Workers that may die just before they begin a call, until the call is blamed for it."""


class Owner(Protocol):
    """What a link tells the pool. No method may raise: frames in the socket would be left half read."""

    def freed(self, link: "WorkerLink", job: Job, *, stale: bool, held: bool) -> None:
        """Note that the worker has done its first job. A `stale` call must be dispatched again, on another release; a
        `held` call, once no release is being applied."""

    def requeue(self, link: "WorkerLink", calls: list[Call]) -> None:
        """Take these calls, which waited behind the worker's first job and were taken back; there may be none."""

    def lost(self, link: "WorkerLink", running: Call | None, waiting: list[Call], seen: progress_page.Seen) -> None:
        """Note that the worker's process has exited. It ran one call, which had come as far as `seen` says; others
        waited."""


def _nothing(*_: object) -> None:
    """Do nothing: no part of the node listens."""


def _unnamed(_: str, message: str) -> str:
    """Return the message unchanged: who holds the database is unknown."""
    return message


@dataclass
class Hooks:
    """Callbacks that handle what a running call asks for or runs into. None of them may raise."""

    log: GuestLog
    http: Callable[["WorkerLink", Call, bytes], None] = _nothing
    """Called when the call asks for an HTTP request, with its parcel."""
    damaged: Callable[[str], None] = _nothing
    """Called with an artifact's sha256 when a worker can no longer load its compiled code."""
    loaded: Callable[[], None] = _nothing
    """Called when a worker has loaded a function because it was called."""
    trapped: Callable[[Call, str, dict[str, Any]], None] = _nothing
    """Called with each call that trapped, its name in the log, and its fields."""
    named: Callable[[str, str], str] = _unnamed
    """Returns an error's message, by its code and its message, as in `Pool.named`."""

    def fault(self, call: Call, outcome: Outcome, fault: frames.Fault) -> Outcome:
        """Log a call's fault, and call the hooks for it; return the call's outcome."""
        message = redact(self.named(fault.code, fault.message))
        if message != fault.message and isinstance(outcome, Refusal):
            fault = msgspec.structs.replace(fault, message=message)
            outcome = outcome._replace(message=message)
        self.log.fault(call, fault)
        if fault.code == "guest_trap":
            self.trapped(call, shown_with(f"{call.name} {call.served.function.version}", call), fields_of(call))
        if fault.code == "function_unloadable":
            self.damaged(call.served.function.sha256)
        return outcome


class WorkerLink:
    def __init__(self, child: Child, page: memoryview, owner: Owner, hooks: Hooks) -> None:
        """`page` is the memory shared by the front and its workers."""
        self.child = child
        self.jobs: deque[Job] = deque()
        """The worker's jobs, the one that it works on first."""
        self.last = 0
        """Id of the last job given: ids are counted up, so that consecutive ones differ."""
        self.replied = 0
        """Id of the last job answered; the worker has read all frames up to it."""
        self.longs = 0
        """How many of the jobs aren't short."""
        self.level = -1
        """The link's place in the placement, a number of jobs; -1 if it may get no other job."""
        self.since = time.monotonic()
        """When the first job became the first."""
        self.serials: set[int] = set()
        """The sets of modules that the worker has loaded."""
        self.ordered: set[int] = set()
        """The sets that it was told to load and keep: `serials`, and those that it loads after the calls it has."""
        self.loads = 0
        """Sets that it was told to load and hasn't loaded, including those that it needn't keep any more."""
        self.usable = False
        """The worker is ready, has loaded its modules, and isn't being killed."""
        self.spare = True
        """The worker is to replace one that dies, and gets no calls before that."""
        self.rests = False
        """The worker gets no calls until the next check."""
        self.preloaded: set[str] = set()
        """Names of the functions that the worker was told to load while it was spare."""
        self.killed = ""
        """Why the front killed the worker; empty while it hasn't."""
        self.ran: ServedFunction | None = None
        """The function whose call the worker answered last."""
        self._listens = True
        """Frames from the worker are heeded."""
        self._spoke = False
        """The worker has reported that it is ready, or why it can't be."""
        self._said = set[int]()
        """Kinds of frames, among those that come once, that have come about the first job."""
        self._asked = False
        """An HTTP request of the first job is in progress."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._page = page
        self._claims = Claims(page, child.slot)
        self._owner = owner
        self._hooks = hooks
        self._loop = loop
        self._sock = child.sock
        self._fileno = child.sock.fileno()
        self._incoming = IncomingFrames()
        self._outgoing = OutgoingFrames(child.sock, loop)
        loop.add_reader(self._fileno, self._readable)
        child.gone.add_done_callback(self._gone)

    # Jobs

    def run(self, call: Call, head: bytes) -> None:
        """Queue a call in the worker, after the jobs that it has."""
        self._give(call)
        self._claims.offer(call.id)
        self._outgoing.send(call.id, _kind(call), head, call.body)

    def order(self, kind: int, body: bytes) -> Order:
        """Queue an order in the worker, after the jobs that it has."""
        order = Order(self._loop.create_future(), kind)
        if self.ended.done():
            order.answer.set_exception(frames.ChildGone("the worker ended"))
        else:
            self._give(order)
            self._outgoing.send(order.id, kind, b"", body)
        return order

    def take_back(self) -> bool:
        """Take back the calls that wait behind the first job, which counts as long from here on. Return whether the
        worker already owns one of them: then its answer to the first job is on the way."""
        jobs = self.jobs
        if jobs[0].short:
            jobs[0].short = False
            self.longs += 1
        behind = [job for job in jobs if isinstance(job, Call) and job is not jobs[0]]
        taken = [job for job in behind if self._claims.take(job.id)]
        if taken:
            self.jobs = deque(job for job in jobs if job not in taken)
        self._owner.requeue(self, taken)
        return len(taken) < len(behind)

    def end(self, what: str) -> None:
        """Kill a worker that says or does something that no honest worker does. From here on, its frames are
        ignored."""
        log.error("worker %d: %s: it is killed", self.child.pid, what)
        self._stop_listening()
        self.kill(FOREIGN)

    def seen(self) -> progress_page.Seen:
        """Return how far the worker says that it has come, limited to what is possible."""
        seen = progress_page.read(self._page, self.child.slot, self.since)
        if seen.state in progress_page.OF_SQL:
            for job in self.jobs:
                if job.id == seen.request and not (isinstance(job, Call) and _may(job, seen.state)):
                    return seen._replace(state=progress_page.RUNNING)
        return seen

    def set_applying(self, applying: bool) -> None:
        """Tell the worker whether a release is being applied."""
        progress_page.set_applying(self._page, self.child.slot, applying)

    def kill(self, why: str) -> None:
        """Kill the worker; the first reason counts."""
        self.usable = False
        if not self.killed:
            self.killed = why
            self.child.kill()

    def detach(self) -> None:
        """Stop reading and writing: the worker has exited."""
        self.usable = False
        self._stop_listening()
        if not self.ended.done():
            self.ended.set_result(None)

    def _stop_listening(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._fileno)
            self._outgoing.close()

    def close(self) -> None:
        """Close the worker's socket; the worker exits."""
        self.detach()
        self.child.close()

    def _give(self, job: Job) -> None:
        """Append a job to the worker's jobs; its frame must be sent at once."""
        self.last = job.id = self.last % (progress_page.NONE - 1) + 1
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append(job)
        if not job.short:
            self.longs += 1

    # What the worker says

    def receive(self, request: int, kind: int, head: bytes, body: AnswerBody) -> None:
        """Handle a frame from the worker."""
        jobs = self.jobs
        try:
            if request == progress_page.NONE:
                self._about_itself(kind, body)
            elif not jobs or jobs[0].id != request:
                raise FrameUnfit(f"it spoke of request {request} out of turn")
            else:
                job = jobs[0]
                if isinstance(job, Order):
                    self._carried_out(job, kind, head, whole(body))
                elif kind in worker_socket.MEANWHILE:
                    self._meanwhile(job, kind, whole(body))
                else:
                    self._answered(job, kind, head, body)
        except FrameUnfit as unfit:
            self.end(str(unfit))
        except Exception:
            log.exception("worker %d said what can't be handled", self.child.pid)
            self.end("it said what can't be handled")

    def _about_itself(self, kind: int, body: AnswerBody) -> None:
        """Handle a frame that isn't about a job: the worker is ready, or says why it can't be."""
        if self._spoke or kind not in (frames.READY, frames.FAILED):
            raise FrameUnfit(f"it said a frame of kind {kind} of itself")
        self._spoke = True
        if kind == frames.FAILED:
            log.error("worker %d: %s", self.child.pid, frames.decode_failure(whole(body)).message)
        elif not self.ready.done():
            self.ready.set_result(None)

    def _next(self, job: Job) -> float:
        """Note that the worker has done its first job; return the seconds that it took."""
        self.jobs.popleft()
        self.replied = job.id
        if not job.short:
            self.longs -= 1
        if self._said:
            self._said.clear()
        now = time.monotonic()
        took, self.since = now - self.since, now
        return took

    def _carried_out(self, order: Order, kind: int, head: bytes, body: bytes) -> None:
        """Handle the answer to the first job, an order."""
        worker_socket.check_order(order.kind, kind, body)
        self._next(order)
        self._owner.freed(self, order, stale=False, held=False)
        if not order.answer.done():
            order.answer.set_result(frames.Frame(order.id, kind, head, body))

    def _answered(self, call: Call, kind: int, head: bytes, body: AnswerBody) -> None:
        """Handle the answer to the first job, a call: end it."""
        if self._asked:
            raise FrameUnfit("it ended a call that waits for the answer of an HTTP request")
        self.ran = served = call.served
        stale, held = kind == frames.STALE, kind == frames.HELD
        if stale or held:
            self._next(call)
            self._owner.freed(self, call, stale=stale, held=held)
            return
        outcome, fault = worker_socket.outcome(kind, head, body, served.release, served.function.manifest, call.method)
        took = self._next(call)
        now = self.since
        # First, so that the next call is sent in the same write as others that arrive together.
        self._owner.freed(self, call, stale=False, held=False)
        served.settle(call, outcome, now, took)
        if fault is not None:
            outcome = self._hooks.fault(call, outcome, fault)
        call.end(outcome)

    def _meanwhile(self, call: Call, kind: int, body: bytes) -> None:
        """Handle a frame about a call that is still running."""
        manifest = call.served.function.manifest
        if kind == frames.HTTP:
            if self._asked or manifest.http is None:
                raise FrameUnfit("it asked for an HTTP request while another is under way, or that isn't granted")
            self._asked = True
            # The request may take long: the calls behind this one needn't wait for it.
            self.take_back()
            self._hooks.http(self, call, body)
            return
        if kind in self._said:
            raise FrameUnfit(f"it said a frame of kind {kind} of one call twice")
        self._said.add(kind)
        if kind == frames.LOG:
            if len(body) > manifest.log_bytes + log_lines.LONGEST:
                raise FrameUnfit(f"it logged {len(body)} bytes, of {manifest.log_bytes}")
            self._hooks.log.write(call, body)
        elif kind == frames.TIMES:
            call.times = worker_socket.times(body)
        elif kind == frames.NEWLY_LOADED:
            self._hooks.loaded()
        elif kind == frames.DAMAGED:
            self._hooks.damaged(call.served.function.sha256)
        else:
            for denied, times in worker_socket.denials(body).items():
                call.served.tally.deny(denied, times)

    def _lost(self) -> None:
        """Tell the pool, and those that await orders, that the worker's process has exited."""
        seen = self.seen()
        jobs, self.jobs, self.longs = list(self.jobs), deque(), 0
        self.detach()
        running: Call | None = None
        waiting: list[Call] = []
        for job in jobs:
            if isinstance(job, Order):
                job.crashed = job is jobs[0]
                if not job.answer.done():
                    job.answer.set_exception(frames.ChildGone("the worker ended"))
            elif job is jobs[0] and job.id == seen.request:
                running = job
                # Its output is lost with the worker, except for this copy.
                self._hooks.log.write(job, progress_page.log(self._page, self.child.slot), cut=True)
            elif job is jobs[0] and self._ended_by(job):
                running, seen = job, seen._replace(state=progress_page.RUNNING)
            else:
                waiting.append(job)
        self._owner.lost(self, running, waiting, seen)

    def _ended_by(self, call: Call) -> bool:
        """Return whether the worker died of its first call, although it says that it hadn't begun it.

        The front knows what it sent: a worker that claimed a call and reported nothing about it has begun it. The same
        holds if workers die again and again when the call is next.
        """
        if not self._claims.take(call.id):
            return True
        call.deaths += 1
        return call.deaths >= DEATHS

    # The socket

    def send(self, request: int, kind: int, head: bytes, body: Body) -> None:
        """Send the answer to something that the worker asked for."""
        if kind == frames.HTTP_ANSWER:
            self._asked = False
        self._outgoing.send(request, kind, head, body)

    def _gone(self, _: object) -> None:
        """Handle the frames that an exited worker left in its socket, and then its exit."""
        if self.ended.done():
            return
        for _try in range(_READS):
            if not self._readable():
                break
        self._lost()

    def _left(self) -> None:
        """Kill a worker from which nothing more comes: it is exiting, or has closed its socket."""
        self._stop_listening()
        if self.child.lives():
            self.end("it has closed its socket, and lives")
        self.usable = False
        self.child.kill()

    def _readable(self) -> bool:
        """Handle what the worker has sent; return whether there may be more."""
        if not self._listens:
            return False
        try:
            came = self._incoming.receive(self._sock)
        except BlockingIOError:
            return False
        except OSError:
            came = None
        if came is None:
            self._left()
            return False
        unfit = self._incoming.unfit
        if unfit is not None:
            # It gets no other call.
            self.usable = False
        # Each answer makes room for another call: all are sent in one system call, which wakes the worker once.
        self._outgoing.hold()
        try:
            for request, kind, head, body in came:
                self.receive(request, kind, head, body)
                if not self._is_heard():
                    return False
        finally:
            self._outgoing.let_go()
        if unfit is not None:
            self.end(str(unfit))
            return False
        return True

    def _is_heard(self) -> bool:
        """Return whether the worker is heard; for use where a frame may have changed it: mypy, and so compiled code,
        assumes that a call changes nothing."""
        return self._listens


def _kind(call: Call) -> int:
    """Return the kind of a call's frame."""
    if call.generation:
        return frames.CALL_TICK
    return frames.CALL_TIMED if call.timed else frames.CALL


def _may(call: Call, state: int) -> bool:
    """Return whether a call may be in a state of `progress_page.OF_SQL`, according to its function's grant."""
    grant = call.served.function.manifest.sql
    return grant == "write" or (grant == "read" and state not in (progress_page.COMMITTING, progress_page.SENT))
