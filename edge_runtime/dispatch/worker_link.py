"""The front's end of one worker's socket: the worker's jobs in their order, frames out, and what comes back for each.

Nothing here waits. The raw socket and not a transport: a transport's write to a dead worker throws away replies that
had already come.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from typing import Final, Protocol

from edge_runtime.dispatch import outcomes
from edge_runtime.dispatch.call import Body, Call, Job, Order
from edge_runtime.dispatch.hooks import Hooks
from edge_runtime.dispatch.incoming_frames import FrameTooLong, IncomingFrames
from edge_runtime.dispatch.outcomes import AnswerBody, refused, whole
from edge_runtime.ipc import call_times, death_word, frames, progress_page
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.zygote_client import Child, decode_failure

log = logging.getLogger("skerry.pool")

_SMALL: Final = 65_536
_AGAIN: Final = 0.02
"""Seconds between two looks at a dead worker's socket."""
_AT_ONCE: Final = 16
"""Pieces of what waits to be sent that one system call is given."""
_MEANWHILE: Final = frozenset(
    (frames.LOG, frames.HTTP, frames.DENIED, frames.NEWLY_LOADED, frames.DAMAGED, frames.TIMES)
)
"""Kinds of frames about a call that goes on."""


class Owner(Protocol):
    """What a link tells the pool. No method may raise: the socket's frames would be left half read."""

    def freed(self, link: "WorkerLink", job: Job, *, stale: bool, held: bool) -> None:
        """The worker has done its first job. A `stale` call must be dispatched again, on another release; one that is
        `held` when no release is being applied any more."""

    def requeue(self, link: "WorkerLink", calls: list[Call]) -> None:
        """These calls, which waited behind the worker's first job, were taken back from it; there may be none."""

    def lost(self, link: "WorkerLink", running: Call | None, waiting: list[Call], seen: progress_page.Seen) -> None:
        """The worker has ended. It was running one call, which had come as far as `seen` says; others waited."""


