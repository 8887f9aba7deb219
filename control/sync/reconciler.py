"""Polls that need the database: nodes that aren't known to be at target, taken together in slices.

A slice reads its nodes, what they run, their targets and open syncs, decides
for each (R 4.3), and writes what it decided (R 6.1).
"""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from control import faults, wire
from control.api.services import Services
from control.clock import AHEAD
from control.problems import ProblemError
from control.storage import queries
from control.sync import log_folding, node_state, plan, targets
from control.sync.node_state import NodeRow
from control.sync.reports import Ended
from control.sync.write_batches import Held, Slices

SQL = queries.load("syncs")


@dataclass(frozen=True, slots=True)
class Request:
    """What a node says of itself."""

    node_id: str
    digest: str
    inventory: wire.Inventory | None
    """Checked: its digest is `digest`."""
    failed: wire.FailedGeneration | None
    capabilities_digest: str = ""
    """'' of a node of a version that tells its capabilities only when it joins."""
    capabilities: dict[str, Any] | None = None
    protocol: int = wire.PROTOCOL


@dataclass(frozen=True, slots=True)
class AtTarget:
    """The node has nothing to do."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The node failed this target, and waits until then before it tries again."""

    until: datetime


@dataclass(frozen=True, slots=True)
class ReportWanted:
    """Control doesn't know what the node runs, or what it can run."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The node has a sync to do."""

    sync_id: str
    generation: int
    release: plan.Release
    work: plan.Work
    texts: dict[tuple[int, int], str] = field(default_factory=dict)


Decision = AtTarget | Waits | ReportWanted | Opened
Outcome = Decision | ProblemError


def opener(services: Services) -> Slices[Request, Decision]:
    """Decides what polling nodes must do; its answers raise `ProblemError` where there is no database."""

    async def decide(requests: list[Request], careful: bool) -> list[Outcome | Held]:
        outcomes = await decide_slice(services, requests, careful=careful)
        return [outcomes.get(request.node_id, Held.LOCKED) for request in requests]

    return Slices(lambda request: request.node_id, decide)


async def decide_slice(services: Services, requests: list[Request], *, careful: bool = False) -> dict[str, Outcome]:
    """Decide for these nodes in one transaction; raises `ProblemError` when there is no database.

    With `careful`, nodes that another transaction has locked are left out, where else they are waited for.
    """

    async def work(conn: Any) -> _Slice:
        slice_ = _Slice(services, services.clock.now())
        taken = {request.node_id: request for request in requests}
        if careful:
            free = await node_state.lock_free(conn, taken)
            taken = {node_id: request for node_id, request in taken.items() if node_id in free}
        await slice_.decide(conn, taken)
        await slice_.save(conn)
        faults.reach("control.poll.before")
        return slice_

    done = await services.slices.transaction(work)
    faults.reach("control.poll.after")
    for node in done.nodes.values():
        services.fleet.confirm(node)
        if node.synced_at == done.now:
            services.presence.confirmed(node.id)
    if done.opened or done.reopened:
        services.metrics.sync("opened", len(done.opened) + len(done.reopened))
    for status in done.ended.statuses:
        services.metrics.sync(status)
    return done.outcomes


