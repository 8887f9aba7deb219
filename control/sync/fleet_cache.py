"""The first step of a poll: whether the node is at its target, from memory, without the database.

A replica keeps in memory the targets, nodes, credentials and operators that it needs, and the polls that it holds. The
row of `epochs` shows whether something was announced (a target, a move, a revocation). A replica reads it, together
with the announced rows, in one transaction, four times a second and immediately after its own writes. So every replica
knows of a change within half a second, and wakes the polls that it concerns. A node that isn't in the cache is looked
up when it first polls.

The same read shows when the database was restored from a backup: the replica then discards everything and reads it
again (ADR 36).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from control.clock import Clock, Limit
from control.log_throttle import Outage
from control.metrics import ControlMetrics
from control.problems import ProblemError
from control.protocol import version
from control.protocol.wire import Poll
from control.storage import queries
from control.storage.batched_lookups import Lookups
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.node_state import NodeRow
from control.sync.watches import Watches, WatchRow


@dataclass(slots=True)
class CachedGroup:
    """A group and its target. When a group or a node is announced again, a new object takes its place."""

    id: str
    name: str
    release_id: str | None
    generation: int
    release_number: int | None
    newest_number: int = 0
    """The number of its newest release, also of one that only some of its nodes have got; 0 without one."""
    rehearsal: str = ""
    """The id of the rehearsal that its nodes do now (`wire.Rehearse`); empty if there is none."""
    backup: float = 0.0
    """The interval of its nodes' backups in seconds (`wire.BackUp`); 0 if they aren't backed up."""


@dataclass(slots=True)
class CachedNode:
    """What a poll needs to know of its node."""

    id: str
    name: str
    group_id: str
    epoch: int
    """Epoch of the last announcement of this node."""
    generation: int
    """Generation of the node's last move, or of its own release; its target generation is the larger of this and its
    group's."""
    confirmed_generation: int
    digest: str
    """Digest of what the node ran when it was last confirmed, or reported its inventory."""
    capabilities_digest: str
    """Digest of the stored capabilities; '' if the node sent them without a digest."""
    ran_generation: int
    """The generation that the node completed, if that is above its target's: the metadata were restored since."""
    removed: bool
    revoked: bool
    """Whether an operator has revoked its credentials and it hasn't rejoined."""
    release_id: str | None
    """Its own release, which is its target while `generation` is above its group's."""
    release_number: int | None
    moved_generation: int
    """Generation of the node's last move."""
    restore_id: str = ""
    """The restore that the node carries out (`wire.Restore`), or is held at: it gets no plan meanwhile; empty without
    one."""


class Target(NamedTuple):
    """What a node should run; without a release, `release_id` and `release_number` are None."""

    release_id: str | None
    release_number: int | None
    generation: int


@dataclass(slots=True)
class Credential:
    """A node's credential."""

    id: str
    node_id: str
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None
    first_used_at: datetime | None
    replaces: str | None
    last: tuple[bytes, Poll] | None = None
    """The node's last poll, as bytes and as parsed: at target, a node sends the same bytes again and again."""


@dataclass(slots=True)
class CachedOperator:
    """An operator, who may be revoked or expired."""

    id: str
    name: str
    role: str
    secret_hash: str
    revoked_at: datetime | None
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None
    issuer: str | None = None
    """The OpenID provider that knows the operator as `subject`; None for an operator with a token."""
    subject: str | None = None
    shown_name: str = ""
    """The name that the provider shows."""
    old_secret_hash: str = ""
    """Hash of the token's secret before it was rotated, valid until `old_ends_at`; '' if it never was."""
    rotated_at: datetime | None = None
    old_ends_at: datetime | None = None


class Epoch(NamedTuple):
    """The number of the last announcement, the mark of the reading replica, and the database's time."""

    epoch: int
    mark: int
    clock_timestamp: datetime


class LastAnnounced(NamedTuple):
    """The epochs of the last announcements of rows of each kind, and whether there are watches."""

    groups: int
    nodes: int
    credentials: int
    operators: int
    watched: bool


class Announced(NamedTuple):
    """The rows that were announced up to an epoch or looked up."""

    groups: list[CachedGroup]
    nodes: list[CachedNode]
    credentials: list[Credential]
    operators: list[CachedOperator]
    watches: list[WatchRow] | None = None
    """All current watches; None if they weren't requested."""


