"""Queues are served in turn; which worker a call gets depends on its function alone."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.guest_log import GuestLog
from edge_runtime.dispatch.pool import QUICK, FunctionQueue, Placement, Queues
from edge_runtime.dispatch.served_functions import Tally
from edge_runtime.dispatch.worker_link import Hooks, WorkerLink
from edge_runtime.ipc import frames, progress_page
from tests.support.pool_settings import pool_settings

NAMES = ("a", "b", "c", "d")


def call(name: str = "a") -> Call:
    return Call(name, "GET", "", b"", [], "", b"", lambda outcome: None)


class QueuesMachine(RuleBasedStateMachine):
    """Against a list of calls for each function."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = Queues(pool_settings(4))
        self.model: dict[str, list[Call]] = {name: [] for name in NAMES}

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        made = call(name)
        self.queues.add(self.queues.of(name), made)
        self.model[name].append(made)

    @rule(name=st.sampled_from(NAMES))
    def put_back(self, name: str) -> None:
        made = call(name)
        self.queues.put_back(self.queues.of(name), made)
        self.model[name].insert(0, made)

    @rule(turn=st.integers(0, 3))
    def take(self, turn: int) -> None:
        if turn < len(self.queues.turns):
            name = self.queues.turns[turn].name
            others = [function_queue.name for function_queue in self.queues.turns if function_queue.name != name]
            assert self.queues.take(turn) is self.model[name].pop(0)
            after = [function_queue.name for function_queue in self.queues.turns]
            assert after == ([*others, name] if self.model[name] else others)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def drop(self, name: str, data: st.DataObject) -> None:
        assert not self.queues.drop(self.queues.of(name), call(name))
        if self.model[name]:
            gone = data.draw(st.sampled_from(self.model[name]))
            self.model[name].remove(gone)
            assert self.queues.drop(self.queues.of(name), gone)

    @rule(name=st.sampled_from(NAMES))
    def clear(self, name: str) -> None:
        assert self.queues.clear(self.queues.of(name)) == self.model[name]
        self.model[name] = []

    @invariant()
    def the_same(self) -> None:
        assert {function_queue.name for function_queue in self.queues.turns} == {
            name for name in NAMES if self.model[name]
        }
        assert len({id(function_queue) for function_queue in self.queues.turns}) == len(self.queues.turns)
        assert self.queues.waiting == sum(map(len, self.model.values()))
        assert all(list(self.queues.of(name).calls) == self.model[name] for name in NAMES)


TestQueues = QueuesMachine.TestCase


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=60))
def test_no_queue_is_served_twice_before_another_that_waits(names: list[str]) -> None:
    queues = Queues(pool_settings(4))
    for name in names:
        queues.add(queues.of(name), call(name))
    left = {name: names.count(name) for name in NAMES}
    served: deque[str] = deque(maxlen=len(NAMES))
    while queues.waiting:
        waiting = [name for name in NAMES if left[name]]
        name = queues.take(0).name
        left[name] -= 1
        # Whoever else waits has been served since this one was.
        since = list(served)[: list(served).index(name)] if name in served else list(served)
        assert name not in served or {n for n in waiting if n != name} <= set(since)
        served.appendleft(name)


def release(**manifests: Manifest) -> frames.LocalRelease:
    functions = [frames.LocalFunction(n, 1, n, m, manifest_digest(m)) for n, m in manifests.items()]
    return frames.LocalRelease("r", 1, 1, 0, functions)


def test_a_queue_has_its_manifests_limits_or_the_nodes() -> None:
    queues = Queues(pool_settings(4, concurrency=2, function_queue=7))
    targets = queues.serve(release(a=Manifest(), b=Manifest(concurrency=9, queue=3)), {})
    assert [(q.concurrency, q.capacity) for q in map(queues.of, targets)] == [(2, 7), (4, 3)]
    # A function that is unknown as yet may wait too.
    assert queues.of("c").capacity == 7


def test_a_version_keeps_its_breaker_and_a_function_its_queue() -> None:
    queues, tallies = Queues(pool_settings(4)), {}
    first = queues.serve(release(a=Manifest(), b=Manifest()), tallies)
    queue = queues.of("b")
    assert queue.served is first["b"]
    again = queues.serve(release(a=Manifest(), b=Manifest(time_limit_ms=99)), tallies)
    assert again["a"].breaker is first["a"].breaker
    assert again["b"].breaker is not first["b"].breaker
    assert queues.of("b") is queue
    assert queue.served is again["b"]
    assert again["b"].tally is first["b"].tally
    waiting = call("b")
    queues.add(queues.of("b"), waiting)
    queues.serve(release(a=Manifest()), tallies)
    assert queues.of("b").served is None
    assert queues.clear(queues.of("b")) == [waiting]