@dataclass(slots=True)
class _Slice:
    """One transaction's reading, decisions and writing."""

    services: Services
    now: datetime
    nodes: dict[str, NodeRow] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    opened: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Rows of new syncs: id, node, release, generation."""
    refused: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)
    """Rows of syncs that failed before they began, with code and message."""
    reopened: list[str] = field(default_factory=list)
    """Ended syncs that stand for new ones."""
    refolded: list[tuple[str, str, str]] = field(default_factory=list)
    """Ended syncs that stand for ones that failed before they began, with code and message."""
    renewed: list[str] = field(default_factory=list)
    ended: Ended = field(default_factory=Ended)
    releases: dict[str, plan.Release] = field(default_factory=dict)
    revisions: plan.Revisions = field(default_factory=dict)

    async def decide(self, conn: Any, requests: dict[str, Request]) -> None:
        self.nodes = await node_state.load(conn, requests)
        stored = await node_state.stored_inventories(
            conn, [n for n in self.nodes.values() if requests[n.id].inventory is None]
        )
        open_syncs = {row["node_id"]: row for row in await conn.fetch(SQL["open_syncs"], sorted(requests))}
        self.releases = await self.services.targets.releases(
            conn, {node.release_id for node in self.nodes.values() if node.release_id is not None}
        )
        self.revisions = await targets.revisions(conn)
        for index, (node_id, request) in enumerate(requests.items()):
            if index % node_state.TURN == node_state.TURN - 1:
                await asyncio.sleep(0)
            node = self.nodes.get(node_id)
            if node is None or node.removed:
                self.outcomes[node_id] = ProblemError("unknown_node", "this node was removed; join again")
                continue
            inventory = request.inventory or stored[node_id]
            self.outcomes[node_id] = self._decide(node, request, inventory, open_syncs.get(node_id))
        await self._fold(conn)
        planned = [outcome for outcome in self.outcomes.values() if isinstance(outcome, Opened)]
        texts = await targets.texts(conn, {c.number for outcome in planned for c in outcome.work.schema_changes})
        for outcome in planned:
            outcome.texts.update(texts)

    def _decide(self, node: NodeRow, request: Request, inventory: wire.Inventory, open_sync: Any) -> Outcome:
        if request.capabilities_digest not in ("", node.capabilities_digest):
            if request.capabilities is None:
                return ReportWanted()
            node.tell(request.capabilities, request.capabilities_digest, request.protocol)
            self.changed.add(node.id)
        if request.inventory is not None and request.digest != node.digest:
            node.report(request.inventory, request.digest)
            self.changed.add(node.id)
        elif request.inventory is None and request.digest != node.digest:
            return ReportWanted()
        if open_sync is not None and open_sync["lease_until"] <= self.now:
            self.ended.expire(open_sync, node, self.now)
            self.changed.add(node.id)
            open_sync = None
        target = node.target_generation
        if node.release_id is None:
            self._confirm(node, open_sync)
            return AtTarget()
        release = self.releases[node.release_id]
        mismatch = plan.history_mismatch(inventory, self.revisions)
        if mismatch:
            return self._refuse(node, open_sync, mismatch)
        if plan.at_target(inventory, release):
            self._confirm(node, open_sync)
            return AtTarget()
        if request.failed is not None and request.failed.generation == target == node.failed_generation:
            until = node_state.told(request.failed.retry_at, self.now)
            # The node goes by control's clock: what a clock said that was ahead when the sync failed is worth nothing.
            failed_ahead = node.error_at is not None and node.error_at > self.now + AHEAD
            if until is not None and until > self.now and not failed_ahead:
                return Waits(until)
        return self._open(node, open_sync, release, plan.work(inventory, release, self.revisions))

    def _open(self, node: NodeRow, open_sync: Any, release: plan.Release, work: plan.Work) -> Opened:
        target = node.target_generation
        if node.state != "syncing":
            node.enter("syncing", self.now)
            self.changed.add(node.id)
        if open_sync is not None and open_sync["generation"] == target:
            self.renewed.append(open_sync["id"])
            return Opened(open_sync["id"], target, release, work)
        if open_sync is not None:
            self.ended.add(open_sync["id"], "superseded")
        sync_id = str(uuid4())
        self.opened.append((sync_id, node.id, release.id, str(target)))
        return Opened(sync_id, target, release, work)

    async def _fold(self, conn: Any) -> None:
        """Take lines of the log that there are for the attempts of nodes that have had theirs."""
        attempts = [(row[1], row[3]) for row in (*self.opened, *self.refused)]
        lines = await log_folding.full(conn, attempts, self.now)
        for node_id, sync_id in lines.items():
            self.nodes[node_id].syncs_folded += 1
            self.changed.add(node_id)
            outcome = self.outcomes[node_id]
            if isinstance(outcome, Opened):
                self.outcomes[node_id] = replace(outcome, sync_id=sync_id)
                self.reopened.append(sync_id)
        self.refolded = [(lines[row[1]], *row[4:]) for row in self.refused if row[1] in lines]
        self.opened = [row for row in self.opened if row[1] not in lines]
        self.refused = [row for row in self.refused if row[1] not in lines]

    def _confirm(self, node: NodeRow, open_sync: Any) -> None:
        """The node is at target; so it was a success if there is a sync whose report got lost."""
        if open_sync is not None:
            reached = open_sync["generation"] == node.target_generation
            self.ended.add(open_sync["id"], "succeeded" if reached else "superseded")
            if reached:
                node.synced_at = self.now
        if node.state == "syncing":
            node.enter("online", self.now)
        node.confirm(node.target_generation)
        self.changed.add(node.id)

    def _refuse(self, node: NodeRow, open_sync: Any, mismatch: str) -> ProblemError:
        """No plan can be right for this node: a failure, recorded once for each target."""
        code, target = "history_mismatch", node.target_generation
        if open_sync is not None:
            self.ended.add(open_sync["id"], "failed", code, mismatch)
            node.enter("online", self.now)
        if node.failed_generation != target or node.error_code != code:
            node.fail(code, mismatch, self.now)
            node.failed_generation = target
            self.refused.append((str(uuid4()), node.id, node.release_id or "", str(target), code, mismatch))
            self.changed.add(node.id)
        return ProblemError(
            code, f"{mismatch}; give the node an empty database, or join it to the control plane it is of"
        )

    async def save(self, conn: Any) -> None:
        lease = self.now + timedelta(seconds=self.services.settings.sync_lease)
        await self.ended.save(conn, self.now)
        if self.renewed:
            await conn.execute(SQL["renew_syncs"], self.renewed, lease)
        if self.opened:
            await conn.execute(SQL["insert_syncs"], *_columns(self.opened), self.now, lease)
        if self.reopened:
            await conn.execute(SQL["reopen_syncs"], self.reopened, self.now, lease)
        if self.refolded:
            await conn.execute(SQL["fold_failed_syncs"], *_columns(self.refolded), self.now)
        if self.refused:
            await conn.execute(SQL["insert_failed_syncs"], *_columns(self.refused), self.now)
        await node_state.save(conn, [self.nodes[id] for id in self.changed])


def _columns(rows: list[Any]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
