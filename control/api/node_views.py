"""Nodes as operators see them: state, what each runs and should run, errors and warnings (R 1.4, 4.3, 5.4)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from control.access.auth import Principal
from control.access.rights import Role
from control.api import pagination, release_bodies
from control.api.operations import ApiCall, Reply, operation
from control.backups.backup_faults import LATE_INTERVALS, LEAST_LATE, PROVEN_LATE, Fault
from control.problems import ProblemError
from control.protocol import wire
from control.settings import ControlSettings
from control.storage import queries
from control.storage.connection import Connection
from control.sync import applied_revisions
from control.sync.applied_revisions import OlderRevision
from control.sync.standing import Standing, standing
from control.telemetry.node_health import OF_NODE, NodeTold


class NodeError(Struct):
    code: str
    message: str
    at: datetime | None


class Warning(Struct):
    kind: str
    message: str
    since: datetime


class OpenSync(Struct):
    id: str
    status: str
    step: str
    started_at: datetime


class Node(Struct):
    """A node: what it runs, what it should run, and its state (R 1.4, 5.4)."""

    id: str
    name: str
    group: str
    labels: dict[str, str]
    state: str
    state_since: datetime
    joined_at: datetime
    last_seen_at: datetime | None
    last_sync_at: datetime | None
    release: int | None
    """The number of its group's release that it runs, or at which it is held; null if it hasn't run any of that group
    yet."""
    target_release: int | None
    """The number of its group's newest release, which it should run; null if there is none."""
    generation: int
    """The generation of the last target that it was confirmed to have reached."""
    target_generation: int
    at_target: bool
    standing: Standing
    """Its standing in one word: the first of these that applies."""
    held: bool
    """Whether it is to bring data back, or has, and gets no release until somebody resumes it."""
    schema_version: int
    target_schema: int
    functions: list[release_bodies.ReleaseFunction]
    failures: int
    """How many syncs have failed so far (R 5.3)."""
    syncs_folded: int
    """How many attempts so far share a line with others in the log of syncs."""
    error: NodeError | None
    retry_at: datetime | None
    version: str | None
    """Number and commit of its software, as sent with its capabilities; earlier versions don't send it."""
    warnings: list[Warning]
    sync: OpenSync | None


class NodeCredential(Struct):
    """A node's credential, without its secret."""

    created_at: datetime
    ends_at: datetime
    """From then on it can only be exchanged for its successor, which the node does by itself."""
    return_until: datetime
    """From then on it is invalid: the node must join again."""


class ToldLine(Struct):
    """A line of a function's schedule, as a node last reported it."""

    function: str
    cron: str
    """Empty for calls after releases."""
    last_run_at: datetime | None
    """When the last run began; null if there was none."""
    last_status: str | None
    """How it ended: `ok`, `answer_404`, or an error's code; null if there was none."""
    next_run_at: datetime | None
    """When the next one is due; null if that isn't known."""
    late_seconds: int
    """By how much the tick is late that waits, or the last run was."""
    failures: int
    """Ticks that failed since the node's start."""


class ToldNumbers(Struct):
    """A node's last report about itself, sent about once a minute."""

    told_at: datetime
    database_bytes: int
    wal_bytes: int
    """Of the database's log."""
    disk_free_bytes: int
    memory_bytes: int
    """Of all its processes."""
    certificate_ends_at: datetime | None
    """The end of the certificate of its local HTTP; null if it has none."""
    edge: str
    """Its version of the edge runtime."""
    trust_ends_at: datetime | None
    """The end of the last CA by which it trusts control; null if it doesn't say."""
    schedules: list[ToldLine]
    """The lines of its functions' schedules, by function and line."""


class DetailedNode(Node):
    credential: NodeCredential | None
    """The credential that it uses; null if all are revoked."""
    capabilities: dict[str, Any]
    """What it can run, as it has sent it."""
    protocol: int
    older_revisions: list[OlderRevision]
    """The schema changes that it has applied in a revision other than the newest."""
    numbers: ToldNumbers | None
    """Null if it sent none."""


class FoundNode(NamedTuple):
    """A node and its group."""

    id: UUID
    name: str
    group_id: UUID
    group_name: str


@dataclass(frozen=True, slots=True)
class NodeListRow:
    """A node as a list shows it."""

    id: UUID
    name: str
    group_name: str
    labels: dict[str, str]
    state: str
    state_since: datetime
    joined_at: datetime
    last_seen_at: datetime | None
    last_sync_at: datetime | None
    confirmed_generation: int
    target_generation: int
    schema_version: int
    release_id: UUID | None
    schema_floor: int | None
    failures: int
    syncs_folded: int
    error_code: str
    error_message: str
    error_at: datetime | None
    retry_at: datetime | None
    version: str
    held: bool


@dataclass(frozen=True, slots=True)
class PlacedNodeRow(NodeListRow):
    """A node in a list that isn't ordered by name."""

    place: int


@dataclass(frozen=True, slots=True)
class DetailedNodeRow(NodeListRow):
    """A node shown on its own, with three more columns."""

    capabilities: dict[str, Any]
    protocol: int
    schema_changes: list[dict[str, Any]]


