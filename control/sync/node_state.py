"""The metadata's rows about nodes, their syncs and their targets: read, changed as values, and written back.

A transaction that decides about nodes (`reconciler`, `reports`, the monitor) reads rows here, changes them in memory,
and writes them back before its COMMIT.
"""

import asyncio
import itertools
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import orjson

from control.protocol import wire
from control.storage import events, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import plan

TURN = 10
"""Nodes, each with up to a thousand functions, that are processed before other tasks run."""
FAR = timedelta(days=365)
"""Times sent by a node are clamped to within `FAR` of now."""
MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes of inventories and capabilities written in one statement; CockroachDB takes messages of up to 16 MiB, and what
one node sends is far below this."""
RELEASES_KEPT = 256
"""Releases in memory."""
EXPIRED = "sync_expired"
"""Code of a node's error when the lease of its sync has passed."""
ROWS = 2000
"""Functions that are written in one statement, or read into inventories before other tasks run."""


@dataclass(slots=True)
class NodeRow:
    """A node's row and its target. `save` writes everything except the target and the epoch."""

    id: str
    removed: bool
    state: str
    state_since: datetime
    schema_version: int
    schema_changes: str
    """As JSON."""
    database_id: str
    digest: str
    confirmed_generation: int
    failures: int
    failed_generation: int
    retry_at: datetime | None
    error_code: str
    error_message: str
    error_at: datetime | None
    synced_at: datetime | None
    capabilities_digest: str
    protocol: int
    syncs_folded: int
    ran_generation: int
    """As in `fleet_cache.CachedNode`."""
    epoch: int
    release_id: str | None
    target_generation: int
    held: bool
    """Whether it carries out a restore, or stays at one until somebody resumes it."""
    reported: wire.Inventory | None = None
    """Set by `report`: the inventory to store."""
    capabilities: dict[str, Any] | None = None
    """Set by `tell`: the capabilities to store."""
    was_at_target: bool = False
    """Set by `report`: the node was confirmed at its target with the inventory that it had before."""
    failed_anew: bool = False
    """Set by `fail`: the failure differs from the node's last one."""

    def report(self, inventory: wire.Inventory, digest: str) -> None:
        """Note that the node runs `inventory`, whose digest is `digest`."""
        if digest == self.digest:
            return
        self.reported = inventory
        self.schema_version = inventory.schema_version
        self.database_id = clean(inventory.database_id)
        self.digest = digest
        self.was_at_target |= self.confirmed_generation >= self.target_generation
        self.confirmed_generation = 0

    def tell(self, capabilities: dict[str, Any], digest: str, protocol: int) -> None:
        """Note the node's capabilities; its polls refer to them by `digest`."""
        self.capabilities = capabilities
        self.capabilities_digest = digest
        self.protocol = protocol

    def enter(self, state: str, now: datetime) -> None:
        """Change to `state`; `state_since` changes only if the state does.

        A revoked node stays revoked until it joins again: a request that it sent before may be decided late.
        """
        if self.state not in (state, "revoked"):
            self.state = state
            self.state_since = now

    def confirm(self, generation: int) -> None:
        """Note that the node is at the target of `generation`."""
        self.confirmed_generation = max(self.confirmed_generation, generation)
        if generation < self.failed_generation:
            return  # late news: the error of the newer generation still holds
        self.failed_generation = 0
        self.retry_at = None
        self.error_code = self.error_message = ""
        self.error_at = None

    def fail(self, code: str, message: str, now: datetime, generation: int) -> None:
        """Count one more failed sync (R 5.3), of the target of `generation`.

        What failed of a target that the node has left is no error of its present one: the log of syncs has it.
        """
        self.failures += 1
        if generation < self.target_generation:
            return
        # The failures of a node that tries again and again are one event, until its error is another one.
        self.failed_anew |= clean(code) != self.error_code or self.failed_generation not in (0, generation)
        self.error_code = clean(code)
        self.error_message = clean(message)
        self.error_at = now


class RunningSync(NamedTuple):
    """An open sync. A node has one at most."""

    id: str
    node_id: str
    generation: int
    step: str
    lease_until: datetime


