"""The third step of a poll: what nodes that aren't known to be at their target must do, for a batch of nodes at once.

One transaction reads the nodes, what they run, their targets and open syncs (`node_state.read`), decides for each of
them (R 4.3) by the rules in `plan`, and writes the decisions (R 6.1). The message of a plan is made after COMMIT.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple
from uuid import uuid4

from control.clock import AHEAD, Clock
from control.problems import ProblemError
from control.protocol import faults, wire
from control.storage import queries
from control.storage.connection import Connection
from control.storage.object_store import Store
from control.sync import node_state, plan
from control.sync.node_state import NewSync, NodeRow, RunningSync, StoredNodes, SyncChanges, Targets
from control.sync.write_batches import Committed, NodeLocked, Written

LINES = 10
"""Maximum lines of a node in the log of syncs for one generation, in `WINDOW`. Further attempts share the newest line,
whose `folded` counts them: a node that fails at once and retries would write two hundred lines a second."""
WINDOW = timedelta(hours=1)
SIGNED = 20
"""URLs that are signed before other tasks run."""


class SchemaText(NamedTuple):
    """The SQL of a revision of a schema change."""

    number: int
    revision: int
    sql: str


class FullLog(NamedTuple):
    """A node that has used up its lines in the log of syncs, and the id of its newest line."""

    node_id: str
    newest: str


FULL = queries.load("syncs").rows("full", FullLog)
POLL = queries.load("poll")
REVISIONS = POLL.rows("revisions", plan.Revision)
TEXTS = POLL.rows("texts", SchemaText)


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A poll that the database must decide."""

    node_id: str
    digest: str
    inventory: wire.Inventory | None
    """Its digest has been checked to be `digest`."""
    failed: wire.FailedGeneration | None
    capabilities_digest: str = ""
    """'' if the node's version sends its capabilities only when it joins."""
    capabilities: dict[str, object] | None = None
    protocol: int = 1
    generation: int = 0
    """The generation of the plan that the node completed last."""


@dataclass(slots=True)
class OpenedSync:
    """A sync that a node must perform."""

    sync_id: str
    generation: int
    release: plan.TargetRelease
    work: plan.Work
    texts: Mapping[tuple[int, int], str]
    """The SQL of schema changes, by number and revision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a poll. `kind` is what metrics count it as."""

    kind: Literal["at_target", "held", "waits", "report", "plan"]
    until: datetime | None = None
    """With `waits`: the node failed this target and tries again then."""
    message: wire.Plan | wire.Report | None = None
    """The answer's body; None if there is nothing to do, or not yet."""
    opened: OpenedSync | None = None
    """With `plan`: what its message is made from."""


AT_TARGET = Decision("at_target")
HELD = Decision("held")
REPORT_WANTED = Decision("report", message=wire.Report())

Outcome = Decision | ProblemError


