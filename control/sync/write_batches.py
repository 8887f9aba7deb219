"""The second step of a poll: one transaction for many nodes. Requests that arrive during one form the next batch.

A fleet polls and reports all at once. A transaction for each request would conflict with the others until most are
refused; a transaction for a batch costs hardly more than one for a single node, and there are few of them.

A node's row may be locked by another transaction, which may be stuck. A batch that waited in vain for a locked row is
written again without the locked nodes, and so are later batches for a while; those nodes wait separately.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Generic, Protocol, TypeVar

from control.metrics import ControlMetrics
from control.problems import ProblemError
from control.protocol import faults
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.sync.fleet_cache import FleetCache
from control.sync.heartbeats import Heartbeats
from control.sync.node_state import NodeRow

BATCH = 100
"""Maximum nodes in one transaction."""
WAITING = 20_000
"""Maximum requests that wait for their batch."""
MOST_OF_NODE = 16
"""Of these, at most from one node: each may have an inventory of a megabyte, and a batch takes one per node."""
CAREFUL_FOR = 10.0
"""Seconds after meeting a locked row during which batches check for locked rows first."""
LOCKED_FOR = 2.0
"""Seconds for which the request of a node with a locked row is retried before it is refused."""
LOCKED_PAUSE = 0.25
"""Seconds between two tries."""

log = logging.getLogger("skerry.batches")


class NodeLocked(Enum):
    """Returned instead of an answer: another transaction has locked the node's row."""

    LOCKED = "locked"


class OfNode(Protocol):
    """A request from a node."""

    @property
    def node_id(self) -> str:
        """The id of the node."""


A = TypeVar("A", bound=OfNode)
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction has changed, for this replica's cache and counters."""

    now: datetime
    """When it was decided."""
    rows: Collection[NodeRow]
    """The nodes as they are stored now."""
    confirmed: Collection[str]
    """Ids of the nodes that were confirmed at their target by a sync."""
    opened: int
    """How many syncs were opened."""
    ended: Collection[str]
    """The status of each sync that ended, or `late`, as metrics count them."""


@dataclass(frozen=True, slots=True)
class Written(Generic[B]):
    """The answers of a batch, one for each request in order, and what was written for them."""

    answers: list[B | ProblemError | NodeLocked]
    committed: Committed


Write = Callable[[list[A], bool, Connection], Awaitable[Written[B]]]
"""Decides and writes a batch in one transaction: requests from different nodes, whether to be careful, the connection.

It raises `Locked` for a row that it waited for in vain. When careful, it waits for no node's row, and answers
`NodeLocked` for a node with a locked row.
"""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[A, B]):
    request: A
    future: "asyncio.Future[B | ProblemError]"
    locked_since: float | None = None
    """The clock's `monotonic` when the node's row was first found locked."""