class NewSync(NamedTuple):
    """A new row of the log of syncs, as texts."""

    id: str
    node_id: str
    release_id: str
    generation: str


class EndedSync(NamedTuple):
    """How an open sync ended; code and message are empty unless it failed."""

    id: str
    status: str
    code: str
    message: str


class NodeFunction(NamedTuple):
    """A function that a node reported."""

    node_id: str
    name: str
    version: int
    sha256: str
    manifest_digest: str


class ReleaseFunctionRow(NamedTuple):
    """A function of a release: the columns of `ReleaseHead`, then those of `plan.TargetFunction`."""

    id: str
    number: int
    schema_floor: int
    traceparent: str
    name: str
    version: int
    sha256: str
    size: int
    artifact_id: str
    manifest: dict[str, Any]
    manifest_digest: str


class ReleaseHead(NamedTuple):
    """A release without its functions."""

    id: str
    number: int
    schema_floor: int
    traceparent: str


SQL = queries.load("syncs")
NODES = SQL.rows("nodes", NodeRow)
OPEN_SYNCS = SQL.rows("open_syncs", RunningSync)
NODE_FUNCTIONS = SQL.rows("node_functions", NodeFunction)
LOCK_FREE_NODES = SQL.value("lock_free_nodes", str)
LOCK_FREE_SYNCS = SQL.value("lock_free_syncs", str)
POLL = queries.load("poll")
RELEASES = POLL.rows("releases", ReleaseHead)
RELEASE_FUNCTIONS = POLL.rows("release_functions", ReleaseFunctionRow)


def clean(text: str) -> str:
    """Return `text` without NUL, which the database can't store."""
    return text.replace("\0", "\ufffd")


def clamped(time: datetime | None, now: datetime) -> datetime | None:
    """Return a time that a node sent, moved to within `FAR` of `now`; without a zone it is UTC.

    Some times that can be written as RFC 3339 are out of the range of the database, or of asyncpg.
    """
    if time is None:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return now + min(max(time - now, -FAR), FAR)


async def load(conn: Connection, node_ids: Iterable[str]) -> dict[str, NodeRow]:
    """Read the rows of these nodes, by id."""
    return {row.id: row for row in await conn.fetch(NODES, sorted(node_ids))}


async def lock_free(conn: Connection, node_ids: Iterable[str]) -> set[str]:
    """Lock those of these nodes, with their open syncs, that no other transaction has locked; return their ids."""
    free = set(await conn.column(LOCK_FREE_NODES, sorted(node_ids)))
    unlocked = set(await conn.column(LOCK_FREE_SYNCS, sorted(free)))
    for sync in await conn.fetch(OPEN_SYNCS, sorted(free)):
        if sync.id not in unlocked:
            free.discard(sync.node_id)
    return free


class Targets:
    """The releases that this replica has read: they are immutable, so it reads each of them once."""

    def __init__(self) -> None:
        self._releases: dict[str, plan.TargetRelease] = {}

    async def releases(self, conn: Connection, ids: Collection[str]) -> dict[str, plan.TargetRelease]:
        """Return those of the releases with these ids that exist, by id."""
        # Take the known ones before the first await, since another transaction may clear the cache meanwhile.
        found = {id: self._releases[id] for id in ids if id in self._releases}
        unknown = [id for id in ids if id not in found]
        if unknown:
            functions: dict[str, list[plan.TargetFunction]] = {}
            heads: dict[str, ReleaseHead] = {}
            for row in await conn.fetch(RELEASE_FUNCTIONS, unknown):
                heads[row.id] = ReleaseHead(*row[:4])
                functions.setdefault(row.id, []).append(plan.TargetFunction(*row[4:]))
            # Releases without functions aren't among these rows.
            alone = [id for id in unknown if id not in heads]
            for head in (*heads.values(), *(await conn.fetch(RELEASES, alone) if alone else ())):
                own = tuple(functions.get(head.id, ()))
                found[head.id] = plan.TargetRelease(head.id, head.number, head.schema_floor, own, head.traceparent)
            if len(self._releases.keys() | found.keys()) > RELEASES_KEPT:
                self._releases.clear()
            self._releases.update(found)
        return found


