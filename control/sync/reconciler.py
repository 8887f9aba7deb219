"""The third step of a poll: what a node must do that isn't known to be at its target, for a batch of nodes at once.

One transaction reads the nodes, what they run, their targets and open syncs (`node_state.read`), decides for each of
them (R 4.3) by the rules in `plan`, and writes what was decided (R 6.1). The message of a plan is made after COMMIT.
"""

import asyncio
from collections.abc import Callable, Sequence
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
from control.sync.node_state import EndedSyncs, NodeRow, RunningSync, StoredNodes, Targets
from control.sync.write_batches import Committed, NodeLocked, Written

LINES = 10
"""Lines that a node gets in the log of syncs for one generation, in `WINDOW`. Its further attempts share the newest
of them, whose `folded` counts them: a node that fails at once and retries would write two hundred lines a second."""
WINDOW = timedelta(hours=1)
SIGNED = 20
"""URLs that are signed before other tasks get their turn."""


class SchemaText(NamedTuple):
    """The SQL of a revision of a schema change."""

    number: int
    revision: int
    sql: str


class FullLog(NamedTuple):
    """A node that has used up its lines in the log of syncs, and the id of its newest line."""

    node_id: str
    newest: str


SQL = queries.load("syncs")
FULL = SQL.rows("full", FullLog)
POLL = queries.load("poll")
TEXTS = POLL.rows("texts", SchemaText)


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A poll that the database must decide."""

    node_id: str
    digest: str
    inventory: wire.Inventory | None
    """Its digest is `digest`: that was checked."""
    failed: wire.FailedGeneration | None
    capabilities_digest: str = ""
    """'' if the node's version sends its capabilities only when it joins."""
    capabilities: dict[str, object] | None = None
    protocol: int = 1
    generation: int = 0
    """The generation of the plan that the node completed last."""


@dataclass(frozen=True, slots=True)
class OpenedSync:
    """A sync that a node is told to do."""

    sync_id: str
    generation: int
    release: plan.TargetRelease
    work: plan.Work
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    """The SQL of schema changes, by number and revision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a poll. `kind` is what metrics count it as."""

    kind: Literal["at_target", "waits", "report", "plan"]
    until: datetime | None = None
    """`waits`: the node failed this target, and tries again then."""
    message: wire.Plan | wire.Report | None = None
    """The answer's body; None where there is nothing to do, or not yet."""
    opened: OpenedSync | None = None
    """Only of a `plan`: what its message is made from."""