class RunFunction(NamedTuple):
    """A function that a node reported."""

    node_id: UUID
    name: str
    version: int
    sha256: str
    manifest_digest: str


class NodeReleases(NamedTuple):
    """The numbers of the releases of its group that a node should run, and runs."""

    node_id: UUID
    target: int | None
    runs: int | None


class WarningRow(NamedTuple):
    """An open warning."""

    node_id: UUID
    kind: str
    message: str
    since: datetime


class OpenSyncRow(NamedTuple):
    """An open sync."""

    node_id: UUID
    id: UUID
    status: str
    step: str
    started_at: datetime


class PartOfNode(Protocol):
    """A row that belongs to a node."""

    @property
    def node_id(self) -> UUID:
        """The id of the node."""


N = TypeVar("N", bound=PartOfNode)

SQL = queries.load("node_views")
GROUP = SQL.optional("group", UUID)
BY_ID = SQL.rows("by_id", FoundNode)
BY_NAME = SQL.rows("by_name", FoundNode)
NODES = SQL.rows("nodes", NodeListRow)
NODES_IN_ORDER = SQL.rows("nodes_in_order", PlacedNodeRow)
BEGINNING = -(2**61)
"""Sorts before every position in such an order."""
NODE = SQL.rows("node", DetailedNodeRow)
CREDENTIAL = SQL.optional("credential", datetime)
FUNCTIONS = SQL.rows("functions", RunFunction)
RELEASES = SQL.rows("releases", NodeReleases)
WARNINGS = SQL.rows("warnings", WarningRow)
OPEN_SYNCS = SQL.rows("open_syncs", OpenSyncRow)


class NodeFilter(pagination.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None
    state: Literal["online", "offline", "syncing", "revoked"] | None = None
    standing: Standing | None = None
    error: Annotated[str, Meta(max_length=64)] | None = None
    """The code of the error with which a failing node's last sync ended."""
    label: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """KEY=VALUE, or KEY alone: nodes that have the label."""
    find: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    """A part of the name."""
    release: wire.Number | None = None
    """The number of the release of its group that a node runs."""
    overdue: bool = False
    """Only nodes that are overdue."""
    unseen: Annotated[int, Meta(ge=1, le=10 * 365 * 86400)] | None = None
    """The fewest seconds since a node last polled."""
    backup: Fault | None = None
    """Only nodes that should be backed up, and whose backup has this fault."""
    names: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,63}(,[a-z0-9-]{1,63}){0,999}$(?!\n)")] | None = None
    """Only the nodes with these names, at most 1,000, separated by commas."""
    sort: Literal["name", "standing", "seen"] = "name"
    """By name, by standing (worst first), or by when they were last seen (longest ago first)."""


@operation(
    "GET",
    "/v1/nodes",
    "Nodes",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[Node]},
    errors=("unknown_group",),
)
async def list_nodes(call: ApiCall, query: NodeFilter) -> Reply:
    by_name = query.sort == "name"
    after = pagination.read_cursor(query.cursor, (str,) if by_name else (str, int))

    groups = call.operator.rights.groups("read")
    if query.group is not None:
        if not call.operator.rights.allows("read", query.group):
            raise unknown_group(query.group)
        groups = [query.group]
    key, is_pair, value = (query.label or "").partition("=")
    now = call.services.clock.now()
    filters = (
        groups,
        query.state,
        query.standing,
        query.error,
        key or None,
        value if is_pair else None,
        query.find,
        query.release,
        query.overdue,
        None if query.unseen is None else now - timedelta(seconds=query.unseen),
        None if query.names is None else query.names.split(","),
        *(query.backup, now - PROVEN_LATE, LEAST_LATE, LATE_INTERVALS),
    )

    async def work(conn: Connection) -> pagination.Page[Node]:
        if query.group is not None:
            await group(conn, query.group)
        if by_name:
            return await pagination.fill(
                lambda after, count: conn.fetch(NODES, *after, *filters, count),
                lambda rows: _describe(conn, rows),
                lambda row: (row.name,),
                after or ("",),
                query.limit,
                first=8,
            )
        # All matching nodes are examined each time: a page of the console is read at once.
        return await pagination.fill(
            lambda after, count: conn.fetch(NODES_IN_ORDER, after[0], *filters, query.sort, after[1], count),
            lambda rows: _describe(conn, rows),
            lambda row: (row.name, row.place),
            after or ("", BEGINNING),
            query.limit,
            first=64,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/nodes/{node}",
    "A node",
    role="read",
    everywhere=False,
    answers={200: DetailedNode},
    errors=("unknown_node",),
)
async def get_node(call: ApiCall) -> Reply:
    node = call.path["node"]

    async def work(conn: Connection) -> DetailedNode:
        node_id = (await find(conn, call.operator, "read", node)).id
        return await describe(conn, node_id, call.services.settings)

    return await call.read(work)


