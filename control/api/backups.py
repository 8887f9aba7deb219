"""Operators' side of nodes' backups: how far they have come, and bringing a node's data back."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct, field, structs

from control.api import artifacts, node_views, pagination
from control.api.operations import ApiCall, Reply, operation
from control.backups import restores, targets
from control.backups.losses import Compared, DifferingRows
from control.backups.restores import Arrival, RestoreRow, RestoreState
from control.backups.targets import Latest, RestorableState
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.wire import Body, Text
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import change_effects


class NewRestore(Body, frozen=True):
    """What to bring back of a node."""

    to: Annotated[str, Meta(max_length=200)]
    """A time with its offset (RFC 3339), `before:RELEASE`, `latest`, or `LINEAGE/TRANSACTION`."""
    adopt: bool = False
    """Bring the database of another node back, `from`; the node goes on with it as its own."""
    from_: Annotated[str, Meta(max_length=63)] = field(default="", name="from")
    """The name or id of that node; the id, if it was removed."""
    reason: Text = ""
    plan_digest: wire.Sha256 | None = None
    """The digest of a plan: exactly that is done, or nothing."""


class NamedRelease(Struct):
    group: str
    number: int


class RestorePlan(Struct):
    """What a restore would bring back, and what would be gone then."""

    node: str
    from_node: str | None
    """The node whose database it is; null: its own."""
    position: str
    """The state, as LINEAGE/TRANSACTION: asked for like that, it is exactly this one."""
    at: datetime
    """When that was the state of the database, by the node's clock of then."""
    release: NamedRelease | None
    """The release that the database has there; null if that isn't known, or it has none."""
    undone: list[NamedRelease]
    """The releases to which the node has gone since."""
    newest_at: datetime
    """When the node last wrote something that is at the store; if the last state there can't be made out, until when
    the store has everything."""
    newer: float
    """By how many seconds the node's present data is newer than the state, as far as it is at the store."""
    files: int
    read: int
    """Bytes that the node downloads."""
    size: int
    """Bytes of the database."""
    tables: list[DifferingRows] | None
    """Tables that have another number of rows there than in the last state at the store; null if that isn't known."""
    tables_unknown: str
    """Why it isn't known."""
    findings: list[str]
    """What is wrong with the state, one sentence each."""
    plan_digest: str
    """What an order can send as its `plan_digest`. It is of the state, the releases that are undone, and the restore at
    which the node is held, but not of rows, which change all the time."""


class NodeRestore(Struct):
    """A restore of a node."""

    id: str
    node: str
    from_node: str | None
    """The node whose database it is; null: its own."""
    position: str
    """The state, as LINEAGE/TRANSACTION; '' if it couldn't go back with a rollback."""
    at: datetime
    """When that was the state of the database, by the node's clock of then."""
    before_release: int | None
    hold: bool
    """Whether the node stays at it until somebody resumes it."""
    state: RestoreState
    code: str
    message: str
    """Why it failed."""
    release: int | None
    """The number of the release that the node's database has then; null if it isn't known, or it has none."""
    release_group: str | None
    """The group whose release that is; null if that isn't known."""
    kept: str
    """Where on the node the database of before is."""
    kept_position: str
    """The state to which that goes back, as LINEAGE/TRANSACTION; '' if it wasn't backed up that far."""
    made_by: str
    made_at: datetime
    told_at: datetime | None
    """When the node told what came of it."""
    ended_at: datetime | None


class NodeBackup(Struct):
    """How far the backup of a node's database has come."""

    node: str
    group: str
    interval: float
    """Seconds between two uploads while somebody writes; 0: the node's group isn't backed up."""
    retention: int
    """Seconds for which each state can be brought back; 0: the node's group isn't backed up."""
    lineage: str
    """The history that goes on; '' if none does."""
    reached_at: datetime | None
    """When the database had nothing newer than what is at the store; null if nothing is."""
    lag: float | None
    """How many seconds that was ago when the node told it."""
    told_at: datetime | None
    pending: int
    """Bytes that wait on the node's disk."""
    error: str
    """Why it doesn't go on, or which history was given up; '' if all is well."""
    at_store: int
    """Bytes."""
    proven_at: datetime | None
    """When a restore was last tried and worked."""
    drilled_at: datetime | None
    drill_error: str
    restore: NodeRestore | None
    """The node's last restore, or the one that it carries out or is held at."""