class WriteBatches(Generic[A, B]):
    """Takes requests of type `A`, at most one per node in a batch, and answers each with a `B`."""

    def __init__(
        self,
        db: Database,
        fleet: FleetCache,
        heartbeats: Heartbeats,
        metrics: ControlMetrics,
        write: Write[A, B],
        *,
        fault: str,
        finish: Callable[[B], Awaitable[B]] | None = None,
    ) -> None:
        """`fault` names the fault points before and after COMMIT.

        `finish` completes an answer after COMMIT, in the task of the caller of `ask`: for work without a connection.
        """
        self._db = db
        self._fleet = fleet
        self._clock = fleet.clock
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._write = write
        self._fault = fault
        self._finish = finish
        self._waiting: list[_Waiting[A, B]] = []
        self._of_node: Counter[str] = Counter()
        self._wanted = asyncio.Event()
        self._locked: set[_Waiting[A, B]] = set()
        """Requests from nodes with locked rows, until they are retried."""
        self._careful_until = 0.0

    async def ask(self, request: A) -> B:
        """Return the answer to `request`. Raises: ProblemError, when it is refused or the database doesn't answer."""
        if len(self._waiting) >= WAITING:
            raise ProblemError("database_busy", f"{WAITING} nodes wait to be served; try again")
        if self._of_node[request.node_id] >= MOST_OF_NODE:
            text = f"{MOST_OF_NODE} requests of this node wait to be served already; ask again"
            raise ProblemError("too_many_acts", text, retry_after=1)
        waiting: _Waiting[A, B] = _Waiting(request, asyncio.get_running_loop().create_future())
        self._put(waiting)
        self._of_node[request.node_id] += 1
        try:
            answer = await waiting.future
        finally:
            self._of_node[request.node_id] -= 1
            if not self._of_node[request.node_id]:
                del self._of_node[request.node_id]
        if isinstance(answer, ProblemError):
            raise answer
        return answer if self._finish is None else await self._finish(answer)

    async def run(self) -> None:
        """Write batches until cancelled; then waiting requests are cancelled too."""
        try:
            while True:
                await self._wanted.wait()
                taken = self._take()
                if taken:
                    await self._answer(taken)
        finally:
            for waiting in (*self._waiting, *self._locked):
                waiting.future.cancel()

    def _put(self, waiting: _Waiting[A, B]) -> None:
        self._locked.discard(waiting)
        self._waiting.append(waiting)
        self._wanted.set()

    def _take(self) -> list[_Waiting[A, B]]:
        """Return the next batch: the first requests of at most `BATCH` nodes."""
        taken: list[_Waiting[A, B]] = []
        left: list[_Waiting[A, B]] = []
        nodes: set[str] = set()
        for index, waiting in enumerate(self._waiting):
            if len(taken) == BATCH:
                left += self._waiting[index:]
                break
            node = waiting.request.node_id
            if node in nodes:
                left.append(waiting)
            elif not waiting.future.done():
                nodes.add(node)
                taken.append(waiting)
        self._waiting = left
        if not left:
            self._wanted.clear()
        return taken

    async def _answer(self, taken: list[_Waiting[A, B]]) -> None:
        careful = self._clock.monotonic() < self._careful_until
        answers: list[B | ProblemError | NodeLocked]
        try:
            answers = await self._transact([waiting.request for waiting in taken], careful)
        except Locked as locked:
            self._careful_until = self._clock.monotonic() + CAREFUL_FOR
            if not careful:
                return await self._answer(taken)
            if len(taken) > 1:
                # The nodes' own rows aren't locked: find out which request needs the locked row.
                return await self._in_parts(taken, 1)
            answers = [locked]
        except ProblemError as problem:
            if problem.code == "body_too_large" and len(taken) > 1:
                # The database doesn't take messages this large: it would refuse the same again.
                return await self._in_parts(taken, (len(taken) + 1) // 2)
            answers = [problem] * len(taken)
        except asyncio.CancelledError:
            for waiting in taken:
                waiting.future.cancel()
            raise
        except Exception:
            if len(taken) > 1:
                # One node's request must not make the others fail.
                return await self._in_parts(taken, 1)
            log.exception("the request of node %s could not be answered", self._name(taken[0].request.node_id))
            answers = [ProblemError("internal", "this is a fault of control; its log has more")]
        for waiting, answer in zip(taken, answers, strict=True):
            if isinstance(answer, NodeLocked):
                self._hold(waiting)
            elif not waiting.future.done():
                waiting.future.set_result(answer)
        return None

    async def _transact(self, requests: list[A], careful: bool) -> list[B | ProblemError | NodeLocked]:
        """Write a batch, and after its COMMIT update the cache and the counters."""
        written = await self._db.transaction(functools.partial(self._write, requests, careful))
        faults.reach(f"{self._fault}.after")
        committed = written.committed
        for row in committed.rows:
            self._fleet.confirm(row)
            if row.failed_anew:
                name, code, why = self._name(row.id), row.error_code, row.error_message
                log.warning("node %s failed to reach %s: %s: %.500s", name, self._target(row.id), code, _line(why))
        for node_id in committed.confirmed:
            self._heartbeats.confirmed(node_id, committed.now)
        if committed.opened:
            self._metrics.sync("opened", committed.opened)
        for status in committed.ended:
            self._metrics.sync(status)
        return written.answers

    def _name(self, node_id: str) -> str:
        """Return the name of a node, or its id if this replica doesn't know it."""
        node = self._fleet.nodes.get(node_id)
        return node_id if node is None else node.name

    def _target(self, node_id: str) -> str:
        """Return the release that a node should run, as shown to people."""
        node = self._fleet.nodes.get(node_id)
        group = None if node is None else self._fleet.groups.get(node.group_id)
        if node is None or group is None:
            return "its target"
        return f"release {group.name}/{self._fleet.target(node).release_number}"

    async def _in_parts(self, taken: list[_Waiting[A, B]], size: int) -> None:
        """Answer a batch as several batches of at most `size` requests."""
        for start in range(0, len(taken), size):
            try:
                await self._answer(taken[start : start + size])
            except asyncio.CancelledError:
                for other in taken[start:]:
                    other.future.cancel()
                raise

    def _hold(self, waiting: _Waiting[A, B]) -> None:
        """Retry the request of a node with a locked row after a while, or refuse it."""
        self._careful_until = self._clock.monotonic() + CAREFUL_FOR
        if waiting.locked_since is None:
            waiting.locked_since = self._clock.monotonic()
        if waiting.future.done():
            return
        if self._clock.monotonic() - waiting.locked_since >= LOCKED_FOR:
            waiting.future.set_result(Locked(f"the row of node {self._name(waiting.request.node_id)}"))
        else:
            self._locked.add(waiting)
            asyncio.get_running_loop().call_later(LOCKED_PAUSE, self._put, waiting)


def _line(text: str) -> str:
    """Return text from a node as one line of the log."""
    return " ".join(text.split())
