"""What a replica holds in memory, so that a poll at target touches no database: targets, credentials, held polls.

The row of epochs says whether something was announced (a target, a move, a revocation). It is read with what it
announces in one transaction, four times a second and at once after a write of this replica, so every replica knows of
a change within half a second and wakes the polls that it concerns. A node is looked up when it first asks here.
"""

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from control.clock import Clock
from control.log_throttle import Outage
from control.metrics import Metrics
from control.problems import ProblemError
from control.storage import queries
from control.storage.batched_lookups import Lookups
from control.storage.database import Database
from control.sync.node_state import NodeRow
from control.wire import Poll

SQL = queries.load("fleet")

PERIOD = 0.25
STALE_AFTER = 5.0
"""Seconds without a reading after which polls are refused: a revocation could be unknown here."""
SLICE = 64
"""Held polls that are woken together; all at once would keep operators waiting."""
SLICE_PAUSE = 0.005
FORGET_EVERY = 600.0
"""Seconds between two rounds of forgetting; what ended is kept for one at least, as a look-up that began before may
still say that it hasn't."""

Changes = tuple[int, list[Any], list[Any], list[Any], list[Any]]
"""An epoch, and the rows of groups, nodes, credentials and operators that were announced up to it."""

log = logging.getLogger("skerry.fleet")


@dataclass(slots=True)
class Group:
    """A group and its target. A group that was announced again is another object, and so is a node."""

    id: str
    name: str
    release_id: str | None
    generation: int


@dataclass(slots=True)
class Node:
    id: str
    name: str
    group_id: str
    epoch: int
    """Of the last announcement that concerned this node alone."""
    generation: int
    """Of the node's last move; its target's is the larger of this and its group's."""
    confirmed_generation: int
    digest: str
    """Of what the node ran when it was last confirmed or reported."""
    capabilities_digest: str
    """Of the capabilities that are stored; '' where they were told without one."""
    removed: bool


@dataclass(slots=True)
class Credential:
    id: str
    node_id: str
    secret_hash: str
    expires_at: datetime | None
    revoked_at: datetime | None
    first_used_at: datetime | None
    replaces: str | None
    last: tuple[bytes, Poll] | None = None
    """The node's last poll, as it came and as it was read: at target, it sends the same bytes again and again."""

    def ended(self, now: datetime) -> bool:
        """Whether it is good for nothing any more."""
        return self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now)


@dataclass(slots=True)
class Operator:
    id: str
    name: str
    role: str
    secret_hash: str
    revoked_at: datetime | None


class Waiter:
    """A held poll. One a node: a newer poll of the same node takes its place."""

    __slots__ = ("_timeout", "credential_id", "replaced")

    def __init__(self, timeout: asyncio.Timeout, credential_id: str) -> None:
        self._timeout: asyncio.Timeout | None = timeout
        self.credential_id = credential_id
        self.replaced = False

    def wake(self) -> None:
        """Let it look at its target again."""
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)
        self._timeout = None

    def done(self) -> None:
        """Its time limit has been left: waking does nothing from now on."""
        self._timeout = None


