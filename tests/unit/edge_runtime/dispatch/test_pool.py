"""The pool against workers that are played: whatever happens, each call ends once and runs at most once."""

import asyncio
import contextlib
import socket
import time
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.protocol.manifest import HttpGrant, Manifest, manifest_digest
from edge_runtime import clock
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.guest_log import GuestLog
from edge_runtime.dispatch.outcomes import FOREIGN, TIME_LIMIT, Answer, Outcome, Refusal
from edge_runtime.dispatch.pool import Hold, Pool
from edge_runtime.dispatch.release_gate import settled
from edge_runtime.dispatch.time_watchdog import Watchdog
from edge_runtime.dispatch.worker_link import DEATHS, Hooks, WorkerLink
from edge_runtime.ipc import frames, log_lines, progress_page
from edge_runtime.ipc.claims import Claims
from tests.support.deadlines import deadline
from tests.support.draws import examples
from tests.support.pool_settings import pool_settings

WORKERS: Final = 3
MANIFESTS: Final = {
    "short": Manifest(concurrency=2),
    "one": Manifest(concurrency=1, queue=3),
    "writes": Manifest(concurrency=3, sql="write"),
}
SPREAD: Final = 0.0015
"""Seconds of calls that are short, and not so quick that they keep to few workers."""
ENDED: Final = {"worker_crashed", "time_limit", "circuit_open", "queue_full", "client_gone", "release_changing"}


class PlayedWorker:
    """A worker at the other end of a link's socket: what the pool sends is read when the worker is moved on."""

    def __init__(self, world: "World", slot: int) -> None:
        self.world = world
        self.slot = slot
        progress_page.clear(world.page, slot)
        self.mark, self.claims = progress_page.Mark(world.page, slot), Claims(world.page, slot)
        self.claims.clear()
        sock, self.other = socket.socketpair()
        exited = asyncio.get_running_loop().create_future()
        gone = asyncio.get_running_loop().create_future()
        self.child: Any = SimpleNamespace(
            slot=slot, pid=slot, exited=exited, gone=gone, sock=sock, kill=lambda: None, lives=lambda: False
        )
        self.link = WorkerLink(self.child, world.page, world.pool, Hooks(GuestLog()))
        self.link.serials = {1}
        self.link.usable, self.link.spare = True, False
        self.incoming = b""
        self.unread: deque[tuple[int, bytes]] = deque()
        self.running: tuple[int, bytes] | None = None
        for end in (sock, self.other):
            end.setblocking(False)

    def receive(self) -> None:
        """Take what the link has sent."""
        with contextlib.suppress(BlockingIOError):
            self.incoming += self.other.recv(1 << 20)
        while self.incoming:
            length, request, kind, head = frames.HEADER.unpack_from(self.incoming)
            assert kind == frames.CALL
            end = frames.HEADER_BYTES + length
            self.unread.append((request, self.incoming[frames.HEADER_BYTES + head : end]))
            self.incoming = self.incoming[end:]

    def die(self, why: str, status: int) -> None:
        """End by itself, or by the front for `why`."""
        if why:
            self.link.kill(why)
        self.link._lost()
        self.close_sockets()
        self.child.exited.set_result(status)

    def close_sockets(self) -> None:
        self.link.detach()
        self.child.sock.close()
        self.other.close()

    def give_back(self, kind: int) -> None:
        """Say of the call that runs that another release is in the file (STALE), or that it would write (HELD)."""
        if self.running is None or self.world.pool.hold is Hold.NOTHING:
            return
        (request, body), self.running = self.running, None
        self.world.starts[body] -= 1
        self.mark.end()
        self.link.receive(request, kind, b"", b"")

    def move(self) -> None:
        """Answer the call that runs, or come to the next one that is the worker's own."""
        if self.running is not None:
            (request, body), self.running = self.running, None
            self.mark.end()
            self.link.receive(request, 200, b"", body)
            return
        self.receive()
        while self.unread and self.running is None:
            request, body = self.unread.popleft()
            if self.claims.take(request):
                self.running = request, body
                self.mark.start(request)
                self.world.starts[body] += 1