def test_no_function_takes_the_places_of_others_where_writes_are_held() -> None:
    queues = Queues(pool_settings(4, function_queue=2))
    queues.serve(release(a=Manifest(), b=Manifest(queue=1)), {})
    held = [queues.hold(call(name), 4) for name in ("a", "a", "a", "b", "b", "c", "d")]
    # Each as many as may wait for it; all together as many as there are places.
    assert held == [True, True, False, True, False, True, False]
    assert queues.waiting == len(queues.held) == 4


class Workers:
    """Makes links as they are with so many jobs. Nobody is at the other end: what they can do isn't asked of them."""

    def __init__(self) -> None:
        self.sock, self.other = socket.socketpair()
        self._page = progress_page.open_page(progress_page.create())

    def __call__(self, jobs: int = 0, **more: Any) -> WorkerLink:
        gone = asyncio.get_running_loop().create_future()
        child: Any = SimpleNamespace(slot=0, pid=1, gone=gone, sock=self.sock)
        owner: Any = None
        made = WorkerLink(child, self._page, owner, Hooks(GuestLog()))
        made.serials, made.usable, made.spare = {1}, True, False
        give(made, jobs)
        for name, value in more.items():
            setattr(made, name, value)
        return made


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[Workers]:
    made = Workers()
    yield made
    asyncio.get_running_loop().remove_reader(made.sock.fileno())
    made.sock.close()
    made.other.close()


def give(link: WorkerLink, jobs: int) -> None:
    """Only how many there are counts."""
    link.jobs = deque([None] * jobs)  # type: ignore[list-item]


def room(*workers: WorkerLink) -> Placement:
    made = Placement(depth=4)
    for one in workers:
        one.level = -1
        made.place(one, 1)
    return made


def function_queue(concurrency: int = 2, *links: WorkerLink) -> FunctionQueue:
    return FunctionQueue("a", concurrency, links=dict.fromkeys(links, 1))


def pick(placement: Placement, queue: FunctionQueue, *, short: bool) -> WorkerLink | None:
    return placement.pick(queue, spreads=queue.spreads, short=short)


async def test_an_idle_worker_comes_first_then_the_least_loaded_for_what_is_short(worker: Workers) -> None:
    idle, one, three = worker(), worker(1), worker(3)
    assert pick(room(one, idle, three), function_queue(), short=True) is idle
    assert pick(room(one, idle, three), function_queue(), short=False) is idle
    assert pick(room(three, one), function_queue(), short=True) is one
    assert pick(room(three, one), function_queue(), short=False) is None


async def test_at_its_concurrency_a_function_goes_behind_its_own_calls(worker: Workers) -> None:
    first, second, other, idle = worker(3), worker(2), worker(1), worker()
    made = room(first, second, other, idle)
    assert pick(made, function_queue(2, first, second), short=True) is second
    assert pick(made, function_queue(2, first, second), short=False) is None
    full = worker(4)
    assert pick(room(full, idle), function_queue(1, full), short=True) is None
    long = worker(1, longs=1)
    assert pick(room(long, idle), function_queue(1, long), short=True) is None


async def test_a_quick_function_keeps_to_few_workers_but_for_those_that_a_long_call_has(worker: Workers) -> None:
    first, idle = worker(1), worker()
    quick = function_queue(3, first)
    tallies = {"a": Tally("a", recent=QUICK / 2)}
    quick.served, quick.few = Queues(pool_settings(4)).serve(release(a=Manifest()), tallies)["a"], 1
    assert pick(room(first, idle), quick, short=True) is first
    assert pick(room(worker(1), idle), function_queue(3, first), short=True) is idle
    first.longs = 1
    assert pick(room(first, idle), quick, short=True) is idle


@pytest.mark.parametrize(
    "unfit",
    [
        {"usable": False},
        {"spare": True},
        {"serials": {2}},
        {"longs": 1},
        {"last": 50, "replied": 3},
        {"last": 2, "replied": 99},
    ],
)
async def test_a_worker_that_may_have_no_other_call(worker: Workers, unfit: dict[str, Any]) -> None:
    made = room(worker(**unfit))
    assert made.open == 0
    assert pick(made, function_queue(), short=True) is None


async def test_places_are_counted(worker: Workers) -> None:
    one = worker()
    made = room(one)
    for jobs, is_open in ((4, 0), (2, 1), (0, 1), (1, 1)):
        give(one, jobs)
        made.place(one, 1)
        assert made.open == is_open
    made.place(one, 2)
    assert made.open == 0


async def test_a_worker_that_was_killed_since_it_was_placed_is_never_picked(worker: Workers) -> None:
    idle, dead, one = worker(), worker(), worker(1)
    made = room(one, idle, dead)
    dead.usable = False
    assert made.open == 3
    assert pick(made, function_queue(), short=False) is idle
    assert made.open == 2
    idle.usable = one.usable = False
    assert pick(made, function_queue(), short=True) is None
    assert made.open == 0
    own = worker(1)
    made = room(own)
    own.usable = False
    assert pick(made, function_queue(1, own), short=True) is None
    made.place(own, 1)
    assert (made.open, own.level) == (0, -1)