class BackupHistory(Struct):
    """One unbroken history of a database of a node on one disk."""

    lineage: str
    begun_at: datetime
    ended_at: datetime | None
    """When another one took its place."""
    reached: int
    """The last transaction that is at the store."""
    reached_at: datetime | None
    told_at: datetime
    pending: int
    error: str
    at_store: int
    proven: int
    """The last transaction of which a restore was tried and worked."""
    proven_at: datetime | None
    drilled_at: datetime | None
    drill_error: str


class DetailedBackup(NodeBackup):
    histories: list[BackupHistory]
    """The newest ones first, 100 at most."""


class NodeBackupRow(NamedTuple):
    """A node in the list of backups."""

    id: UUID
    name: str
    group_name: str
    interval: float
    retention: int
    lineage: str | None
    reached: int | None
    reached_at: datetime | None
    told_at: datetime | None
    pending: int
    error: str
    proven_at: datetime | None
    drilled_at: datetime | None
    drill_error: str
    at_store: int


class FoundRelease(NamedTuple):
    """A release's group and number."""

    group_name: str
    number: int


SQL = queries.load("restores")
BACKUPS = SQL.rows("backups", NodeBackupRow)
HISTORIES = SQL.rows("histories", BackupHistory)
LAST_OF = SQL.rows("last_of", RestoreRow)
OF_NODE = SQL.rows("of_node", RestoreRow)
ARRIVALS = SQL.rows("arrivals", Arrival)
RELEASE = SQL.rows("release", FoundRelease)
REMOVED = SQL.rows("removed", node_views.FoundNode)
NEWEST_AT = SQL.optional("newest_at", datetime)
HELD_FOR = SQL.optional("held_for", UUID)

MOST_HISTORIES = 100
STATE_ERRORS = ("unknown_release", "backup_incomplete", "backup_damaged", *artifacts.STORE_ERRORS)


class BackupFilter(pagination.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None


@operation(
    "GET",
    "/v1/backups",
    "How far the backups of nodes' databases have come",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[NodeBackup]},
    errors=("unknown_group",),
)
async def list_backups(call: ApiCall, query: BackupFilter) -> Reply:
    """Nodes whose groups are backed up, and those of which something is at the store, by name."""
    after = pagination.read_cursor(query.cursor, (str,)) or ("",)
    groups = call.operator.rights.groups("read")
    if query.group is not None:
        if not call.operator.rights.allows("read", query.group):
            raise node_views.unknown_group(query.group)
        groups = [query.group]

    async def work(conn: Connection) -> pagination.Page[NodeBackup]:
        if query.group is not None:
            await node_views.group(conn, query.group)

        async def describe(rows: Sequence[NodeBackupRow]) -> list[NodeBackup]:
            last = {row.node_id: row for row in await conn.fetch(LAST_OF, [str(row.id) for row in rows])}
            return [_backup(row, last.get(row.id)) for row in rows]

        return await pagination.fill(
            lambda after, count: conn.fetch(BACKUPS, *after, groups, None, count),
            describe,
            lambda row: (row.name,),
            after,
            query.limit,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/nodes/{node}/backup",
    "How far the backup of a node's database has come",
    role="read",
    everywhere=False,
    answers={200: DetailedBackup},
    errors=("unknown_node", "unknown_backup"),
)
async def get_backup(call: ApiCall) -> Reply:
    async def work(conn: Connection) -> DetailedBackup:
        node = await node_views.find(conn, call.operator, "read", call.path["node"])
        rows = await conn.fetch(BACKUPS, "", None, node.id, 1)
        if not rows:
            raise unknown_backup(node.name)
        last = await conn.fetch(LAST_OF, [str(node.id)])
        histories = await conn.fetch(HISTORIES, node.id, MOST_HISTORIES)
        return DetailedBackup(**structs.asdict(_backup(rows[0], last[0] if last else None)), histories=histories)

    return await call.read(work)