AT_TARGET = Decision("at_target")
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
        """`lease`: seconds after which a sync that nothing was heard of expires.

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
        stored = await node_state.read(conn, self._targets, taken, told)
        batch = _PollBatch(now, stored)
        for index, (node_id, request) in enumerate(taken.items()):
            if index % node_state.TURN == node_state.TURN - 1:
                await asyncio.sleep(0)
            batch.decide(request, request.inventory or stored.inventories.get(node_id))
        await batch.fold(conn)
        await batch.read_texts(conn)
        await batch.mark_planned(conn)
        await batch.save(conn, now + timedelta(seconds=self._lease))
        faults.reach("control.poll.before")
        answers = [batch.outcomes.get(request.node_id, NodeLocked.LOCKED) for request in requests]
        return Written(answers, batch.committed())

    async def finish(self, decision: Decision) -> Decision:
        """Add the plan that the node gets (R 3.3, 4.1) to a decision that opens a sync, with URLs of the artifacts."""
        opened = decision.opened
        if opened is None:
            return decision
        functions = []
        for index, f in enumerate(opened.release.functions):
            if index % SIGNED == SIGNED - 1:
                await asyncio.sleep(0)
            url = await self._store.location(f.sha256, f.artifact_id)
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
        parent = self._sync_parent
        message = wire.Plan(
            sync_id=opened.sync_id,
            lease=self._lease,
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
            traceparent="" if parent is None else parent(opened.release.traceparent, opened.sync_id),
        )
        return replace(decision, message=message)


class NewSync(NamedTuple):
    """A row of the log of syncs, as texts."""

    id: str
    node_id: str
    release_id: str
    generation: str


@dataclass(slots=True)
class _PollBatch:
    """One transaction's decisions, and what it writes for them."""

    now: datetime
    stored: StoredNodes
    outcomes: dict[str, Outcome | NodeLocked] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Nodes whose rows are written."""
    opened: list[NewSync] = field(default_factory=list)
    """New syncs."""
    refused: list[tuple[NewSync, str, str]] = field(default_factory=list)
    """New syncs that failed before they began, with code and message."""
    reopened: list[str] = field(default_factory=list)
    """Ended syncs whose lines in the log now stand for new syncs too."""
    refolded: list[tuple[str, str, str]] = field(default_factory=list)
    """Ended syncs whose lines stand for syncs that failed before they began too, with code and message."""
    renewed: list[str] = field(default_factory=list)
    """Open syncs whose leases begin anew."""
    ended: EndedSyncs = field(default_factory=EndedSyncs)

    def decide(self, request: NodeRequest, inventory: wire.Inventory | None) -> None:
        """Decide what one node, which runs `inventory`, must do."""
        node = self.stored.rows.get(request.node_id)
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
            self.ended.expire(open_sync, node, self.now)
            self.changed.add(node.id)
            open_sync = None
        if node.release_id is None:
            return self._confirm(node, open_sync)
        release = self.stored.releases[node.release_id]
        due = plan.due(inventory, release, self.stored.revisions)
        if due is None:
            return self._confirm(node, open_sync)
        if isinstance(due, str):
            return self._refuse(node, open_sync, due)
        if request.failed is not None and request.failed.generation == node.target_generation == node.failed_generation:
            until = node_state.clamped(request.failed.retry_at, self.now)
            # The node goes by control's clock: what a clock said that was ahead when the sync failed is worth nothing.
            failed_ahead = node.error_at is not None and node.error_at > self.now + AHEAD
            if until is not None and until > self.now and not failed_ahead:
                return Decision("waits", until)
        return self._open(node, open_sync, release, due)

    def _open(
        self, node: NodeRow, open_sync: RunningSync | None, release: plan.TargetRelease, work: plan.Work
    ) -> Decision:
        """Open a sync, or answer with the node's open one where that has the same target."""
        target = node.target_generation
        if node.state != "syncing":
            node.enter("syncing", self.now)
            self.changed.add(node.id)
        if open_sync is not None and open_sync.generation == target:
            self.renewed.append(open_sync.id)
            return Decision("plan", opened=OpenedSync(open_sync.id, target, release, work))
        if open_sync is not None:
            self.ended.add(open_sync.id, "superseded")
        sync_id = str(uuid4())
        self.opened.append(NewSync(sync_id, node.id, release.id, str(target)))
        return Decision("plan", opened=OpenedSync(sync_id, target, release, work))

    def _confirm(self, node: NodeRow, open_sync: RunningSync | None) -> Decision:
        """Confirm a node at its target. If it has an open sync, that has succeeded and its report was lost."""
        if node.release_id is not None and node.confirmed_generation < node.target_generation:
            self.ended.reached.add(node.release_id)
        if open_sync is not None:
            reached = open_sync.generation == node.target_generation
            self.ended.add(open_sync.id, "succeeded" if reached else "superseded")
            if reached and node.release_id is not None:
                node.synced_at = self.now
        if node.state == "syncing":
            node.enter("online", self.now)
        node.confirm(node.target_generation)
        self.changed.add(node.id)
        return AT_TARGET

    def _refuse(self, node: NodeRow, open_sync: RunningSync | None, mismatch: str) -> ProblemError:
        """Refuse a node for which no plan can be right: a failure, which is recorded once for each target."""
        code, target = "history_mismatch", node.target_generation
        if open_sync is not None:
            self.ended.add(open_sync.id, "failed", code, mismatch)
            node.enter("online", self.now)
        if node.failed_generation != target or node.error_code != code:
            node.fail(code, mismatch, self.now, target)
            node.failed_generation = target
            sync = NewSync(str(uuid4()), node.id, node.release_id or "", str(target))
            self.refused.append((sync, code, mismatch))
            self.changed.add(node.id)
        return ProblemError(
            code,
            f"{mismatch}; if control's metadata were restored from a backup, register again what they lack (`skerry "
            "recover` shows it); else join the node to the control plane it is of, or give it an empty database",
        )

    async def fold(self, conn: Connection) -> None:
        """Have new syncs share the newest line in the log if their node has used up its lines."""
        lines: dict[str, str] = {}
        new = [*self.opened, *(sync for sync, _, _ in self.refused)]
        if new:
            columns = [sync.node_id for sync in new], [sync.generation for sync in new]
            lines = dict(await conn.fetch(FULL, *columns, self.now - WINDOW, LINES))
        for node_id, sync_id in lines.items():
            self.stored.rows[node_id].syncs_folded += 1
            self.changed.add(node_id)
            outcome = self.outcomes[node_id]
            if isinstance(outcome, Decision) and outcome.opened is not None:
                self.outcomes[node_id] = replace(outcome, opened=replace(outcome.opened, sync_id=sync_id))
                self.reopened.append(sync_id)
        self.refolded = [(lines[s.node_id], code, text) for s, code, text in self.refused if s.node_id in lines]
        self.opened = [sync for sync in self.opened if sync.node_id not in lines]
        self.refused = [row for row in self.refused if row[0].node_id not in lines]

    async def read_texts(self, conn: Connection) -> None:
        """Read the SQL of the schema changes in the plans of opened syncs."""
        opened = [o.opened for o in self.outcomes.values() if isinstance(o, Decision) and o.opened is not None]
        numbers = {change.number for sync in opened for change in sync.work.schema_changes}
        if numbers:
            rows = await conn.fetch(TEXTS, min(numbers), max(numbers))
            texts = {(row.number, row.revision): row.sql for row in rows}
            for sync in opened:
                sync.texts.update(texts)

    async def mark_planned(self, conn: Connection) -> None:
        """Record which schema changes are in a plan for the first time: they can't be withdrawn from now on."""
        opened = [o.opened for o in self.outcomes.values() if isinstance(o, Decision) and o.opened is not None]
        new = {(c.number, c.revision) for sync in opened for c in sync.work.schema_changes if not c.planned}
        if new:
            columns = _columns([(str(number), str(revision)) for number, revision in sorted(new)])
            await conn.execute(POLL["mark_planned"], *columns, self.now)

    async def save(self, conn: Connection, lease_until: datetime) -> None:
        """Write what was decided."""
        await self.ended.save(conn, self.now)
        if self.renewed:
            await conn.execute(SQL["renew_syncs"], self.renewed, lease_until)
        if self.opened:
            await conn.execute(SQL["insert_syncs"], *_columns(self.opened), self.now, lease_until)
        if self.reopened:
            await conn.execute(SQL["reopen_syncs"], self.reopened, self.now, lease_until)
        if self.refolded:
            await conn.execute(SQL["fold_failed_syncs"], *_columns(self.refolded), self.now)
        if self.refused:
            rows = [(*sync, code, message) for sync, code, message in self.refused]
            await conn.execute(SQL["insert_failed_syncs"], *_columns(rows), self.now)
        await node_state.save(conn, [self.stored.rows[id] for id in self.changed])

    def committed(self) -> Committed:
        """Return what the transaction will have changed once it is committed."""
        rows = self.stored.rows.values()
        confirmed = [node.id for node in rows if node.synced_at == self.now]
        opened = len(self.opened) + len(self.reopened)
        return Committed(self.now, rows, confirmed, opened, self.ended.statuses)


def _columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