class StoredNodes(NamedTuple):
    """What a transaction reads of the nodes that it decides about."""

    rows: dict[str, NodeRow]
    """By id, as are the others."""
    inventories: dict[str, wire.Inventory]
    """The inventories that the nodes reported last, except for nodes that have just reported them."""
    open_syncs: dict[str, RunningSync]


async def read(conn: Connection, node_ids: Collection[str], told: Collection[str]) -> StoredNodes:
    """Read these nodes, their inventories, and their open syncs; the inventories of `told` aren't needed."""
    ids = sorted(node_ids)
    rows = {row.id: row for row in await conn.fetch(NODES, ids)}
    found = {}
    for row in rows.values():
        if row.id not in told:
            found[row.id] = wire.Inventory(
                schema_version=row.schema_version,
                schema_changes=_changes(row.schema_changes),
                database_id=row.database_id,
            )
    if found:
        for index, function in enumerate(await conn.fetch(NODE_FUNCTIONS, sorted(found))):
            if index % ROWS == ROWS - 1:
                await asyncio.sleep(0)
            running = wire.RunningFunction(function.name, function.version, function.sha256, function.manifest_digest)
            found[function.node_id].functions.append(running)
    return StoredNodes(rows, found, {sync.node_id: sync for sync in await conn.fetch(OPEN_SYNCS, ids)})


@dataclass(slots=True)
class SyncChanges:
    """What a transaction changes in the log of syncs."""

    now: datetime
    lease: float = 0.0
    """Seconds without a report after which a sync expires."""
    opened: list[NewSync] = field(default_factory=list)
    """New syncs."""
    refused: list[tuple[NewSync, str, str]] = field(default_factory=list)
    """New syncs that failed before they began, with code and message."""
    renewed: list[str] = field(default_factory=list)
    """Open syncs whose leases are renewed."""
    steps: dict[str, str] = field(default_factory=dict)
    """Open syncs whose leases are renewed, with the steps that they have reached."""
    ended: list[EndedSync] = field(default_factory=list)
    """Syncs that were open."""
    late: dict[str, str] = field(default_factory=dict)
    """Ended syncs for which a result was reported later, with that result."""
    reached: set[str] = field(default_factory=set)
    """Ids of releases that nodes have reached."""
    reopened: list[str] = field(default_factory=list)
    """Ended syncs whose lines in the log now also represent new syncs."""
    refolded: list[tuple[str, str, str]] = field(default_factory=list)
    """Ended syncs whose lines now also represent syncs that failed before they began, with code and message."""

    def end(self, sync_id: str, status: str, code: str = "", message: str = "") -> None:
        """End a sync with `status`; a failure with its error."""
        self.ended.append(EndedSync(sync_id, status, clean(code), clean(message)))

    def expire(self, sync: RunningSync, node: NodeRow) -> None:
        """End a sync whose lease has passed: its node has failed."""
        late = (self.now - sync.lease_until).total_seconds()
        after = f" after the step {sync.step!r}" if sync.step else ""
        message = f"nothing was heard of the sync{after}; its lease ended {late:.0f} s ago"
        self.end(sync.id, "expired", EXPIRED, message)
        node.fail(EXPIRED, message, self.now, sync.generation)
        node.enter("online", self.now)

    def fold(self, lines: Mapping[str, str]) -> None:
        """Make new syncs of these nodes share an older line of the node in the log; `lines` has its id, by node."""
        self.reopened = [lines[sync.node_id] for sync in self.opened if sync.node_id in lines]
        self.refolded = [(lines[s.node_id], code, text) for s, code, text in self.refused if s.node_id in lines]
        self.opened = [sync for sync in self.opened if sync.node_id not in lines]
        self.refused = [row for row in self.refused if row[0].node_id not in lines]

    async def save(self, conn: Connection) -> None:
        """Write the changes."""
        lease_until = self.now + timedelta(seconds=self.lease)
        # A node has one open sync at most, so what ends comes first.
        if self.ended:
            await conn.execute(SQL["end_syncs"], *map(list, zip(*self.ended, strict=True)), self.now)
        if self.reached:
            await conn.execute(SQL["mark_reached"], sorted(self.reached), self.now)
        if self.renewed:
            await conn.execute(SQL["renew_syncs"], self.renewed, lease_until)
        if self.steps:
            await conn.execute(SQL["go_on"], list(self.steps), list(self.steps.values()), lease_until)
        if self.opened:
            await conn.execute(SQL["insert_syncs"], *map(list, zip(*self.opened, strict=True)), self.now, lease_until)
        if self.reopened:
            await conn.execute(SQL["reopen_syncs"], self.reopened, self.now, lease_until)
        if self.refolded:
            await conn.execute(SQL["fold_failed_syncs"], *map(list, zip(*self.refolded, strict=True)), self.now)
        if self.refused:
            rows = [(*sync, code, message) for sync, code, message in self.refused]
            await conn.execute(SQL["insert_failed_syncs"], *map(list, zip(*rows, strict=True)), self.now)
        if self.late:
            await conn.execute(SQL["late"], list(self.late), list(self.late.values()), self.now)


