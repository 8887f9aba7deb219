"""Syncs: nodes report theirs, operators read their log."""

import logging
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

from msgspec import Struct

from control.access.rights import Rights
from control.api import pagination
from control.api.operations import ApiCall, Reply, operation
from control.api.pagination import Paging
from control.api.request_input import INVENTORY_BODY
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.connection import Connection
from control.sync import plan
from control.sync.reports import SyncReport, unknown_sync
from control.tracing import Tracing


class Sync(Struct):
    """A line of the log of syncs (R 6.4)."""

    id: str
    node: str
    group: str
    release: int | None
    generation: int
    status: str
    step: str
    started_at: datetime
    lease_until: datetime
    ended_at: datetime | None
    error: wire.SyncError | None
    late: str | None
    """The result that was reported after the end, if one was."""
    folded: int
    """Further attempts of the node at this generation that share this line: a node gets ten lines per hour."""


class SyncRow(NamedTuple):
    """A line of the log of syncs."""

    id: UUID
    node: str
    group_name: str
    release: int | None
    generation: int
    status: str
    step: str
    started_at: datetime
    lease_until: datetime
    ended_at: datetime | None
    error_code: str
    error_message: str
    late_status: str | None
    folded: int


class TracedSync(NamedTuple):
    """A sync that has ended, and the traced request that made its release."""

    started_at: datetime
    ended_at: datetime
    error_code: str
    traceparent: str
    number: int
    group_name: str
    node: str


SQL = queries.load("syncs")
TRACED = SQL.rows("traced", TracedSync)
NODES_CALLED = SQL.value("nodes_called", UUID)
LOG = SQL.rows("log", SyncRow)
LOGGED = SQL.rows("logged", SyncRow)

log = logging.getLogger("skerry.control")


class SyncFilter(Paging, forbid_unknown_fields=True):
    node: wire.Name | None = None
    """A node's name or id."""
    status: Literal["running", "succeeded", "failed", "expired", "superseded"] | None = None


@operation(
    "PUT",
    "/v1/syncs/{id}",
    "Report a sync",
    role="node",
    # An edge that doesn't know expired credentials sends a waiting report before anything else, and drops it for good
    # because of this code; only then does it ask for another credential.
    ended="unknown_sync",
    answers={200: wire.SyncState},
    errors=("unknown_sync",),
    body_limit=INVENTORY_BODY,
)
async def put(call: ApiCall, body: wire.SyncUpdate) -> Reply:
    """Take a node's report of its sync. The same report again changes nothing."""
    try:
        sync_id = str(UUID(call.path["id"]))
    except ValueError:
        raise unknown_sync(call.path["id"]) from None
    _check(body)
    services = call.services
    services.heartbeats.seen(call.node_id, services.clock.now())
    state = await services.reports.ask(SyncReport(sync_id, call.node_id, body))
    node = services.fleet.nodes.get(call.node_id)
    if state.status != "running" and node is not None and node.release_id is not None:
        services.fleet.rollouts_due.set()
    tracing = services.tracing
    if tracing is not None and body.status == state.status != "running" and not state.late:
        await _trace(services, tracing, sync_id)
    return Reply(200, state)


@operation(
    "GET",
    "/v1/syncs",
    "The log of syncs, newest first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[Sync]},
)
async def list_syncs(call: ApiCall, query: SyncFilter) -> Reply:
    return await call.read(lambda conn: _syncs(conn, query, call.operator.rights.groups("read")))


@operation(
    "GET",
    "/v1/syncs/{id}",
    "A sync",
    role="read",
    everywhere=False,
    answers={200: Sync},
    errors=("unknown_sync",),
)
async def get_sync(call: ApiCall) -> Reply:
    return await call.read(lambda conn: _one_sync(conn, call.path["id"], call.operator.rights))


async def _syncs(conn: Connection, query: SyncFilter, groups: list[str] | None) -> pagination.Page[Sync]:
    node_ids = None
    if query.node is not None:
        node_ids = [str(id) for id in await conn.column(NODES_CALLED, query.node, _as_id(query.node))]
    return await pagination.fill(
        lambda after, count: conn.fetch(LOG, *after, node_ids, query.status, groups, count),
        pagination.each(_sync),
        lambda row: (row.started_at, row.id),
        _newest_first(query.cursor),
        query.limit,
    )


async def _one_sync(conn: Connection, id: str, rights: Rights) -> Sync:
    row = await conn.fetchrow(LOGGED, id)
    if row is None or not rights.allows("read", row.group_name):
        raise ProblemError("unknown_sync", f"there is no sync {id}", field="id")
    return _sync(row)


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _newest_first(cursor: str | None) -> pagination.Position:
    return pagination.read_cursor(cursor, (datetime, UUID)) or (None, None)


def _sync(row: SyncRow) -> Sync:
    error = wire.SyncError(row.error_code, row.error_message) if row.error_code else None
    return Sync(
        id=str(row.id),
        node=row.node,
        group=row.group_name,
        release=row.release,
        generation=row.generation,
        status=row.status,
        step=row.step,
        started_at=row.started_at,
        lease_until=row.lease_until,
        ended_at=row.ended_at,
        error=error,
        late=row.late_status,
        folded=row.folded,
    )


async def _trace(services: Services, tracing: Tracing, sync_id: str) -> None:
    """Make the span of a finished sync, if it is traced. If the database doesn't answer, only the span is lost."""
    if not tracing.is_sync_traced(sync_id):
        return
    try:
        sync = await services.databases.joins.read(lambda conn: conn.fetchrow(TRACED, sync_id))
    except ProblemError as problem:
        log.warning("the sync %s can't be traced: %s", sync_id, problem.detail)
        return
    if sync is not None:
        times, release = (sync.started_at, sync.ended_at), f"{sync.group_name} {sync.number}"
        tracing.sync_ended(
            sync_id, sync.traceparent, times, sync.error_code, node=sync.node, release=release, sync=sync_id
        )


def _check(update: wire.SyncUpdate) -> None:
    """Check that the inventory is present and consistent. Raises: ProblemError invalid_body."""
    if update.status == "succeeded" and update.inventory is None:
        raise ProblemError("invalid_body", "a success must say what the node now runs", field="inventory")
    if update.inventory is not None:
        wrong = plan.inconsistency(update.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")