class World:
    def __init__(self) -> None:
        self.page = progress_page.open_page(progress_page.create())
        limits = pool_settings(WORKERS, depth=4, queue_limit=12, function_queue=10)
        self.pool = Pool(limits)
        self.starts: Counter[bytes] = Counter()
        self.calls: list[Call] = []
        self.outcomes: dict[bytes, list[Outcome]] = {}
        self.workers = [PlayedWorker(self, slot) for slot in range(WORKERS)]
        for worker in self.workers:
            self.pool.links.add(worker.link)
        functions = [frames.LocalFunction(n, 1, n, m, manifest_digest(m)) for n, m in MANIFESTS.items()]
        self.pool.serve(1, frames.LocalRelease("r", 1, 1, 0, functions))
        self.pool.let_go()

    def submit(self, name: str) -> None:
        body = b"%d" % len(self.calls)
        self.outcomes[body] = []
        call = Call(name, "POST", "", b"", [], "", body, self.outcomes[body].append)
        self.calls.append(call)
        self.pool.submit(call)

    async def die(self, worker: PlayedWorker, why: str, status: int = 11) -> None:
        """A worker ends, by itself or by the front, and another one comes."""
        worker.die(why, status)
        for _ in range(5):
            await asyncio.sleep(0)
        new = self.workers[worker.slot] = PlayedWorker(self, worker.slot)
        self.pool.links.add(new.link)
        self.pool.place(new.link)
        self.pool.feed()

    def close(self) -> None:
        self.pool.close()
        for worker in self.workers:
            worker.close_sockets()

    def check(self) -> None:
        pool = self.pool
        queues = [pool.queues.of(name) for name in pool.functions]
        waiting = [*pool.queues.held, *(call for queue in queues for call in queue.calls)]
        given = [job for link in pool.links for job in link.jobs]
        assert pool.waiting == len(waiting) <= pool.settings.queue_limit + 4 * WORKERS
        assert len({id(call) for call in waiting + given}) == len(waiting) + len(given)
        for call in self.calls:
            ended = self.outcomes[call.body]
            assert len(ended) <= 1
            assert self.starts[call.body] <= 1
            # It has ended, or it is in one place.
            assert bool(ended) is not any(call is other for other in waiting + given)
        for queue in queues:
            has = Counter(
                link for link in pool.links for job in link.jobs if isinstance(job, Call) and job.name == queue.name
            )
            assert queue.links == has
            assert len(has) <= queue.concurrency
            assert bool(queue.calls) is (queue in pool.queues.turns)
            held = pool.hold is Hold.ALL
            idle = any(link.usable and not link.jobs for link in pool.links)
            # Nothing waits that could run.
            assert not (queue.calls and idle and not held and queue.spreads)
        for link in pool.links:
            assert link.longs == sum(not job.short for job in link.jobs)
            assert len(link.jobs) <= pool.settings.depth


ACTIONS: Final = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(sorted(MANIFESTS))),
    st.tuples(st.sampled_from(("move", "move", "move", "take_back", "die", "time_limit")), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("leave"), st.integers(0, 40)),
    st.tuples(st.just("short"), st.sampled_from((0.0001, 1.0))),
    st.tuples(st.just("hold"), st.sampled_from(("hold_writes", "hold_at_commit", "hold_all", "let_go", "let_go"))),
    st.tuples(st.sampled_from(("stale", "held")), st.integers(0, WORKERS - 1)),
    # Time passes by this alone.
    st.tuples(st.just("pass"), st.sampled_from((0.0005, 0.05, 2.0))),
)


async def play(actions: list[tuple[str, Any]]) -> None:
    world = World()
    with contextlib.closing(world), pytest.MonkeyPatch.context() as patch:
        now = time.monotonic()
        for module in (time, clock):
            patch.setattr(module, "monotonic", lambda: now)
        for what, which in actions:
            if what == "pass":
                now += which
            else:
                await act(world, what, which)
            world.check()
        world.pool.let_go()
        for _ in range(2 * len(world.calls) + 2 * WORKERS):
            for worker in world.workers:
                worker.move()
                world.check()
    for call in world.calls:
        (outcome,) = world.outcomes[call.body]
        if isinstance(outcome, Answer):
            assert outcome.body == call.body
            assert world.starts[call.body] == 1
        else:
            assert outcome.code in ENDED
            # Who is told that its process ended had begun, or was next each time; who is told to come again had not.
            began = world.starts[call.body] == 1 or call.deaths >= DEATHS
            assert began == (outcome.code in ("worker_crashed", "time_limit"))


