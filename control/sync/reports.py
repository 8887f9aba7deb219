"""The last step of a sync: what its node reports about it (R 6.1 to 6.4), a batch of reports in one transaction.

The transaction for a result writes what the node runs now, when it last synced, the line in the log of syncs, and the
node's state; for a node that a rollout has started, also its calls of the hour before, and for one that is backed up
the last transaction before the release. An open sync has a lease. When the lease ends, the sync expires, which counts
as a failure, and a result that is reported later is recorded as late.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from control.clock import Clock
from control.problems import ProblemError
from control.protocol import faults, wire
from control.storage import queries
from control.storage.connection import Connection
from control.sync import hours_before, node_state, plan
from control.sync.node_state import NodeRow, RunningSync, SyncChanges, Targets
from control.sync.write_batches import Committed, NodeLocked, Written

NOT_AT_TARGET = "not_at_target"
"""Code of a node's error if it reports success but doesn't run the release."""


class ReportedSync(NamedTuple):
    """A sync as it is stored, open or ended."""

    id: str
    node_id: str
    release_id: str
    generation: int
    status: str
    step: str
    lease_until: datetime
    late_status: str | None


SQL = queries.load("syncs")
SYNCS = SQL.rows("syncs", ReportedSync)
STORE_HOURS = queries.load("gates")["store_hours"]
WRITE_BOUNDARIES = queries.load("backups")["write_boundaries"]

log = logging.getLogger("skerry.syncs")


@dataclass(frozen=True, slots=True)
class SyncReport:
    """A node's report of its sync."""

    sync_id: str
    node_id: str
    update: wire.SyncUpdate


class Reports:
    """Writes batches of reports; `write` is used by `WriteBatches`."""

    def __init__(self, clock: Clock, targets: Targets, lease: float) -> None:
        """`lease`: seconds without a report after which a sync expires."""
        self._clock = clock
        self._targets = targets
        self._lease = lease

    async def write(self, reports: list[SyncReport], careful: bool, conn: Connection) -> Written[wire.SyncState]:
        """Process these reports, at most one per node, in the transaction of `conn`."""
        now = self._clock.now()
        free = await node_state.lock_free(conn, {report.node_id for report in reports}) if careful else None
        taken = [report for report in reports if free is None or report.node_id in free]
        nodes = await node_state.load(conn, {report.node_id for report in taken})
        syncs = {sync.id: sync for sync in await conn.fetch(SYNCS, sorted(report.sync_id for report in taken))}
        succeeded = {report.sync_id for report in taken if report.update.status == "succeeded"} & syncs.keys()
        releases = await self._targets.releases(conn, {syncs[sync_id].release_id for sync_id in succeeded})
        batch = _ReportBatch(now, nodes, syncs, releases, SyncChanges(now, self._lease))
        answers: list[wire.SyncState | ProblemError | NodeLocked] = []
        for index, report in enumerate(reports):
            if index % node_state.TURN == node_state.TURN - 1:
                await asyncio.sleep(0)
            answers.append(batch.take(report) if free is None or report.node_id in free else NodeLocked.LOCKED)
        await batch.save(conn)
        faults.reach("control.result.before")
        return Written(answers, batch.committed())