class RestoreQuery(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only return what it would bring back, and what would be gone; nothing is ordered."""


@operation(
    "POST",
    "/v1/nodes/{node}/restores",
    "Bring a node's data back, or with plan say what that would be",
    role="deploy",
    everywhere=False,
    answers={200: RestorePlan, 201: NodeRestore},
    errors=("unknown_node", "unknown_backup", "restore_not_possible", "plan_changed", *STATE_ERRORS),
)
async def restore_node(call: ApiCall, body: NewRestore, query: RestoreQuery) -> Reply:
    """Have a node bring its data, schema and functions back together. It is held there until somebody resumes it."""
    if body.adopt != bool(body.from_):
        text = "adopt and from belong together: only another node's database is adopted, and only knowingly"
        raise ProblemError("invalid_body", text, field="from")
    if not query.plan and (kept := await call.replayed()):
        return kept
    target = targets.parse(body.to, "to", "invalid_body")
    services = call.services

    async def find(conn: Connection) -> tuple[node_views.FoundNode, node_views.FoundNode]:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        if not body.adopt:
            return node, node
        return node, await _source(conn, call, body.from_)

    node, source = await services.db.read(find)
    adopted = None if source.id == node.id else source
    if body.adopt and adopted is None:
        raise ProblemError("invalid_body", "from is the node itself: leave adopt and from out", field="from")
    state = await services.states.find(str(source.id), target)
    if query.plan:
        return Reply(200, await _plan(call, node, source, state))

    async def work(conn: Connection, changed: Changed) -> NodeRestore:
        found = await node_views.find(conn, call.operator, "deploy", str(node.id))
        now = services.clock.now()
        if body.plan_digest is not None:
            await conn.fetchrow(restores.LOCK_NODE, found.id)
            undone = restores.undone([] if adopted else await conn.fetch(ARRIVALS, source.id), state)
            what = f"a restore of node {found.name}"
            digest = await _digest(conn, found.id, source.id, state, undone)
            change_effects.refuse_other_plan(body.plan_digest, digest, what)
        row = await restores.order(
            conn,
            changed,
            now,
            call.operator.name,
            found.id,
            state,
            from_node_id=None if adopted is None else adopted.id,
        )
        made = restore(row)
        details = {"restore": made.id, "position": made.position, "at": made.at.isoformat(), "reason": body.reason}
        if adopted is not None:
            details["from"] = adopted.name
        await call.audit(conn, "node.restore", found.name, details)
        return made

    return await call.write(work)


async def _source(conn: Connection, call: ApiCall, name: str) -> node_views.FoundNode:
    """Find the node whose database is adopted; a removed one by its id, since its backup outlives it for a while.

    Raises: as `node_views.find`.
    """
    try:
        return await node_views.find(conn, call.operator, "deploy", name, "from")
    except ProblemError as problem:
        try:
            removed = await conn.fetchrow(REMOVED, UUID(name))
        except ValueError:
            removed = None
        if removed is None or not call.operator.rights.allows("deploy", removed.group_name):
            raise problem from None
        return removed


class RestoreList(pagination.Paging, forbid_unknown_fields=True):
    pass


@operation(
    "GET",
    "/v1/nodes/{node}/restores",
    "The restores of a node, newest first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[NodeRestore]},
    errors=("unknown_node",),
)
async def list_restores(call: ApiCall, query: RestoreList) -> Reply:
    after = pagination.read_cursor(query.cursor, (datetime, UUID)) or (None, None)

    async def work(conn: Connection) -> pagination.Page[NodeRestore]:
        node = await node_views.find(conn, call.operator, "read", call.path["node"])
        return await pagination.fill(
            lambda after, count: conn.fetch(OF_NODE, node.id, *after, count),
            pagination.each(restore),
            lambda row: (row.made_at, row.id),
            after,
            query.limit,
        )

    return await call.read(work)


@operation(
    "POST",
    "/v1/nodes/{node}/resume",
    "Let a node go on that was held at a restore",
    role="deploy",
    everywhere=False,
    answers={200: NodeRestore},
    errors=("unknown_node", "restore_not_possible"),
)
async def resume_node(call: ApiCall) -> Reply:
    """Let the node have its target again, with its next poll. A restore that it hasn't carried out is cancelled."""

    async def work(conn: Connection, changed: Changed) -> NodeRestore:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        row = await restores.resume(conn, changed, call.services.clock.now(), node.id)
        details = {"restore": str(row.id), "state": row.state}
        await call.audit(conn, "node.resume", node.name, details)
        return restore(row)

    return await call.write(work, status=200)


async def _plan(
    call: ApiCall, node: node_views.FoundNode, source: node_views.FoundNode, state: RestorableState
) -> RestorePlan:
    services = call.services
    newest: RestorableState | None = None
    try:
        newest = await services.states.find(str(node.id), Latest())
    except ProblemError as problem:
        if problem.status >= 500:
            raise
        compared = Compared(unknown=f"the node's own last state isn't known: {problem.detail}")
    else:
        compared = await services.comparison.compare(str(source.id), state, str(node.id), newest)

    async def read(conn: Connection) -> tuple[NamedRelease | None, list[Arrival], datetime | None, str]:
        arrivals = await conn.fetch(ARRIVALS, source.id)
        there = restores.had(arrivals, state)
        found: NamedRelease | None = None if there is None else NamedRelease(there.group_name, there.number)
        if compared.release_id is not None:
            found = await _named(conn, compared.release_id)
        undone = restores.undone(arrivals if node.id == source.id else [], state)
        digest = await _digest(conn, node.id, source.id, state, undone)
        return found, undone, await conn.fetchval(NEWEST_AT, node.id), digest

    release, undone, told, digest = await services.db.read(read)
    newest_at = max(state.at, newest.at if newest is not None else told or state.at)
    return RestorePlan(
        node=node.name,
        from_node=None if node.id == source.id else source.name,
        position=_position(state.lineage, state.transaction),
        at=state.at,
        release=release,
        undone=[NamedRelease(each.group_name, each.number) for each in undone],
        newest_at=newest_at,
        newer=max(0.0, (newest_at - state.at).total_seconds()),
        files=len(state.files),
        read=state.read,
        size=state.size,
        tables=compared.tables,
        tables_unknown=compared.unknown,
        findings=list(compared.findings),
        plan_digest=digest,
    )


async def _digest(
    conn: Connection, node_id: UUID, source_id: UUID, state: RestorableState, undone: Sequence[Arrival]
) -> str:
    """Return the sha256 of what a restore would do, in hex."""
    held_for = await conn.fetchval(HELD_FOR, node_id)
    what = str(node_id), str(source_id), _position(state.lineage, state.transaction), str(held_for or "")
    return hashlib.sha256(wire.canonical((*what, [str(each.release_id) for each in undone]))).hexdigest()


async def _named(conn: Connection, release_id: str) -> NamedRelease | None:
    """Return a release by the id that a database records; None if it has none, or control doesn't know it."""
    try:
        found = await conn.fetchrow(RELEASE, UUID(release_id))
    except ValueError:
        return None
    return None if found is None else NamedRelease(*found)


def restore(row: RestoreRow) -> NodeRestore:
    """Describe a restore."""
    return NodeRestore(
        id=str(row.id),
        node=row.node,
        from_node=row.from_node,
        position=_position(row.lineage, row.transaction_id) if row.lineage else "",
        at=row.state_at,
        before_release=row.before_release,
        hold=row.hold,
        state=row.state,
        code=row.code,
        message=row.message,
        release=row.release_number or None,
        release_group=row.release_group,
        kept=row.kept,
        kept_position=_position(row.kept_lineage, row.kept_transaction) if row.kept_lineage else "",
        made_by=row.made_by,
        made_at=row.made_at,
        told_at=row.told_at,
        ended_at=row.ended_at,
    )


def _position(lineage: str, transaction: int) -> str:
    return f"{lineage}/{transaction}"


def _backup(row: NodeBackupRow, last: RestoreRow | None) -> NodeBackup:
    lag = None
    if row.reached_at is not None and row.told_at is not None:
        lag = max(0.0, (row.told_at - row.reached_at).total_seconds())
    return NodeBackup(
        node=row.name,
        group=row.group_name,
        interval=row.interval,
        retention=row.retention,
        lineage=row.lineage or "",
        reached_at=row.reached_at,
        lag=lag,
        told_at=row.told_at,
        pending=row.pending,
        error=row.error,
        at_store=row.at_store,
        proven_at=row.proven_at,
        drilled_at=row.drilled_at,
        drill_error=row.drill_error,
        restore=None if last is None else restore(last),
    )


def unknown_backup(node: str) -> ProblemError:
    """Make the problem that there is no backup of a node."""
    text = f"there is no backup of node {node}: `skerry group backup` begins one for its group"
    return ProblemError("unknown_backup", text, field="node")
