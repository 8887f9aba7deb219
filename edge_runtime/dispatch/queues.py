"""The queues of a node: one for each function, served in turn, so that none waits for another's calls."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames
from edge_runtime.settings import EdgeSettings

# Not `Final`, whose value is built into what is compiled: tests change it.
QUICK = 0.001
"""Seconds: calls of a function whose recent ones took less keep to few workers."""


class Hold(Enum):
    """Which calls stay in their queues."""

    NOTHING = 0
    WRITES = 1
    """A release is being prepared: calls that would write."""
    COMMIT = 2
    """The release is being committed: the same ones, and all once a call finds the release in the file."""
    ALL = 3


@dataclass(slots=True, eq=False)
class FunctionQueue:
    """A function's calls on this node, whichever version they are for: those that wait, and who has the others."""

    name: str
    concurrency: int = 1
    """Workers that the function's calls may have at once."""
    few: int = 1
    """So many workers are enough while calls are quick: the front needs a processor too, and each waking costs."""
    capacity: int = 0
    """Calls that may wait."""
    served: ServedFunction | None = None
    """The function in the current release; None where the release doesn't have it."""
    calls: deque[Call] = field(default_factory=deque)
    """The calls that wait, the next one first."""
    links: dict[WorkerLink, int] = field(default_factory=dict)
    """The workers that have calls of the function, and how many."""

    def left(self, link: WorkerLink) -> None:
        """Count that a worker has one call less of the function."""
        if self.links[link] == 1:
            del self.links[link]
        else:
            self.links[link] -= 1

    @property
    def spreads(self) -> bool:
        """Whether the next call may have a worker that has none of the function's calls."""
        if len(self.links) >= self.concurrency:
            return False
        # While recent calls took no longer than the front's own work for them, few workers are enough.
        if self.served is None or not 0.0 < self.served.tally.recent < QUICK:
            return True
        return sum(not link.longs for link in self.links) < self.few


class Queues:
    """All queues of the node."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.turns: list[FunctionQueue] = []
        """The queues in which calls wait, the one whose turn it is first."""
        self.held: deque[Call] = deque()
        """Calls that would write, and wait for a release to be applied: in no queue of a function, so that others of
        the function go on. They may be half of all that wait, which leaves room for the others."""
        self.waiting = 0
        """Calls in all queues, and those that are held."""
        self._settings = settings
        self._queues: dict[str, FunctionQueue] = {}

    def of(self, name: str) -> FunctionQueue:
        """Return the queue of a function. The current release may not have the function: the next one may."""
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = FunctionQueue(name, capacity=self._settings.function_queue)
        return queue

    def serve(self, release: frames.LocalRelease, tallies: dict[str, Tally]) -> dict[str, ServedFunction]:
        """Return the functions of a new release by name, which their queues serve now; a version keeps its breaker."""
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
        for name, queue in list(self._queues.items()):
            if name not in made:
                queue.served = None
                if not queue.calls and not queue.links:
                    del self._queues[name]
        return made

    def add(self, queue: FunctionQueue, call: Call) -> None:
        """Put a call at the end of its queue."""
        if not queue.calls:
            self.turns.append(queue)
        queue.calls.append(call)
        self.waiting += 1

    def put_back(self, queue: FunctionQueue, call: Call) -> None:
        """Put a call at the front of its queue, whose turn comes next: the call has had one."""
        if not queue.calls:
            self.turns.insert(0, queue)
        queue.calls.appendleft(call)
        self.waiting += 1

    def hold(self, call: Call, most: int) -> bool:
        """Keep a call that would write, if fewer than `most` are kept; return whether it is."""
        queue = self.of(call.name)
        mine = sum(other.name == call.name for other in self.held)
        if len(self.held) >= most or mine >= queue.capacity:
            return False
        self.held.append(call)
        self.waiting += 1
        return True

    def let_go(self) -> list[Call]:
        """Take all calls that are held, in the order of their coming."""
        calls = list(self.held)
        self.held.clear()
        self.waiting -= len(calls)
        return calls

    def take(self, turn: int) -> Call:
        """Take the first call of the queue at this place in `turns`; the queue's next turn comes after all others'."""
        queue = self.turns.pop(turn)
        self.waiting -= 1
        call = queue.calls.popleft()
        if queue.calls:
            self.turns.append(queue)
        return call

    def drop(self, queue: FunctionQueue, call: Call) -> bool:
        """Take a call out of its queue, or of those that are held; return whether it was there."""
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
        """Take all calls out of a queue."""
        calls = list(queue.calls)
        if calls:
            self.turns.remove(queue)
            self.waiting -= len(calls)
            queue.calls.clear()
        return calls


def _same(before: frames.LocalFunction, now: frames.LocalFunction) -> bool:
    """Tell whether what is known of one function's calls holds for the other's."""
    return (before.sha256, before.manifest_digest) == (now.sha256, now.manifest_digest)