class Reconciler:
    """Decides batches of polls; `write` and `finish` are used by `WriteBatches`."""

    def __init__(
        self,
        clock: Clock,
        targets: Targets,
        store: Store,
        lease: float,
        sync_parent: Callable[[str, str], str] | None = None,
    ) -> None:
        """`lease`: seconds without a report after which a sync expires.

        `sync_parent`: `Tracing.sync_parent`, if traces are sent.
        """
        self._clock = clock
        self._targets = targets
        self._store = store
        self._lease = lease
        self._sync_parent = sync_parent

    async def write(self, requests: list[NodeRequest], careful: bool, conn: Connection) -> Written[Decision]:
        """Decide what these nodes must do and write it, in the transaction of `conn`."""
        now = self._clock.now()
        taken = {request.node_id: request for request in requests}
        if careful:
            free = await node_state.lock_free(conn, taken)
            taken = {node_id: request for node_id, request in taken.items() if node_id in free}
        told = {node_id for node_id, request in taken.items() if request.inventory is not None}
        stored = await node_state.read(conn, taken, told)
        nodes = stored.rows
        wanted = {node.release_id for node in nodes.values() if node.release_id is not None}
        releases = await self._targets.releases(conn, wanted)
        revisions = plan.by_number(await conn.fetch(REVISIONS))
        changes = SyncChanges(now, self._lease)
        batch = _PollBatch(now, stored, releases, revisions, changes)
        for index, request in enumerate(taken.values()):
            if index % node_state.TURN == node_state.TURN - 1:
                await asyncio.sleep(0)
            batch.decide(request)
        outcomes, opened = batch.outcomes, batch.opened
        started = [*changes.opened, *(sync for sync, _, _ in changes.refused)]
        if started:
            columns = [sync.node_id for sync in started], [sync.generation for sync in started]
            lines = dict(await conn.fetch(FULL, *columns, now - WINDOW, LINES))
            changes.fold(lines)
            for node_id, sync_id in lines.items():
                nodes[node_id].syncs_folded += 1
                batch.changed.add(node_id)
                if node_id in opened:
                    opened[node_id].sync_id = sync_id
        due = {(c.number, c.revision): c.planned for sync in opened.values() for c in sync.work.schema_changes}
        if due:
            for number, revision, sql in await conn.fetch(TEXTS, min(due)[0], max(due)[0]):
                batch.texts[number, revision] = sql
        new = sorted(change for change, planned in due.items() if not planned)
        if new:
            # They are in a plan for the first time, so they can't be withdrawn from now on.
            columns = [str(number) for number, _ in new], [str(revision) for _, revision in new]
            await conn.execute(POLL["mark_planned"], *columns, now)
        await changes.save(conn)
        await node_state.save(conn, [nodes[id] for id in batch.changed])
        faults.reach("control.poll.before")
        confirmed = [node.id for node in nodes.values() if node.synced_at == now]
        count = len(changes.opened) + len(changes.reopened)
        committed = Committed(now, nodes.values(), confirmed, count, [sync.status for sync in changes.ended])
        return Written([outcomes.get(request.node_id, NodeLocked.LOCKED) for request in requests], committed)

    async def finish(self, decision: Decision) -> Decision:
        """Add the plan that the node gets (R 3.3, 4.1) to a decision that opens a sync, with URLs of the artifacts."""
        opened = decision.opened
        if opened is None:
            return decision
        parent = self._sync_parent
        traceparent = "" if parent is None else parent(opened.release.traceparent, opened.sync_id)
        message = await plan_message(opened, self._store, self._lease, traceparent)
        return replace(decision, message=message)


async def plan_message(opened: OpenedSync, store: Store, lease: float, traceparent: str = "") -> wire.Plan:
    """Return the plan that a node gets (R 3.3, 4.1), with URLs of the artifacts."""
    functions = []
    for index, f in enumerate(opened.release.functions):
        if index % SIGNED == SIGNED - 1:
            await asyncio.sleep(0)
        url = await store.location(f.sha256, f.artifact_id)
        functions.append(
            wire.PlannedFunction(
                name=f.name,
                version=f.version,
                sha256=f.sha256,
                size=f.size,
                url=url,
                manifest=f.manifest,
                manifest_digest=f.manifest_digest,
            )
        )
    return wire.Plan(
        sync_id=opened.sync_id,
        lease=lease,
        generation=opened.generation,
        release_id=opened.release.id,
        release_number=opened.release.number,
        schema_floor=opened.release.schema_floor,
        schema_changes=[
            wire.PlannedChange(c.number, c.revision, c.name, c.checksum, opened.texts[c.number, c.revision])
            for c in opened.work.schema_changes
        ],
        functions=functions,
        remove=list(opened.work.remove),
        traceparent=traceparent,
    )