SQL = queries.load("fleet")
EPOCH = SQL.rows("epoch", Epoch)
ANNOUNCED = SQL.rows("announced", LastAnnounced)
GROUPS_SINCE = SQL.rows("groups_since", CachedGroup)
GROUPS_BY_ID = SQL.rows("groups_by_id", CachedGroup)
NODES_SINCE = SQL.rows("nodes_since", CachedNode)
NODES_BY_ID = SQL.rows("nodes_by_id", CachedNode)
CREDENTIALS_SINCE = SQL.rows("credentials_since", Credential)
CREDENTIALS_BY_ID = SQL.rows("credentials_by_id", Credential)
OPERATORS_SINCE = SQL.rows("operators_since", CachedOperator)
WATCHES = SQL.rows("watches", WatchRow)
OPERATORS_BY_ID = SQL.rows("operators_by_id", CachedOperator)
WRITE_MARK = SQL.optional("write_mark", str)

PERIOD = 0.25
"""Seconds between two reads of the epochs."""
STALE_AFTER = 5.0
"""Seconds without a read after which requests are refused, since a revocation could be unknown here."""
READING_PATIENCE = 2.0
"""Seconds for which requests then wait for a read: a process that was paused or busy soon has one."""
WOKEN_AT_ONCE = 64
"""Held polls that are woken together; all at once would keep operators' requests waiting."""
WAKE_PAUSE = 0.005
"""Seconds between two such batches of polls."""
FORGET_EVERY = 600.0
"""Seconds between two rounds of forgetting. A revoked credential is kept for at least one round, since a look-up
that began before may still return it as valid."""

MARK_PREFIX = "mark "
"""The prefix of the names of all marks; an id follows."""
MARK_PERIOD = 1.0
"""Seconds between two writes. A restored backup that is younger than that is detected only by the epoch."""
MARK_KEPT = timedelta(days=30)
"""How long the row of a stopped replica is kept before the monitor deletes it."""

STALE = f"the targets couldn't be read for {STALE_AFTER:.0f} s; ask again"
RESTORED = "who may come in isn't known now, since the metadata database was restored or may have been; ask again"

log = logging.getLogger("skerry.fleet")


class Waiter:
    """A held poll. A node has one at most: a newer poll of the same node replaces it."""

    __slots__ = ("_timeout", "credential_id", "replaced")

    def __init__(self, timeout: Limit, credential_id: str) -> None:
        self._timeout: Limit | None = timeout
        self.credential_id = credential_id
        self.replaced = False

    def wake(self) -> None:
        """Make the poll check its target again."""
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)
        self._timeout = None

    def done(self) -> None:
        """Note that the poll is no longer held: waking it has no effect from now on."""
        self._timeout = None


