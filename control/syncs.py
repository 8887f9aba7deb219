"""How a sync goes on and ends: `PUT /v1/syncs/{id}`, each report one transaction (R 6.1 to 6.4).

A result writes what the node now runs, its last sync, the log's row and the node's state together. An open sync has a
lease; past it the sync is expired, a counted failure, and what still comes is recorded as late.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from control import faults, noderows, plan, queries, wire
from control.noderows import NodeRow
from control.problems import ProblemError
from control.services import Services

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
        self.codes.append(noderows.clean(code))
        self.messages.append(noderows.clean(message))

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


async def put(services: Services, sync_id: str, node_id: str, update: wire.SyncUpdate) -> wire.SyncState:
    """Take a node's report of its sync; the same report again changes nothing. Raises `ProblemError`."""
    try:
        sync_id = str(UUID(sync_id))
    except ValueError:
        raise _unknown(sync_id) from None
    _check(update)
    services.presence.seen(node_id)

    async def work(conn: Any) -> tuple[wire.SyncState, NodeRow, str]:
        now = services.clock.now()
        sync = await conn.fetchrow(SQL["sync"], sync_id, node_id)
        if sync is None:
            raise _unknown(sync_id)
        node = (await noderows.load(conn, [node_id]))[node_id]
        report = _Report(services, conn, now, node, sync, update)
        if sync["status"] == "running" and sync["lease_until"] <= now:
            report.expire()
        state = await (report.running() if update.status == "running" else report.result())
        if report.counted:
            await report.ended.save(conn, now)
            await noderows.save(conn, [node])
        faults.reach("control.result.before")
        return state, node, report.counted

    state, node, counted = await services.db.transaction(work)
    faults.reach("control.result.after")
    if counted:
        services.metrics.sync(counted)
        services.fleet.confirm(node_id, node.digest, node.confirmed_generation)
    return state


@dataclass(slots=True)
class _Report:
    """One report, in its transaction."""

    services: Services
    conn: Any
    now: datetime
    node: NodeRow
    sync: Any
    update: wire.SyncUpdate
    ended: Ended = field(default_factory=Ended)
    status: str = ""
    """Of the sync, before this report."""
    counted: str = ""
    """How the report changed the sync; '' when it changed nothing but the lease."""

    def __post_init__(self) -> None:
        self.status = self.sync["status"]

    def expire(self) -> None:
        self.ended.expire(self.sync, self.node, self.now)
        self.status = self.counted = "expired"

    async def running(self) -> wire.SyncState:
        """Renew the lease, unless something newer is wanted of the node."""
        if self.status == "running" and self.node.target_generation > self.sync["generation"]:
            self.status = self.counted = "superseded"
            self.ended.add(self.sync["id"], "superseded")
            self.node.enter("online", self.now)
        if self.status != "running":
            return wire.SyncState(self.status, 0)
        lease = self.services.settings.sync_lease
        until = self.now + timedelta(seconds=lease)
        await self.conn.execute(SQL["renew_sync"], self.sync["id"], until, noderows.clean(self.update.step))
        return wire.SyncState("running", lease)

    async def result(self) -> wire.SyncState:
        """End the sync, or record the result as late."""
        result = self.update.status
        if self.status == result or self.sync["late_status"] == result:
            return wire.SyncState(self.status, 0, late=self.status != result)
        late = self.status != "running"
        error = self.update.error or wire.SyncError("unknown", "the node gave no reason")
        if self.update.inventory is not None:
            self.node.report(self.update.inventory, wire.digest(self.update.inventory))
            if result == "succeeded" and not await self._reached(self.update.inventory):
                result = "failed"
                error = wire.SyncError(NOT_AT_TARGET, "the node says it succeeded, but doesn't run the release")
                if self.status == result:  # this very report, once more
                    return wire.SyncState(self.status, 0)
        self.counted = "late" if late else result
        if late:
            await self.conn.execute(SQL["late"], self.sync["id"], result, self.now)
        if result == "succeeded":
            self.node.confirm(self.sync["generation"])
            self.node.synced_at = self.now
        elif not late:
            self.node.fail(error.code, error.message, self.now)
            self.node.failed_generation = self.sync["generation"]
            self.node.retry_at = noderows.aware(self.update.retry_at)
        if late:
            return wire.SyncState(self.status, 0, late=True)
        self.node.enter("online", self.now)
        if result == "succeeded":
            self.ended.add(self.sync["id"], "succeeded")
        else:
            self.ended.add(self.sync["id"], "failed", error.code, error.message)
        return wire.SyncState(result, 0)

    async def _reached(self, inventory: wire.Inventory) -> bool:
        release_id = self.sync["release_id"]
        releases = await self.services.targets.releases(self.conn, [release_id])
        return release_id in releases and plan.at_target(inventory, releases[release_id])


def _check(update: wire.SyncUpdate) -> None:
    if update.status == "succeeded" and update.inventory is None:
        raise ProblemError("invalid_body", "a success must say what the node now runs", field="inventory")
    if update.inventory is not None:
        wrong = plan.inconsistency(update.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")


def _unknown(sync_id: str) -> ProblemError:
    return ProblemError("unknown_sync", f"this node has no sync {sync_id[:64]}")