@dataclass(slots=True)
class _PollBatch:
    """Decides for the nodes of one transaction, based on the rows it has read."""

    now: datetime
    stored: StoredNodes
    releases: dict[str, plan.TargetRelease]
    revisions: plan.Revisions
    changes: SyncChanges
    """The changes that the decisions make to the log of syncs."""
    outcomes: dict[str, Outcome | NodeLocked] = field(default_factory=dict)
    """The decisions, by node."""
    opened: dict[str, OpenedSync] = field(default_factory=dict)
    """The syncs that were opened, from which plans are made, by node."""
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    """The SQL of the schema changes in these plans, by number and revision; filled in before the plans are made."""
    changed: set[str] = field(default_factory=set)
    """Nodes whose rows must be written."""

    def decide(self, request: NodeRequest) -> None:
        """Decide what the polling node must do."""
        node = self.stored.rows.get(request.node_id)
        inventory = request.inventory or self.stored.inventories.get(request.node_id)
        if node is None or node.removed or inventory is None:
            self.outcomes[request.node_id] = ProblemError("unknown_node", "this node was removed; join again")
        else:
            self.outcomes[node.id] = self._decide(node, request, inventory)

    def _decide(self, node: NodeRow, request: NodeRequest, inventory: wire.Inventory) -> Outcome:
        if request.capabilities_digest not in ("", node.capabilities_digest):
            if request.capabilities is None:
                return REPORT_WANTED
            node.tell(request.capabilities, request.capabilities_digest, request.protocol)
            self.changed.add(node.id)
        if request.digest != node.digest:
            if request.inventory is None:
                return REPORT_WANTED
            node.report(request.inventory, request.digest)
            self.changed.add(node.id)
        if request.generation > max(node.target_generation, node.ran_generation):
            node.ran_generation = request.generation
            self.changed.add(node.id)
        open_sync = self.stored.open_syncs.get(node.id)
        if open_sync is not None and open_sync.lease_until <= self.now:
            self.changes.expire(open_sync, node)
            self.changed.add(node.id)
            open_sync = None
        if node.held:
            return self._hold(node, open_sync)
        if node.release_id is None:
            return self._confirm(node, open_sync)
        release = self.releases[node.release_id]
        mismatch = plan.history_mismatch(inventory, self.revisions)
        if mismatch:
            return self._refuse(node, open_sync, mismatch)
        if plan.at_target(inventory, release):
            return self._confirm(node, open_sync)
        if request.failed is not None and request.failed.generation == node.target_generation == node.failed_generation:
            until = node_state.clamped(request.failed.retry_at, self.now)
            # The node uses control's clock: a time from a clock that was ahead when the sync failed is useless.
            failed_ahead = node.error_at is not None and node.error_at > self.now + AHEAD
            if until is not None and until > self.now and not failed_ahead:
                return Decision("waits", until)
        return self._open(node, open_sync, release, plan.work(inventory, release, self.revisions))

    def _open(
        self, node: NodeRow, open_sync: RunningSync | None, release: plan.TargetRelease, work: plan.Work
    ) -> Decision:
        """Open a sync, or answer with the node's open one if that has the same target."""
        target = node.target_generation
        if node.state != "syncing":
            node.enter("syncing", self.now)
            self.changed.add(node.id)
        if open_sync is not None and open_sync.generation == target:
            sync_id = open_sync.id
            self.changes.renewed.append(sync_id)
        else:
            sync_id = str(uuid4())
            self.changes.opened.append(NewSync(sync_id, node.id, release.id, str(target)))
            if open_sync is not None:
                self.changes.end(open_sync.id, "superseded")
        opened = self.opened[node.id] = OpenedSync(sync_id, target, release, work, self.texts)
        return Decision("plan", opened=opened)

    def _confirm(self, node: NodeRow, open_sync: RunningSync | None) -> Decision:
        """Confirm a node at its target. If it has an open sync, the sync succeeded and its report was lost."""
        if node.release_id is not None and node.confirmed_generation < node.target_generation:
            self.changes.reached.add(node.release_id)
        if open_sync is not None:
            reached = open_sync.generation == node.target_generation
            self.changes.end(open_sync.id, "succeeded" if reached else "superseded")
            if reached and node.release_id is not None:
                node.synced_at = self.now
        if node.state == "syncing":
            node.enter("online", self.now)
        node.confirm(node.target_generation)
        self.changed.add(node.id)
        return AT_TARGET

    def _hold(self, node: NodeRow, open_sync: RunningSync | None) -> Decision:
        """Let a node stay where a restore brings it: what it has counts as neither its target nor a failure."""
        if open_sync is not None:
            self.changes.end(open_sync.id, "superseded")
        if node.state == "syncing":
            node.enter("online", self.now)
            self.changed.add(node.id)
        return HELD

    def _refuse(self, node: NodeRow, open_sync: RunningSync | None, mismatch: str) -> ProblemError:
        """Refuse a node for which no plan can be right, and record the failure once for each target."""
        code, target = "history_mismatch", node.target_generation
        if open_sync is not None:
            self.changes.end(open_sync.id, "failed", code, mismatch)
            node.enter("online", self.now)
        if node.failed_generation != target or node.error_code != code:
            node.fail(code, mismatch, self.now, target)
            node.failed_generation = target
            sync = NewSync(str(uuid4()), node.id, node.release_id or "", str(target))
            self.changes.refused.append((sync, code, mismatch))
            self.changed.add(node.id)
        return ProblemError(
            code,
            f"{mismatch}; if control's metadata were restored from a backup, register again what they lack (`skerry "
            "recover` shows it); else join the node to the control plane it is of, or give it an empty database",
        )