class FleetCache:
    """The cache. Only `run`, `refresh` and the look-ups query the database; everything else returns at once."""

    def __init__(self, db: Database, clock: Clock, metrics: ControlMetrics) -> None:
        self._db = db
        self.clock = clock
        self.mark = ReplicaMark(db, clock)
        self.groups: dict[str, CachedGroup] = {}
        self.nodes: dict[str, CachedNode] = {}
        self.credentials: dict[str, Credential] = {}
        self.verified: dict[bytes, str] = {}
        """Ids of credentials by the sha256 of valid Authorization headers: a token is parsed and compared once."""
        self.operators: dict[str, CachedOperator] = {}
        self.waiters: dict[str, Waiter] = {}
        """Held polls by node."""
        self.watches = Watches()
        """The watches of nodes."""
        self.closing = False
        self._epoch = -1
        self._read_at = self.clock.monotonic() - STALE_AFTER
        self._begun = self._taken = 0
        """How many reads have begun, and the number of the last one whose rows were stored."""
        self._ended: set[str] = set()
        """Ids of revoked credentials and removed nodes from the last round of forgetting."""
        self._forgot_at = self.clock.monotonic()
        self._restored = 0
        """How often a restore of the database was detected."""
        self.after_restore: Callable[[bool], Awaitable[None]] | None = None
        """Called before anything is answered from a database that was found to be restored (True), or may have been
        restored before the start (False). Raises: ProblemError, when it can't be done now."""
        self.restoring = False
        """Whether `after_restore` is still to be done; nothing is answered before that."""
        self.rollouts_due = asyncio.Event()
        """Set when a group was announced, or a node has told what a rollout waits for: it may go on now."""
        self._reading = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._to_wake: list[str] = []
        self._waking: asyncio.Task[None] | None = None
        self._unknown = Lookups[None]("unknown credentials", self._find)
        metrics.watch(
            lambda: len(self.waiters),
            lambda: sum(not node.removed for node in self.nodes.values()),
            lambda: self.clock.monotonic() - self._read_at,
        )

    @property
    def epoch(self) -> int:
        """The number of the last announcement read; -1 before the first."""
        return self._epoch

    @property
    def fresh(self) -> bool:
        """Whether the epochs were read within `STALE_AFTER`."""
        return self.clock.monotonic() - self._read_at < STALE_AFTER

    def target(self, node: CachedNode) -> Target:
        """Return the node's target: its own release while it has a newer generation than its group's, else that."""
        group = self.groups[node.group_id]
        if node.generation <= group.generation:
            return Target(group.release_id, group.release_number, group.generation)
        if node.release_id is None:
            return Target(group.release_id, group.release_number, node.generation)
        return Target(node.release_id, node.release_number, node.generation)

    def at_target(self, node: CachedNode, poll: Poll) -> bool:
        """Return whether a node is known to be at its target and its poll contains nothing new."""
        if node.digest != poll.digest or poll.capabilities_digest not in ("", node.capabilities_digest):
            return False
        group = self.groups[node.group_id]
        target = max(group.generation, node.generation)
        if poll.generation > target and poll.generation > node.ran_generation:
            return False
        if node.confirmed_generation >= target:
            return True
        return group.release_id is None and (node.release_id is None or node.generation <= group.generation)

    def nothing_new(self, node: CachedNode, poll: Poll) -> bool:
        """Return whether the poll of a held node contains nothing new."""
        return node.digest == poll.digest and poll.capabilities_digest in ("", node.capabilities_digest)

    def confirm(self, row: NodeRow) -> None:
        """Store what a transaction wrote about a node, unless a later announcement of it has been read meanwhile."""
        node = self.nodes.get(row.id)
        if node is not None and node.epoch <= row.epoch:
            node.digest = row.digest
            node.confirmed_generation = row.confirmed_generation
            node.capabilities_digest = row.capabilities_digest
            node.ran_generation = row.ran_generation

    # Changes

    def nudge(self) -> None:
        """Read the epochs now, because this replica has announced something."""
        self._nudged.set()

    async def announced(self) -> None:
        """Read what was just written, before its answer is sent. Other replicas read it within `PERIOD`."""
        try:
            await self.refresh()
        except ProblemError:
            # The write is done; this replica reads it when the others do.
            self.nudge()

    async def refresh(self) -> None:
        """Read everything committed before the call. Raises: ProblemError, when the database doesn't answer."""
        async with self._reading:
            await self._finish_restore()
            self._begun += 1
            began, before, mark = self.clock.monotonic(), self.clock.now(), self.mark.committed
            epoch, changes = await self._db.read(partial(self._read, mark))
            while self._is_restored(epoch, mark):
                self._forget_all(epoch)
                await self._finish_restore()
                began, mark = self.clock.monotonic(), self.mark.committed
                epoch, changes = await self._db.read(partial(self._read, mark))
            self.clock.compare(epoch.clock_timestamp, before)
            self._read_at, self._taken = began, self._begun
            if changes is not None:
                self._epoch = epoch.epoch
                self._take(changes)

    async def refresh_watches(self) -> None:
        """Read all watches, as watches that expire aren't announced. Raises: ProblemError, as `refresh` does."""
        async with self._reading:
            self.take_watches(await self._db.read(lambda conn: conn.fetch(WATCHES, self.clock.now())))

    async def caught_up(self) -> None:
        """Wait until everything announced before the call has been read, for a second at most."""
        begun = self._begun
        await _within(1.0, lambda: self._taken > begun)

    async def run(self) -> None:
        """Follow the changes until cancelled."""
        outage = Outage(log, "the epochs can't be read")
        while True:
            with contextlib.suppress(TimeoutError):
                async with self.clock.timeout(PERIOD):
                    await self._nudged.wait()
            self._nudged.clear()
            try:
                await self.refresh()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)
            if self.clock.monotonic() - self._forgot_at >= FORGET_EVERY:
                self._forgot_at = self.clock.monotonic()
                self.forget()

    async def read_late(self) -> None:
        """Wait a moment for a read if there was none for `STALE_AFTER`: the memory may be out of date."""
        if not self.fresh and not self.restoring:
            await _within(READING_PATIENCE, lambda: self.fresh)

    def refuse_stale(self) -> None:
        """Refuse to answer from memory that may be out of date.

        Raises: ProblemError, when the epochs haven't been read for `STALE_AFTER`.
        """
        if not self.fresh:
            raise ProblemError("database_unavailable", STALE)

    def refuse_restoring(self) -> None:
        """Refuse to answer while revocations may be unknown.

        Raises: ProblemError, when the database was restored and the access lists aren't applied yet.
        """
        if self.restoring:
            raise ProblemError("database_unavailable", RESTORED)

    async def _finish_restore(self) -> None:
        if self.restoring:
            if self.after_restore is not None:
                await self.after_restore(self._restored > 0)
            # What was looked up meanwhile may be from before the restore.
            self._forget_known()
            self.restoring = False

    def _is_restored(self, epoch: Epoch, mark: int) -> bool:
        """Return whether the database lacks what this replica has read, or its mark, which was `mark` earlier."""
        return epoch.epoch < self._epoch or epoch.mark < mark

    def _forget_all(self, epoch: Epoch) -> None:
        """Discard what was read from a database that was restored; answer nothing until everything is read again."""
        text = "the metadata database was restored: it is at epoch %d, this replica was at %d; all is read anew"
        log.warning(text, epoch.epoch, self._epoch)
        self.restoring = True
        self._epoch = -1
        self._read_at = self.clock.monotonic() - STALE_AFTER
        self.mark.committed = epoch.mark
        self._forget_known()
        self.watches = Watches()
        self._wake_slowly(self.waiters)

    def _forget_known(self) -> None:
        self._restored += 1
        for known in (self.groups, self.nodes, self.credentials, self.verified, self.operators):
            known.clear()

    async def _read(self, mark: int, conn: Connection) -> tuple[Epoch, Announced | None]:
        """Read the epoch, and the rows that have changed since the last read.

        Return None instead of the rows if nothing has changed, or if the database, which should have the mark `mark`,
        was restored.
        """
        epoch = await conn.one(EPOCH, self.mark.name)
        if epoch.epoch == self._epoch or self._is_restored(epoch, mark):
            return epoch, None
        # Most announcements concern one kind of row, and each query is a round trip to the database.
        last, since = await conn.one(ANNOUNCED), self._epoch
        found = Announced(
            await conn.fetch(GROUPS_SINCE, since) if last.groups > since else [],
            # At the start no node is known: each is looked up when it polls, so a start costs the same for any fleet.
            await conn.fetch(NODES_SINCE, since) if last.nodes > since >= 0 else [],
            await conn.fetch(CREDENTIALS_SINCE, since) if last.credentials > since >= 0 else [],
            await conn.fetch(OPERATORS_SINCE, since) if last.operators > since else [],
            await conn.fetch(WATCHES, self.clock.now()) if last.watched else [],
        )
        # Nodes and groups that these rows refer to may have been made without an announcement.
        missing = {row.node_id for row in found.credentials} - self.nodes.keys() - {row.id for row in found.nodes}
        if missing:
            found.nodes.extend(await conn.fetch(NODES_BY_ID, list(missing)))
        missing = {row.group_id for row in found.nodes} - self.groups.keys() - {row.id for row in found.groups}
        if missing:
            found.groups.extend(await conn.fetch(GROUPS_BY_ID, list(missing)))
        return epoch, found

    def _take(self, changes: Announced) -> None:
        for group in changes.groups:
            self.groups[group.id] = group
        for operator in changes.operators:
            self.operators[operator.id] = operator
        for node in changes.nodes:
            self.nodes[node.id] = node
        for credential in changes.credentials:
            self.credentials[credential.id] = credential
            waiter = self.waiters.get(credential.node_id)
            if waiter is not None and waiter.credential_id == credential.id and credential.revoked_at is not None:
                waiter.wake()
        for node in changes.nodes:
            if node.id in self.waiters:
                self.waiters[node.id].wake()
        changed = {group.id for group in changes.groups}
        if changed:
            self._wake_slowly(n for n in self.waiters if n in self.nodes and self.nodes[n].group_id in changed)
            self.rollouts_due.set()
        if changes.watches is not None:
            self.take_watches(changes.watches)

    def take_watches(self, rows: list[WatchRow]) -> None:
        """Replace the watches by `rows`, and wake the held polls of the nodes that a change concerns."""
        changed = self.watches.take(rows)
        if changed:
            known = self.nodes
            self._wake_slowly(n for n in self.waiters if n in known and any(w.concerns(known[n]) for w in changed))

    def forget(self) -> None:
        """Forget credentials that were revoked, and nodes that were removed, a round ago.

        They are looked up again if requested later.
        """
        ended = {id for id, credential in self.credentials.items() if credential.revoked_at is not None}
        ended |= {id for id, node in self.nodes.items() if node.removed and id not in self.waiters}
        for id in ended & self._ended:
            self.credentials.pop(id, None)
            self.nodes.pop(id, None)
        self._ended = ended - self._ended

    # Waking

    def _wake_slowly(self, node_ids: Iterable[str]) -> None:
        """Wake held polls in batches, in random order, so that no node is always last."""
        woken = list(node_ids)
        random.shuffle(woken)
        self._to_wake.extend(woken)
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._wake_groups())

    async def _wake_groups(self) -> None:
        while self._to_wake:
            for node_id in self._to_wake[:WOKEN_AT_ONCE]:
                if node_id in self.waiters:
                    self.waiters[node_id].wake()
            del self._to_wake[:WOKEN_AT_ONCE]
            await asyncio.sleep(WAKE_PAUSE)

    def close(self) -> None:
        """Answer every held poll now, and hold no more, because the replica is stopping."""
        self.closing = True
        for waiter in list(self.waiters.values()):
            waiter.wake()

    # What is made without an announcement: joins, rotated credentials, operators

    async def credential(self, credential_id: str) -> Credential | None:
        """Return the credential with this id, or None; look it up if it isn't cached. Raises: ProblemError."""
        if credential_id not in self.credentials:
            await self._unknown.find(credential_id)
        return self.credentials.get(credential_id)

    async def operator(self, operator_id: str) -> CachedOperator | None:
        """Return the operator with this id, or None; look it up if it isn't cached. Raises: ProblemError."""
        if operator_id not in self.operators:
            await self._unknown.find(operator_id)
        return self.operators.get(operator_id)

    async def _find(self, ids: list[str]) -> dict[str, None]:
        restored = self._restored
        found = await self._db.read(lambda conn: _by_id(conn, ids))
        if restored != self._restored:
            raise ProblemError("database_unavailable", RESTORED)
        # What a read of the epochs has stored meanwhile may be newer.
        for group in found.groups:
            self.groups.setdefault(group.id, group)
        for node in found.nodes:
            self.nodes.setdefault(node.id, node)
        for credential in found.credentials:
            self.credentials.setdefault(credential.id, credential)
        for operator in found.operators:
            self.operators.setdefault(operator.id, operator)
        return {}

    async def stop(self) -> None:
        """Cancel the background tasks; call it after `run` has ended."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)
        await self._unknown.stop()


class ReplicaMark:
    """The mark of one process in the metadata, by which it detects that they were restored from a backup.

    Each replica increments a counter in its own row, and reads it with each read of the epochs. Nobody else writes that
    row, so a count that is lower than this replica has seen committed is from an earlier time: the database lacks what
    this replica knows, even if its epoch has passed the one that the replica read last (ADR 36).
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._count = 0
        self.name = f"{MARK_PREFIX}{uuid4()}"
        """The name of the row."""
        self.committed = 0
        """The highest count known to be committed; a later one whose COMMIT got no answer may be stored too."""

    async def write(self) -> None:
        """Increment the count, unless the count in the metadata is lower than it should be.

        Raises: ProblemError, when the write isn't confirmed.
        """
        self._count = count = self._count + 1
        until, least = self._clock.now() + MARK_KEPT, self.committed
        row = self.name, str(count), until, least, version.running().short
        if await self._db.transaction(lambda conn: conn.fetchval(WRITE_MARK, *row)) is not None:
            # If a restore was detected meanwhile, `committed` is lower, and so was the row.
            self.committed = count

    async def run(self) -> None:
        """Increment the count every `MARK_PERIOD` seconds until cancelled."""
        outage = Outage(log, "this replica's mark can't be written: it would notice a restored database later")
        while True:
            try:
                await self.write()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)
            await self._clock.sleep(MARK_PERIOD)


async def _by_id(conn: Connection, ids: list[str]) -> Announced:
    """Read the credentials and operators with these ids, and the nodes and groups that they refer to."""
    credentials = await conn.fetch(CREDENTIALS_BY_ID, ids)
    operators = await conn.fetch(OPERATORS_BY_ID, ids)
    nodes = await conn.fetch(NODES_BY_ID, [row.node_id for row in credentials])
    groups = await conn.fetch(GROUPS_BY_ID, [row.group_id for row in nodes])
    return Announced(groups, nodes, credentials, operators)


async def _within(seconds: float, holds: Callable[[], bool]) -> None:
    """Wait until `holds()` is true, for `seconds` at most."""
    end = (loop := asyncio.get_running_loop()).time() + seconds
    while not holds() and loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(PERIOD / 5)
