"""How a sync goes on and ends: `PUT /v1/syncs/{id}` (R 6.1 to 6.4), reports that come together in one transaction.

A result's transaction writes what the node now runs, its last sync, the log's row and the node's state. An open sync
has a lease; past it the sync is expired, a counted failure, and what still comes is recorded as late.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from control import faults, wire
from control.api.services import Services
from control.problems import ProblemError
from control.storage import queries
from control.sync import node_state, plan
from control.sync.node_state import NodeRow
from control.sync.targets import Targets
from control.sync.write_batches import Held, Slices

SQL = queries.load("syncs")

EXPIRED = "sync_expired"
NOT_AT_TARGET = "not_at_target"


@dataclass(slots=True)
class Ended:
    """Open syncs that a transaction ends: written together."""

    ids: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, sync_id: str, status: str, code: str = "", message: str = "") -> None:
        self.ids.append(sync_id)
        self.statuses.append(status)
        self.codes.append(node_state.clean(code))
        self.messages.append(node_state.clean(message))

    def expire(self, sync: Any, node: NodeRow, now: datetime) -> None:
        """The lease of `sync`, a row of open_syncs, has passed: a failure of `node`."""
        late = (now - sync["lease_until"]).total_seconds()
        after = f" after the step {sync['step']!r}" if sync["step"] else ""
        message = f"nothing was heard of the sync{after}; its lease ended {late:.0f} s ago"
        self.add(sync["id"], "expired", EXPIRED, message)
        node.fail(EXPIRED, message, now)
        node.enter("online", now)

    async def save(self, conn: Any, now: datetime) -> None:
        if self.ids:
            await conn.execute(SQL["end_syncs"], self.ids, self.statuses, self.codes, self.messages, now)


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of its sync."""

    sync_id: str
    node_id: str
    update: wire.SyncUpdate


async def put(services: Services, sync_id: str, node_id: str, update: wire.SyncUpdate) -> wire.SyncState:
    """Take a node's report of its sync; the same report again changes nothing. Raises `ProblemError`."""
    try:
        sync_id = str(UUID(sync_id))
    except ValueError:
        raise _unknown(sync_id) from None
    _check(update)
    services.presence.seen(node_id)
    return await services.reports.ask(Report(sync_id, node_id, update))


def reports(services: Services) -> Slices[Report, wire.SyncState]:
    """Takes the nodes' reports of their syncs."""
    return Slices(lambda report: report.node_id, lambda taken, careful: take(services, taken, careful=careful))


async def take(
    services: Services, taken: list[Report], *, careful: bool = False
) -> list[wire.SyncState | ProblemError | Held]:
    """Take these reports, one of a node, in one transaction; raises `ProblemError` when there is no database.

    With `careful`, nodes that another transaction has locked are left out, where else they are waited for.
    """

    async def work(conn: Any) -> _Slice:
        slice_ = _Slice(services.clock.now(), services.settings.sync_lease)
        free = await node_state.lock_free(conn, {report.node_id for report in taken}) if careful else None
        await slice_.read(conn, services.targets, [r for r in taken if free is None or r.node_id in free])
        for index, report in enumerate(taken):
            if index % node_state.TURN == node_state.TURN - 1:
                await asyncio.sleep(0)
            if free is None or report.node_id in free:
                slice_.take(report)
            else:
                slice_.answers.append(Held.LOCKED)
        await slice_.save(conn)
        faults.reach("control.result.before")
        return slice_

    done = await services.slices.transaction(work)
    faults.reach("control.result.after")
    for counted in done.counted:
        services.metrics.sync(counted)
    for node_id in done.changed:
        services.fleet.confirm(done.nodes[node_id])
        if done.nodes[node_id].synced_at == done.now:
            services.presence.confirmed(node_id)
    return done.answers