async def act(world: World, what: str, which: Any) -> None:
    pool = world.pool
    if what == "submit":
        world.submit(which)
    elif what == "move":
        world.workers[which].move()
    elif what == "take_back":
        link = world.workers[which].link
        if link.jobs:
            link.take_back()
    elif what in ("die", "time_limit"):
        await world.die(world.workers[which], TIME_LIMIT if what == "time_limit" else "")
    elif what == "stale":
        worker = world.workers[which]
        call = worker.link.jobs[0] if worker.link.jobs else None
        # While a release is only prepared, no call finds another one.
        if call is not None and pool.hold is not Hold.WRITES:
            worker.give_back(frames.STALE)
    elif what == "held":
        worker = world.workers[which]
        call = worker.link.jobs[0] if worker.link.jobs else None
        if isinstance(call, Call) and call.served.writes:
            worker.give_back(frames.HELD)
    elif what == "leave":
        if which < len(world.calls):
            pool.leave(world.calls[which])
    elif what == "short":
        for tally in pool.tallies.values():
            tally.recent = which
        # As after the answer that has changed it.
        pool.feed()
    elif which != "hold_writes":
        getattr(pool, which)()
    elif pool.hold is Hold.NOTHING:
        pool.hold_writes(1.0)


@settings(max_examples=examples(50))
@given(st.lists(ACTIONS, min_size=5, max_size=80))
def test_whatever_happens(actions: list[tuple[str, Any]]) -> None:
    asyncio.run(play(actions))


async def test_a_pause_as_a_worker_is_given_a_call_counts_for_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was stopped before it set the first timer."""
    real, paused = time.monotonic, 0.0
    for module in (time, clock):
        monkeypatch.setattr(module, "monotonic", lambda: real() + paused)
    world = World()
    watchdog = Watchdog(world.pool)

    def watch() -> None:
        nonlocal paused
        paused = 20.0
        watchdog.soon()

    world.pool.watch = watch
    with contextlib.closing(world), contextlib.closing(watchdog):
        world.submit("one")
        due = watchdog._due
        async with deadline(60):
            # Until it has looked.
            while watchdog._due == due:
                await asyncio.sleep(0.001)
        assert [len(worker.link.jobs) for worker in world.workers].count(1) == 1
        assert not any(worker.link.killed for worker in world.workers)


@pytest.mark.parametrize("state", ["sending", "waiting", "writing", "committing"])
async def test_a_change_waits_for_a_call_behind_an_answer_that_is_not_read_yet(state: str) -> None:
    """The worker goes on with its next call before the front has read the answer of the one before."""
    world = World()
    with contextlib.closing(world):
        for tally in world.pool.tallies.values():
            tally.recent = 0.0001
        for _ in range(world.pool.functions["writes"].function.manifest.concurrency):
            world.submit("writes")
        worker = next(worker for worker in world.workers if len(worker.link.jobs) > 1)
        first, second = list(worker.link.jobs)[:2]
        worker.mark.start(second.id)
        getattr(worker.mark, state)()
        world.pool.hold_writes(60.0)
        settling = asyncio.ensure_future(settled(world.pool, 60.0))
        await asyncio.sleep(0)
        assert not settling.done()
        for job in (first, second):
            worker.mark.end()
            worker.link.receive(job.id, 200, b"", b"")
        async with deadline(60):
            await settling


async def test_no_call_that_comes_later_holds_a_change_up() -> None:
    """A worker would only have to say, call after call, that it holds the writer lock."""
    world = World()
    with contextlib.closing(world):
        first = running(world, "writes")
        first.mark.writing()
        world.pool.hold_writes(60.0)
        settling = asyncio.ensure_future(settled(world.pool, 60.0))
        await asyncio.sleep(0)
        world.submit("writes")
        (second,) = [worker for worker in world.workers if worker.link.jobs and worker is not first]
        second.move()
        second.mark.writing()
        world.pool.changed()
        await asyncio.sleep(0)
        assert not settling.done()
        first.move()
        async with deadline(60):
            await settling
        assert second.link.seen().state == progress_page.WRITING


def test_a_long_call_gets_a_worker_although_short_ones_never_end() -> None:
    """It needs an idle worker, and short calls may queue in busy ones: they must leave one."""

    async def main() -> None:
        world = World()
        tallies = world.pool.tallies
        for name, recent in (("short", SPREAD), ("writes", SPREAD), ("one", 1.0)):
            tallies[name].recent = recent
        for _ in range(8):
            world.submit("short")
            world.submit("writes")
        world.submit("one")
        (long,) = [call for call in world.calls if call.name == "one"]
        assert all(worker.link.jobs for worker in world.workers)
        for turn in range(60):
            for worker in world.workers:
                worker.move()
            for name in ("short", "writes"):
                tallies[name].recent = SPREAD
                while len(world.pool.queues.of(name).calls) < 2:
                    world.submit(name)
            if world.starts[long.body]:
                assert turn >= 1
                world.close()
                return
        raise AssertionError("it never got one")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "params", "status", "code"),
    [
        ([(b"x", b"a\nb: c")], [], 400, "request_unfit"),
        ([(b"x", b"y" * frames.HEAD_LIMIT)], [], 431, "head_too_large"),
        # A function gets it percent-encoded, as three times as many bytes.
        ([], [("id", "," * 22_000)], 431, "head_too_large"),
        ([], [("id", "," * 21_000)], 200, ""),
    ],
)
async def test_a_request_that_no_frame_can_have_is_refused(
    headers: list[tuple[bytes, bytes]], params: list[tuple[str, str]], status: int, code: str
) -> None:
    world = World()
    outcomes: list[Outcome] = []
    world.pool.submit(Call("one", "GET", "", b"", headers, "", b"", outcomes.append, params=params))
    for worker in world.workers:
        for _ in range(2):
            worker.move()
    (outcome,) = outcomes
    assert outcome.status == status
    assert (outcome.code if isinstance(outcome, Refusal) else "") == code
    assert not any(worker.link.jobs for worker in world.workers)
    world.close()


def running(world: World, name: str = "one") -> PlayedWorker:
    """The worker that has the world's only call, which is of this function, and has begun it."""
    world.submit(name)
    (worker,) = [worker for worker in world.workers if worker.link.jobs]
    worker.move()
    return worker