class WorkerLink:
    def __init__(self, child: Child, page: memoryview, owner: Owner, hooks: Hooks) -> None:
        """`page` is the memory that the front and its workers share."""
        self.child = child
        self.jobs: deque[Job] = deque()
        """What the worker has been given, the one that it works on first."""
        self.last = 0
        """Id of the job that was given last: they are counted, so that those that follow each other differ."""
        self.replied = 0
        """Id of the last job that was answered; the worker has read all frames up to it."""
        self.longs = 0
        """How many of the jobs aren't short."""
        self.level = -1
        """Where the placement has the link: by how many jobs, -1 where it may have no other one."""
        self.since = time.monotonic()
        """When the first job became the first."""
        self.serials: set[int] = set()
        """The sets of modules that the worker has loaded."""
        self.ordered: set[int] = set()
        """The sets that it was told to load and to keep: `serials`, and those that it loads after the calls it has."""
        self.loads = 0
        """Sets that it was told to load and hasn't loaded, with those that it needn't keep any more."""
        self.usable = False
        """The worker was ready and has loaded what it must, and isn't being ended."""
        self.spare = True
        """The worker is to take the place of one that is lost, and has no calls before."""
        self.preloaded: set[str] = set()
        """Names of the functions that the worker was told to load while it was a spare one."""
        self.killed = ""
        """Why the front killed the worker; empty while it hasn't."""
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
        self._out: deque[memoryview] = deque()
        self._held: list[bytes] | None = None
        """Frames that go out together, while those that came together are handled."""
        loop.add_reader(self._fileno, self._readable)
        child.exited.add_done_callback(self._exited)

    # Jobs

    def run(self, call: Call, head: bytes) -> None:
        """Give the worker a call, after the jobs that it has."""
        self._give(call)
        self._claims.offer(call.id)
        self.send(call.id, frames.CALL_TIMED if call.timed else frames.CALL, head, call.body)

    def order(self, kind: int, body: bytes) -> Order:
        """Ask something of the worker, after the jobs that it has."""
        order = Order(self._loop.create_future())
        if self.ended.done():
            order.answer.set_exception(frames.ChildGone("the worker ended"))
        else:
            self._give(order)
            self.send(order.id, kind, b"", body)
        return order

    def take_back(self) -> None:
        """Take the calls back that wait behind the first job, which counts as long from here on."""
        jobs = self.jobs
        if jobs[0].short:
            jobs[0].short = False
            self.longs += 1
        taken = [job for job in jobs if isinstance(job, Call) and job is not jobs[0] and self._claims.take(job.id)]
        if taken:
            self.jobs = deque(job for job in jobs if job not in taken)
        self._owner.requeue(self, taken)

    def seen(self) -> progress_page.Seen:
        """Read how far the worker has come."""
        return progress_page.read(self._page, self.child.slot)

    def set_applying(self, applying: bool) -> None:
        """Tell the worker whether a release is being applied."""
        progress_page.set_applying(self._page, self.child.slot, applying)

    def kill(self, why: str) -> None:
        """End the worker; the first reason counts."""
        self.usable = False
        if not self.killed:
            self.killed = why
            self.child.kill()

    def detach(self) -> None:
        """Read and write no more."""
        self.usable = False
        if not self.ended.done():
            self._loop.remove_reader(self._fileno)
            self._loop.remove_writer(self._fileno)
            self._out.clear()
            self.ended.set_result(None)

    def close(self) -> None:
        """Forget the worker, which ends."""
        self.detach()
        self.child.close()

    def _give(self, job: Job) -> None:
        """Make a job the worker's last; its frame must be sent at once."""
        self.last = job.id = self.last % (progress_page.NONE - 1) + 1
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append(job)
        if not job.short:
            self.longs += 1

    # What the worker says

    def receive(self, request: int, kind: int, head: bytes, body: AnswerBody) -> None:
        """Handle a frame of the worker."""
        jobs = self.jobs
        if request == progress_page.NONE:
            self._about_itself(kind, body)
            return
        if not jobs or jobs[0].id != request:
            log.error("worker %d answered request %d out of turn: it is killed", self.child.pid, request)
            self.kill("out_of_turn")
            return
        job = jobs[0]
        if kind in _MEANWHILE and isinstance(job, Call):
            self._meanwhile(job, kind, whole(body))
            return
        self._answered(job, kind, head, body)

    def _about_itself(self, kind: int, body: AnswerBody) -> None:
        """Handle a frame that is about no job: the worker is ready, or says why it can't be."""
        if kind != frames.FAILED:
            if not self.ready.done():
                self.ready.set_result(None)
            return
        try:
            log.error("worker %d: %s", self.child.pid, decode_failure(whole(body)).message)
        except Exception:
            self._unreadable("said what")

    def _answered(self, job: Job, kind: int, head: bytes, body: AnswerBody) -> None:
        """The worker has done its first job: end it."""
        self.jobs.popleft()
        self.replied = job.id
        if not job.short:
            self.longs -= 1
        now = time.monotonic()
        took, self.since = now - self.since, now
        # First, so that the next call goes out in the same write as the others that come together.
        self._owner.freed(self, job, stale=kind == frames.STALE, held=kind == frames.HELD)
        if isinstance(job, Order):
            if not job.answer.done():
                job.answer.set_result(frames.Frame(job.id, kind, head, whole(body)))
            return
        if kind in (frames.STALE, frames.HELD):
            return
        served = job.served
        try:
            outcome, fault = outcomes.of_frame(kind, head, body, served.release)
            served.settle(job, outcome, now, took)
            if fault is not None:
                outcome = self._hooks.fault(job, outcome, fault)
            job.end(outcome)
        except Exception:
            self._unreadable("gave an answer that")
            refusal = refused("worker_crashed", "The function's process answered what can't be read.")
            served.settle(job, refusal, now)
            job.end(refusal)

    def _meanwhile(self, call: Call, kind: int, body: bytes) -> None:
        """Handle a frame about a call that goes on."""
        try:
            if kind == frames.HTTP:
                # The request may take long: the calls behind this one needn't wait for the world.
                self.take_back()
                self._hooks.http(self, call, body)
            elif kind == frames.LOG:
                self._hooks.log.write(call, body)
            elif kind == frames.TIMES:
                call.times = call_times.decode(body)
            elif kind == frames.NEWLY_LOADED:
                self._hooks.loaded()
            elif kind == frames.DAMAGED:
                self._hooks.damaged(call.served.function.sha256)
            else:
                for denied, times in outcomes.denials(body).items():
                    call.served.tally.deny(denied, times)
        except Exception:
            self._unreadable("said what")

    def _unreadable(self, what: str) -> None:
        """End a worker that says what no honest one does; called while the error is handled."""
        log.exception("worker %d %s can't be read: it is ended", self.child.pid, what)
        self.kill("unreadable")

    def _lost(self) -> None:
        """The worker has ended, or can't be understood any more."""
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
                # What it wrote is lost with the worker, but for this copy.
                self._hooks.log.write(job, progress_page.log(self._page, self.child.slot), cut=True)
            else:
                waiting.append(job)
        self._owner.lost(self, running, waiting, seen)

    # The socket

    def send(self, request: int, kind: int, head: bytes, body: Body) -> None:
        """Send a frame, now or as the worker reads. Nothing is sent to a dead worker, which is about to be `lost`."""
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        frame = frames.HEADER.pack(len(head) + size, request, kind, len(head)) + head
        if size < _SMALL:
            frame += body if isinstance(body, bytes) else b"".join(body)
            if self._held is None:
                self._write(frame)
            else:
                self._held.append(frame)
            return
        if self._held:
            self._write(b"".join(self._held))
            self._held.clear()
        pieces = (body,) if isinstance(body, bytes) else body
        self._out += (memoryview(frame), *[memoryview(piece) for piece in pieces])
        self._loop.add_writer(self._fileno, self._writable)

    def _write(self, frame: bytes) -> None:
        if not self._out:
            try:
                sent = self._sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._out.append(memoryview(frame))
        self._loop.add_writer(self._fileno, self._writable)

    def _writable(self) -> None:
        # One write, and no more even if the worker makes room meanwhile: others wait for the loop.
        out = self._out
        try:
            sent = self._sock.sendmsg(list(itertools.islice(out, _AT_ONCE)))
        except BlockingIOError:
            return
        except OSError:
            out.clear()
            sent = 0
        while out and sent >= len(out[0]):
            sent -= len(out.popleft())
        if out:
            out[0] = out[0][sent:]
        else:
            self._loop.remove_writer(self._fileno)

    def died(self) -> None:
        """The worker's word has changed (`death_word`): it ends. Read what it still said, and see its end, before its
        socket shows it."""
        if self.ended.done():
            return
        if not death_word.ends(self.child.pid):
            log.error("worker %d says that it ends, and goes on: it is killed", self.child.pid)
            self.kill("unreadable")
            return
        while self._readable():
            pass
        if not self.ended.done():
            self._lost()

    def _exited(self, _: object) -> None:
        """The worker is dead: read what it still said and see its end, even where the loop misses that (as it sometimes
        does of a socket whose other end died with something unread)."""
        if not self.ended.done():
            self._readable()
            self._loop.call_later(_AGAIN, self._exited, None)

    def _readable(self) -> bool:
        """Handle what the worker has sent; return whether there may be more."""
        try:
            came = self._incoming.receive(self._sock)
        except BlockingIOError:
            return False
        except FrameTooLong:
            self._lost()
            self.child.kill()
            return False
        except OSError:
            came = None
        if came is None:
            self._lost()
            return False
        # Each answer makes room for another call: all go out in one system call, which wakes the worker once.
        held: list[bytes] = []
        self._held = held
        try:
            for request, kind, head, body in came:
                self.receive(request, kind, head, body)
                if self.ended.done():
                    return False
        finally:
            self._held = None
        if held:
            self._write(b"".join(held))
        return True