@dataclass(slots=True)
class _ReportBatch:
    """The decisions of one transaction, and what it writes for them."""

    now: datetime
    nodes: dict[str, NodeRow]
    syncs: dict[str, ReportedSync]
    releases: dict[str, plan.TargetRelease]
    changes: SyncChanges
    """The changes that the reports make to the log of syncs."""
    changed: set[str] = field(default_factory=set)
    """Nodes whose rows must be written."""
    hours: list[tuple[str, str, str]] = field(default_factory=list)
    """Releases, the nodes that flipped to them, and their calls of the hour before, in hexadecimal."""
    boundaries: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Nodes, the releases that they flipped to, and the lineages and transactions of just before that."""
    counted: list[str] = field(default_factory=list)
    """For metrics: the status of each sync that ended, or `late`."""

    def take(self, report: SyncReport) -> wire.SyncState | ProblemError:
        """Process one report."""
        sync = self.syncs.get(report.sync_id)
        if sync is None or sync.node_id != report.node_id:
            return unknown_sync(report.sync_id)
        node, status = self.nodes[report.node_id], sync.status
        if status == "running" and sync.lease_until <= self.now:
            running = RunningSync(sync.id, sync.node_id, sync.generation, sync.step, sync.lease_until)
            self.changes.expire(running, node)
            status = "expired"
            self._count(node, status)
        step = self._running if report.update.status == "running" else self._result
        return step(node, sync, status, report.update)

    def _running(self, node: NodeRow, sync: ReportedSync, status: str, update: wire.SyncUpdate) -> wire.SyncState:
        """Renew the lease, unless the node has a newer target."""
        if status == "running" and node.target_generation > sync.generation:
            status = "superseded"
            self.changes.end(sync.id, status)
            node.enter("online", self.now)
            self._count(node, status)
        if status != "running":
            return wire.SyncState(status, 0)
        self.changes.steps[sync.id] = node_state.clean(update.step)
        return wire.SyncState("running", self.changes.lease)

    def _result(self, node: NodeRow, sync: ReportedSync, status: str, update: wire.SyncUpdate) -> wire.SyncState:
        """End the sync, or record the result as late. A repeated result changes nothing."""
        result = update.status
        if status == result or sync.late_status == result:
            return wire.SyncState(status, 0, late=status != result)
        late = status != "running"
        error = update.error or wire.SyncError("unknown", "the node gave no reason")
        if update.inventory is not None:
            node.report(update.inventory, wire.digest(update.inventory))
            release = self.releases.get(sync.release_id)
            if result == "succeeded" and (release is None or not plan.at_target(update.inventory, release)):
                result = "failed"
                error = wire.SyncError(NOT_AT_TARGET, "the node says it succeeded, but doesn't run the release")
                if status == result:  # the same report again
                    return wire.SyncState(status, 0)
        self._count(node, "late" if late else result)
        if result == "succeeded":
            node.confirm(sync.generation)
            node.synced_at = self.now
            self.changes.reached.add(sync.release_id)
            self._take_hour(node, sync, update.before)
            if update.boundary is not None:
                before = update.boundary
                self.boundaries.append((node.id, sync.release_id, before.lineage, str(before.transaction)))
        elif not late:
            node.fail(error.code, error.message, self.now, sync.generation)
            if sync.generation >= node.target_generation:
                node.failed_generation = sync.generation
                node.retry_at = node_state.clamped(update.retry_at, self.now)
        if late:
            self.changes.late[sync.id] = result
            return wire.SyncState(status, 0, late=True)
        node.enter("online", self.now)
        if result == "succeeded":
            self.changes.end(sync.id, "succeeded")
        else:
            self.changes.end(sync.id, "failed", error.code, error.message)
        return wire.SyncState(result, 0)

    def _take_hour(self, node: NodeRow, sync: ReportedSync, body: bytes) -> None:
        """Keep the node's calls of the hour before, if it has told them: its result counts without them too."""
        if not body:
            return
        try:
            hours_before.check(body)
        except ValueError as error:
            log.warning("the calls of the hour before of node %s are left out: %s", node.id, error)
        else:
            self.hours.append((sync.release_id, node.id, body.hex()))

    def _count(self, node: NodeRow, status: str) -> None:
        self.changed.add(node.id)
        self.counted.append(status)

    async def save(self, conn: Connection) -> None:
        """Write the decisions."""
        await self.changes.save(conn)
        if self.hours:
            await conn.execute(STORE_HOURS, *map(list, zip(*self.hours, strict=True)))
        if self.boundaries:
            await conn.execute(WRITE_BOUNDARIES, *map(list, zip(*self.boundaries, strict=True)), self.now)
        await node_state.save(conn, [self.nodes[node_id] for node_id in self.changed])

    def committed(self) -> Committed:
        """Return what the transaction changes once it is committed."""
        rows = [self.nodes[node_id] for node_id in self.changed]
        confirmed = [node.id for node in rows if node.synced_at == self.now]
        return Committed(self.now, rows, confirmed, 0, self.counted)


def unknown_sync(sync_id: str) -> ProblemError:
    """Return the problem that answers a report of a sync that the node doesn't have."""
    return ProblemError("unknown_sync", f"this node has no sync {sync_id[:64]}")