LOG: Final = (frames.LOG, b"", b"x")


@pytest.mark.parametrize(
    "said",
    [
        # Which request, counted from the one that it runs; None: it speaks of itself.
        pytest.param([(0, 600, b"", b"")], id="no status"),
        pytest.param([(0, frames.FAULT, b"", b"{}")], id="no fault"),
        pytest.param([(0, 200, b"a: b", b"")], id="no header line"),
        pytest.param([(0, 200, b"", b"x" * (8 * 2**20 + 1))], id="a body beyond its limit"),
        pytest.param([(0, frames.LOADED, b"", b"")], id="an order's answer"),
        pytest.param([(0, frames.DENIED, b"", b'{"made_up":1}')], id="denied what there isn't"),
        pytest.param([(0, frames.DENIED, b"", b"[")], id="denied what can't be read"),
        pytest.param([(0, *LOG), (0, *LOG)], id="two logs"),
        pytest.param([(0, frames.NEWLY_LOADED, b"", b"")] * 2, id="loaded twice"),
        pytest.param([(0, frames.LOG, b"", b"x" * (16 * 1024 + log_lines.LONGEST + 1))], id="a log beyond its limit"),
        pytest.param([(0, frames.HTTP, b"", b"")], id="HTTP that isn't granted"),
        pytest.param([(1, 200, b"", b"")], id="the next call"),
        pytest.param([(7, frames.STALE, b"", b"")], id="a call that there isn't"),
        pytest.param([(None, frames.READY, b"", b"")] * 2, id="ready twice"),
        pytest.param([(None, frames.FAILED, b"", b"[" * 100_000)] * 2, id="failed twice"),
        pytest.param([(None, frames.DONE, b"", b"")], id="done with nothing"),
    ],
)
async def test_a_worker_that_says_what_none_says_is_ended_and_its_call_with_it(said: list[Any]) -> None:
    world = World()
    worker = running(world)
    link, call = worker.link, world.calls[0]
    for which, kind, head, body in said:
        assert not link.killed
        link.receive(progress_page.NONE if which is None else call.id + which, kind, head, body)
    assert link.killed
    # Nothing counts any more that it says, and it is given no other call.
    worker.other.send(frames.pack(call.id, 200))
    assert not link._readable()
    assert world.outcomes[b"0"] == []
    assert world.pool.functions["one"].tally.denied == {}
    await world.die(worker, "")
    (outcome,) = world.outcomes[b"0"]
    assert isinstance(outcome, Refusal)
    assert (outcome.status, outcome.code) == (502, "worker_crashed")
    assert world.pool.functions["one"].tally.outcomes == {"worker_crashed": 1}
    # It is the function's fault.
    assert len(world.pool.functions["one"].breaker._deaths) == 1
    world.close()