@dataclass(slots=True)
class _Slice:
    """One transaction's reading, decisions and writing."""

    now: datetime
    lease: float
    nodes: dict[str, NodeRow] = field(default_factory=dict)
    syncs: dict[str, Any] = field(default_factory=dict)
    releases: dict[str, plan.Release] = field(default_factory=dict)
    answers: list[wire.SyncState | ProblemError | Held] = field(default_factory=list)
    ended: Ended = field(default_factory=Ended)
    renewed: dict[str, str] = field(default_factory=dict)
    """The step of each sync whose lease is renewed."""
    late: dict[str, str] = field(default_factory=dict)
    """The result of each sync that had ended before."""
    changed: set[str] = field(default_factory=set)
    counted: list[str] = field(default_factory=list)

    async def read(self, conn: Any, known: Targets, taken: list[Report]) -> None:
        ids = sorted(report.sync_id for report in taken)
        self.syncs = {row["id"]: row for row in await conn.fetch(SQL["syncs"], ids)}
        self.nodes = await node_state.load(conn, {report.node_id for report in taken})
        succeeded = {report.sync_id for report in taken if report.update.status == "succeeded"} & self.syncs.keys()
        self.releases = await known.releases(conn, {self.syncs[sync_id]["release_id"] for sync_id in succeeded})

    def take(self, report: Report) -> None:
        sync = self.syncs.get(report.sync_id)
        if sync is None or sync["node_id"] != report.node_id:
            self.answers.append(_unknown(report.sync_id))
            return
        node, status = self.nodes[report.node_id], sync["status"]
        if status == "running" and sync["lease_until"] <= self.now:
            self.ended.expire(sync, node, self.now)
            status = "expired"
            self._count(node, status)
        step = self._running if report.update.status == "running" else self._result
        self.answers.append(step(node, sync, status, report.update))

    def _running(self, node: NodeRow, sync: Any, status: str, update: wire.SyncUpdate) -> wire.SyncState:
        """Renew the lease, unless something newer is wanted of the node."""
        if status == "running" and node.target_generation > sync["generation"]:
            status = "superseded"
            self.ended.add(sync["id"], status)
            node.enter("online", self.now)
            self._count(node, status)
        if status != "running":
            return wire.SyncState(status, 0)
        self.renewed[sync["id"]] = node_state.clean(update.step)
        return wire.SyncState("running", self.lease)

    def _result(self, node: NodeRow, sync: Any, status: str, update: wire.SyncUpdate) -> wire.SyncState:
        """End the sync, or record the result as late."""
        result = update.status
        if status == result or sync["late_status"] == result:
            return wire.SyncState(status, 0, late=status != result)
        late = status != "running"
        error = update.error or wire.SyncError("unknown", "the node gave no reason")
        if update.inventory is not None:
            node.report(update.inventory, wire.digest(update.inventory))
            release = self.releases.get(sync["release_id"])
            if result == "succeeded" and (release is None or not plan.at_target(update.inventory, release)):
                result = "failed"
                error = wire.SyncError(NOT_AT_TARGET, "the node says it succeeded, but doesn't run the release")
                if status == result:  # this very report, once more
                    return wire.SyncState(status, 0)
        self._count(node, "late" if late else result)
        if result == "succeeded":
            node.confirm(sync["generation"])
            node.synced_at = self.now
        elif not late:
            node.fail(error.code, error.message, self.now)
            node.failed_generation = sync["generation"]
            node.retry_at = node_state.told(update.retry_at, self.now)
        if late:
            self.late[sync["id"]] = result
            return wire.SyncState(status, 0, late=True)
        node.enter("online", self.now)
        if result == "succeeded":
            self.ended.add(sync["id"], "succeeded")
        else:
            self.ended.add(sync["id"], "failed", error.code, error.message)
        return wire.SyncState(result, 0)

    def _count(self, node: NodeRow, status: str) -> None:
        self.changed.add(node.id)
        self.counted.append(status)

    async def save(self, conn: Any) -> None:
        await self.ended.save(conn, self.now)
        if self.renewed:
            until = self.now + timedelta(seconds=self.lease)
            await conn.execute(SQL["go_on"], list(self.renewed), list(self.renewed.values()), until)
        if self.late:
            await conn.execute(SQL["late"], list(self.late), list(self.late.values()), self.now)
        await node_state.save(conn, [self.nodes[node_id] for node_id in self.changed])


def _check(update: wire.SyncUpdate) -> None:
    if update.status == "succeeded" and update.inventory is None:
        raise ProblemError("invalid_body", "a success must say what the node now runs", field="inventory")
    if update.inventory is not None:
        wrong = plan.inconsistency(update.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")


def _unknown(sync_id: str) -> ProblemError:
    return ProblemError("unknown_sync", f"this node has no sync {sync_id[:64]}")