class Fleet:
    """The memory of a replica. Everything but `run` and the look-ups is plain and quick."""

    def __init__(self, db: Database, clock: Clock, metrics: Metrics) -> None:
        self._db = db
        self._clock = clock
        self.loop = asyncio.get_running_loop()
        self.groups: dict[str, Group] = {}
        self.nodes: dict[str, Node] = {}
        self.credentials: dict[str, Credential] = {}
        self.verified: dict[bytes, str] = {}
        """Credentials' ids by the sha256 of Authorization headers that were right: a token is read once."""
        self.operators: dict[str, Operator] = {}
        self.waiters: dict[str, Waiter] = {}
        """Held polls by node."""
        self.closing = False
        self._epoch = -1
        self._read_at = -STALE_AFTER
        self._ended: set[str] = set()
        """Credentials and nodes that had ended at the last round of forgetting."""
        self._forgot_at = self.loop.time()
        self._reading = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._to_wake: list[str] = []
        self._waking: asyncio.Task[None] | None = None
        self._unknown = Lookups[None]("unknown credentials", self._find)
        metrics.watch(lambda: len(self.waiters), lambda: len(self.nodes), lambda: self.loop.time() - self._read_at)

    # Targets

    @property
    def fresh(self) -> bool:
        """Whether the epochs were read within `STALE_AFTER`."""
        return self.loop.time() - self._read_at < STALE_AFTER

    def target_generation(self, node: Node) -> int:
        return max(self.groups[node.group_id].generation, node.generation)

    def at_target(self, node: Node, poll: Poll) -> bool:
        """Whether a node is known to be at target, and all of it that is to be stored is."""
        if node.digest != poll.digest or poll.capabilities_digest not in ("", node.capabilities_digest):
            return False
        group = self.groups[node.group_id]
        return group.release_id is None or node.confirmed_generation >= max(group.generation, node.generation)

    def confirm(self, row: NodeRow) -> None:
        """Remember what a transaction wrote about a node, unless a later announcement about it was read meanwhile."""
        node = self.nodes.get(row.id)
        if node is not None and node.epoch <= row.epoch:
            node.digest = row.digest
            node.confirmed_generation = row.confirmed_generation
            node.capabilities_digest = row.capabilities_digest

    # Changes

    def nudge(self) -> None:
        """Read the epochs now: this replica has announced something."""
        self._nudged.set()

    async def announced(self) -> None:
        """Know here what was just written, before its answer is sent; the other replicas hear of it within `PERIOD`."""
        try:
            await self.refresh()
        except ProblemError:
            # It is written; this replica hears of it as the others do.
            self.nudge()

    async def load(self) -> None:
        """The first reading; raises `ProblemError` when there is no database."""
        await self.refresh()

    async def refresh(self) -> None:
        """Afterwards everything is known here that was committed before the call; raises `ProblemError`."""
        async with self._reading:
            began, before = self.loop.time(), self._clock.now()
            theirs, changes = await self._db.read(self._read)
            self._clock.compare(theirs, before)
            self._read_at = began
            if changes is not None:
                self._take(changes)

    async def run(self) -> None:
        """Follow the changes until cancelled."""
        outage = Outage(log, "the epochs can't be read")
        while True:
            try:
                async with asyncio.timeout(PERIOD):
                    await self._nudged.wait()
            except TimeoutError:
                pass
            self._nudged.clear()
            try:
                await self.refresh()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)
            if self.loop.time() - self._forgot_at >= FORGET_EVERY:
                self._forgot_at = self.loop.time()
                self.forget()

    async def _read(self, conn: Any) -> tuple[datetime, Changes | None]:
        """The database's time, and what has changed, or None."""
        epoch, theirs = await conn.fetchrow(SQL["epoch"])
        if epoch == self._epoch:
            return theirs, None
        groups = await conn.fetch(SQL["groups_since"], self._epoch)
        nodes, credentials = [], []
        if self._epoch >= 0:
            # At the start none is known: each is looked up when it asks, so a start costs the same for any fleet.
            nodes = await conn.fetch(SQL["nodes_since"], self._epoch)
            credentials = await conn.fetch(SQL["credentials_since"], self._epoch)
        operators = await conn.fetch(SQL["operators_since"], self._epoch)
        # What they refer to may have come to be without an announcement.
        missing = {row["node_id"] for row in credentials} - self.nodes.keys() - {row["id"] for row in nodes}
        if missing:
            nodes += await conn.fetch(SQL["nodes_by_id"], list(missing))
        missing = {row["group_id"] for row in nodes} - self.groups.keys() - {row["id"] for row in groups}
        if missing:
            groups += await conn.fetch(SQL["groups_by_id"], list(missing))
        return theirs, (epoch, groups, nodes, credentials, operators)

    def _take(self, changes: Changes) -> None:
        self._epoch, groups, nodes, credentials, operators = changes
        changed_groups = set()
        for row in groups:
            self.groups[row["id"]] = Group(**row)
            changed_groups.add(row["id"])
        for row in operators:
            self.operators[row["id"]] = Operator(**row)
        for row in nodes:
            self.nodes[row["id"]] = Node(**row)
        for row in credentials:
            credential = self.credentials[row["id"]] = Credential(**row)
            waiter = self.waiters.get(credential.node_id)
            if waiter is not None and waiter.credential_id == credential.id and credential.revoked_at is not None:
                waiter.wake()
        for row in nodes:
            if row["id"] in self.waiters:
                self.waiters[row["id"]].wake()
        if changed_groups:
            self._wake_slowly(n for n in self.waiters if self.nodes[n].group_id in changed_groups)

    def forget(self) -> None:
        """Let go of credentials and nodes that had ended a round ago: asked for, they are looked up again."""
        now = self._clock.now()
        ended = {id for id, credential in self.credentials.items() if credential.ended(now)}
        ended |= {id for id, node in self.nodes.items() if node.removed and id not in self.waiters}
        for id in ended & self._ended:
            self.credentials.pop(id, None)
            self.nodes.pop(id, None)
        self._ended = ended - self._ended

    # Waking

    def _wake_slowly(self, node_ids: Iterable[str]) -> None:
        """Wake held polls in slices, in no order that a node could be always last in."""
        woken = list(node_ids)
        random.shuffle(woken)
        self._to_wake.extend(woken)
        if self._waking is None or self._waking.done():
            self._waking = self.loop.create_task(self._wake_slices())

    async def _wake_slices(self) -> None:
        while self._to_wake:
            for node_id in self._to_wake[:SLICE]:
                if node_id in self.waiters:
                    self.waiters[node_id].wake()
            del self._to_wake[:SLICE]
            await asyncio.sleep(SLICE_PAUSE)

    def close(self) -> None:
        """The replica stops: every held poll is answered now, and no other is held."""
        self.closing = True
        for waiter in list(self.waiters.values()):
            waiter.wake()

    # What came to be elsewhere without an announcement: joins, rotated credentials, operators

    async def credential(self, credential_id: str) -> Credential | None:
        """The credential of that id, looked up in the database where it isn't known; None when there is none."""
        if credential_id not in self.credentials:
            await self._unknown.find(credential_id)
        return self.credentials.get(credential_id)

    async def operator(self, operator_id: str) -> Operator | None:
        """The operator of that id, as `credential`."""
        if operator_id not in self.operators:
            await self._unknown.find(operator_id)
        return self.operators.get(operator_id)

    async def _find(self, ids: list[str]) -> dict[str, None]:
        self._learn(*await self._db.read(lambda conn: _by_id(conn, ids)))
        return {}

    def _learn(self, groups: list[Any], nodes: list[Any], credentials: list[Any], operators: list[Any]) -> None:
        # A reading of the epochs that ended meanwhile may know better.
        for row in groups:
            self.groups.setdefault(row["id"], Group(**row))
        for row in nodes:
            self.nodes.setdefault(row["id"], Node(**row))
        for row in credentials:
            self.credentials.setdefault(row["id"], Credential(**row))
        for row in operators:
            self.operators.setdefault(row["id"], Operator(**row))

    async def stop(self) -> None:
        """Cancel what runs in the background; call after `run` has ended."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)
        await self._unknown.stop()


async def _by_id(conn: Any, ids: list[str]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    credentials = await conn.fetch(SQL["credentials_by_id"], ids)
    operators = await conn.fetch(SQL["operators_by_id"], ids)
    nodes = await conn.fetch(SQL["nodes_by_id"], [row["node_id"] for row in credentials])
    groups = await conn.fetch(SQL["groups_by_id"], [row["group_id"] for row in nodes])
    return groups, nodes, credentials, operators