async def test_a_call_that_waits_for_http_can_do_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    grant = Manifest(concurrency=1, http=HttpGrant(hosts=["a.example"]))
    monkeypatch.setitem(MANIFESTS, "one", grant)
    for answered in (False, True):
        world = World()
        worker = running(world)
        link, call = worker.link, world.calls[0]
        link.receive(call.id, frames.HTTP, b"", b"")
        if answered:
            link.send(call.id, frames.HTTP_ANSWER, b"", b"")
        link.receive(call.id, 204, b"", b"")
        assert bool(link.killed) is not answered
        world.close()
        world = World()
        worker = running(world)
        link, call = worker.link, world.calls[0]
        for _ in range(2):
            link.receive(call.id, frames.HTTP, b"", b"")
            if answered:
                link.send(call.id, frames.HTTP_ANSWER, b"", b"")
        assert bool(link.killed) is not answered
        world.close()


@pytest.mark.parametrize("claims", [True, False])
async def test_workers_that_end_before_a_call_are_ended_by_it_at_last(claims: bool) -> None:
    """Each says that it hadn't begun the call; it has taken it all the same where it `claims` it."""
    world = World()
    world.submit("one")
    for _ in range(DEATHS):
        (worker,) = [worker for worker in world.workers if worker.link.jobs]
        assert world.outcomes[b"0"] == []
        if claims:
            worker.receive()
            assert worker.claims.take(world.calls[0].id)
        await world.die(worker, "")
        if claims:
            break
    (outcome,) = world.outcomes[b"0"]
    assert isinstance(outcome, Refusal)
    assert outcome.code == "worker_crashed"
    assert world.pool.deaths == (1 if claims else DEATHS)
    assert len(world.pool.functions["one"].breaker._deaths) == 1
    world.close()


async def test_what_a_page_says_of_sql_counts_for_a_call_that_may_have_it() -> None:
    for name, believed in (("one", progress_page.RUNNING), ("writes", progress_page.COMMITTING)):
        world = World()
        worker = running(world, name)
        worker.mark.committing()
        assert worker.link.seen().state == believed
        world.close()


async def test_a_worker_that_begins_calls_behind_one_that_it_does_not_answer_is_ended() -> None:
    """It keeps them from others, which would run them meanwhile."""
    world = World()
    watchdog = Watchdog(world.pool)
    with contextlib.closing(world), contextlib.closing(watchdog):
        for tally in world.pool.tallies.values():
            tally.recent = 0.0001
        world.pool.watch = watchdog.soon
        for _ in range(3):
            world.submit("one")
        (worker,) = [worker for worker in world.workers if worker.link.jobs]
        first, *others = list(worker.link.jobs)
        assert others
        worker.receive()
        worker.mark.start(first.id)
        assert all(worker.claims.take(job.id) for job in others)
        async with deadline(60):
            while not worker.link.killed:
                await asyncio.sleep(0.01)
        assert worker.link.killed == FOREIGN
        assert [job.id for job in worker.link.jobs] == [first.id, *(job.id for job in others)]


@pytest.mark.parametrize(
    ("status", "foreign", "waits", "blamed"),
    [(11, False, False, 1), (9, False, False, 0), (9, True, False, 1), (11, False, True, 0)],
)
async def test_a_worker_that_ends_after_an_answer_was_ended_by_that_call(
    status: int, foreign: bool, waits: bool, blamed: int
) -> None:
    """By itself, from outside (a signal 9 that isn't the front's), or as it says what none says; unless it has been
    given another call, which may be who ended it."""
    world = World()
    worker = running(world, "one")
    worker.move()
    if foreign:
        worker.link.receive(progress_page.NONE, frames.DONE, b"", b"")
    if waits:
        world.submit("one")
        assert [job.id for job in worker.link.jobs] == [world.calls[1].id]
    await world.die(worker, "", status)
    assert isinstance(world.outcomes[b"0"][0], Answer)
    assert len(world.pool.functions["one"].breaker._deaths) == blamed
    world.close()