async def save(conn: Connection, rows: Iterable[NodeRow]) -> None:
    """Write these rows, and the inventories that were reported. Nothing but COMMIT may follow.

    Replicas answer from memory to a node that they know to be at its target. If a node no longer is, this announces it
    to all of them: its report may be an old one, from a copy of a poll that came late, and they must not go on
    answering that there is nothing to do.
    """
    rows = sorted(rows, key=_ID)
    if not rows:
        return
    values: list[tuple[str, ...]] = [
        (
            row.id,
            row.state,
            row.state_since.isoformat(),
            str(row.schema_version),
            # '' keeps the stored value.
            "" if row.reported is None else orjson.dumps(msgspec.to_builtins(row.reported.schema_changes)).decode(),
            row.database_id,
            row.digest,
            str(row.confirmed_generation),
            str(row.failures),
            str(row.failed_generation),
            "" if row.retry_at is None else row.retry_at.isoformat(),
            row.error_code,
            row.error_message,
            "" if row.error_at is None else row.error_at.isoformat(),
            "" if row.synced_at is None else row.synced_at.isoformat(),
            "" if row.capabilities is None else orjson.dumps(row.capabilities).decode(),
            row.capabilities_digest,
            str(row.protocol),
            str(row.syncs_folded),
            str(row.ran_generation),
        )
        for row in rows
    ]
    begins, size = [0], 0
    for at, columns in enumerate(values):
        own = sum(map(len, columns))
        size += own
        if size > MESSAGE_BYTES and at > begins[-1]:
            begins.append(at)
            size = own
    for begin, end in itertools.pairwise([*begins, len(values)]):
        await conn.execute(SQL["save_nodes"], *(list(column) for column in zip(*values[begin:end], strict=True)))
    failed = [(row.error_at, _failure(row)) for row in rows if row.failed_anew and row.error_at is not None]
    if failed:
        await events.record(conn, failed[0][0], "sync.failed", [failure for _, failure in failed])
    reported = [(row.id, row.reported) for row in rows if row.reported is not None]
    if not reported:
        return
    await conn.execute(SQL["delete_functions"], [node_id for node_id, _ in reported])
    functions = [
        (node_id, f.name, str(f.version), f.sha256, f.manifest_digest)
        for node_id, inventory in reported
        for f in inventory.functions
    ]
    for start in range(0, len(functions), ROWS):
        part = zip(*functions[start : start + ROWS], strict=True)
        await conn.execute(SQL["insert_functions"], *(list(column) for column in part))
    left = {row.id for row in rows if row.was_at_target and row.confirmed_generation < row.target_generation}
    if left:
        await Changed(nodes=left).announce(conn)


_ID = operator.attrgetter("id")


def _failure(row: NodeRow) -> dict[str, str | None]:
    """Return the item for a node in the event of a failed sync."""
    message = row.error_message[: events.LONGEST_TEXT]
    return {"node_id": row.id, "release_id": row.release_id, "code": row.error_code, "message": message}


@lru_cache(maxsize=64)
def _changes(text: str) -> list[wire.AppliedChange]:
    """Parse the applied schema changes from JSON.

    Most nodes have applied the same changes, so they share one list, which nobody changes.
    """
    return msgspec.json.decode(text, type=list[wire.AppliedChange])