async def find(conn: Connection, operator: Principal, role: Role, node: str, field: str = "node") -> FoundNode:
    """Find a node by its id or name; the operator must have `role` for its group.

    Raises: ProblemError unknown_node, when there is none that the operator may see; AuthError, without the role.
    """
    try:
        row = await conn.fetchrow(BY_ID, UUID(node))
    except ValueError:
        row = None
    # A name may look like an id.
    row = row or await conn.fetchrow(BY_NAME, node)
    if row is None or not operator.rights.allows("read", row.group_name):
        raise ProblemError("unknown_node", f"there is no node {node}", field=field)
    operator.need(role, row.group_name)
    return row


async def group(conn: Connection, name: str) -> UUID:
    """Return the id of a group. Raises: ProblemError unknown_group, when there is none."""
    id = await conn.fetchval(GROUP, name)
    if id is None:
        raise unknown_group(name)
    return id


def unknown_group(name: str) -> ProblemError:
    """Make the problem that there is no such group, or none that the operator may see."""
    return ProblemError("unknown_group", f"there is no group {name}", field="group")


async def describe(conn: Connection, id: UUID, settings: ControlSettings) -> DetailedNode:
    """Describe the node with this id, which exists."""
    row = await conn.one(NODE, id)
    node = msgspec.structs.asdict((await _describe(conn, [row]))[0])
    older = await applied_revisions.older(conn, row.schema_changes)
    made = await conn.fetchval(CREDENTIAL, id)
    credential = None
    if made is not None:
        ends, limit = (timedelta(seconds=age) for age in (settings.credential_life, settings.credential_return))
        credential = NodeCredential(made, made + ends, made + limit)
    told = await conn.fetchrow(OF_NODE, id)
    return DetailedNode(
        **node,
        credential=credential,
        capabilities=row.capabilities,
        protocol=row.protocol,
        older_revisions=older,
        numbers=None if told is None else _numbers(told),
    )


def _numbers(told: NodeTold) -> ToldNumbers:
    # A node may send any number.
    ends_at, trust_ends_at = (
        datetime.fromtimestamp(ends, UTC) if 0 < ends < pagination.LATEST.timestamp() else None
        for ends in (told.certificate_ends, told.trust_ends)
    )
    sizes = told.database_bytes, told.wal_bytes, told.disk_free_bytes, told.memory_bytes
    lines = [
        ToldLine(
            line["function"],
            line["cron"],
            time_or_none(line["last_run"]),
            line["last_status"] or None,
            time_or_none(line["next_run"]),
            line["late"],
            line["failures"],
        )
        for line in sorted(told.schedules, key=lambda line: (line["function"], line["cron"]))
    ]
    return ToldNumbers(told.told_at, *sizes, ends_at, told.edge, trust_ends_at, lines)


def time_or_none(seconds: int) -> datetime | None:
    """Return a time in Unix seconds, of which 0 means none."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


async def _describe(conn: Connection, rows: Sequence[NodeListRow]) -> list[Node]:
    ids = [str(row.id) for row in rows]
    runs = _by_node(await conn.fetch(FUNCTIONS, ids))
    releases = {of.node_id: of for of in await conn.fetch(RELEASES, ids)}
    warnings = _by_node(await conn.fetch(WARNINGS, ids))
    syncs = _by_node(await conn.fetch(OPEN_SYNCS, ids))
    return [
        _node(
            row,
            releases.get(row.id) or NodeReleases(row.id, None, None),
            runs.get(row.id, []),
            warnings.get(row.id, []),
            syncs.get(row.id, []),
        )
        for row in rows
    ]


def _node(
    row: NodeListRow,
    releases: NodeReleases,
    runs: list[RunFunction],
    warnings: list[WarningRow],
    syncs: list[OpenSyncRow],
) -> Node:
    target_schema = row.schema_floor or 0
    at_target = row.release_id is None or row.confirmed_generation >= row.target_generation
    return Node(
        id=str(row.id),
        name=row.name,
        group=row.group_name,
        labels=row.labels,
        state=row.state,
        state_since=row.state_since,
        joined_at=row.joined_at,
        last_seen_at=row.last_seen_at,
        last_sync_at=row.last_sync_at,
        release=releases.runs,
        target_release=releases.target,
        generation=row.confirmed_generation,
        target_generation=row.target_generation,
        at_target=at_target,
        standing=standing(row.state, at_target=at_target, error_code=row.error_code, held=row.held),
        held=row.held,
        schema_version=row.schema_version,
        target_schema=target_schema,
        functions=[release_bodies.ReleaseFunction(f.name, f.version, f.sha256) for f in runs],
        failures=row.failures,
        syncs_folded=row.syncs_folded,
        error=NodeError(row.error_code, row.error_message, row.error_at) if row.error_code else None,
        retry_at=row.retry_at,
        version=row.version or None,
        warnings=[Warning(*warning[1:]) for warning in warnings],
        sync=next((OpenSync(str(s.id), s.status, s.step, s.started_at) for s in syncs), None),
    )


def _by_node(rows: Iterable[N]) -> dict[UUID, list[N]]:
    found: dict[UUID, list[N]] = {}
    for row in rows:
        found.setdefault(row.node_id, []).append(row)
    return found
