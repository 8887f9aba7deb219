"""The logs: operators' writes (audit), syncs, refused authentications; newest first."""

from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from control import wire
from control.api import pagination, responses
from control.api.operations import ApiCall, Reply
from control.api.pagination import Paging
from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection


class AuditRow(NamedTuple):
    """A row of the audit log."""

    id: UUID
    at: datetime
    actor_kind: str
    operator: str
    address: str
    call_id: str
    action: str
    subject: str
    values_before: dict[str, Any]
    values_after: dict[str, Any]
    details: dict[str, Any]


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


SQL = queries.load("records")
AUDIT = SQL.rows("audit", AuditRow)
AUTH_FAILURES = SQL.rows("auth_failures", responses.AuthFailure)
NODES = SQL.value("nodes", UUID)
SYNCS = SQL.rows("syncs", SyncRow)
SYNC = SQL.rows("sync", SyncRow)


class SyncFilter(Paging, forbid_unknown_fields=True):
    node: wire.Name | None = None
    """A node's name or id."""
    status: Literal["running", "succeeded", "failed", "expired", "superseded"] | None = None


async def list_audit(call: ApiCall) -> Reply:
    """GET /v1/audit."""
    return await call.read(lambda conn: _audit(conn, call.query))


async def list_auth_failures(call: ApiCall) -> Reply:
    """GET /v1/auth-failures."""
    return await call.read(lambda conn: _auth_failures(conn, call.query))


async def list_syncs(call: ApiCall) -> Reply:
    """GET /v1/syncs."""
    return await call.read(lambda conn: _syncs(conn, call.query))


async def get_sync(call: ApiCall) -> Reply:
    """GET /v1/syncs/{id}."""
    return await call.read(lambda conn: _one_sync(conn, call.path["id"]))


async def _audit(conn: Connection, paging: Paging) -> responses.Page[responses.AuditEntry]:
    return await pagination.fill(
        lambda after, count: conn.fetch(AUDIT, *after, count),
        pagination.each(lambda row: responses.AuditEntry(str(row.id), *row[1:])),
        lambda row: (row.at, row.id),
        _newest_first(paging.cursor),
        paging.limit,
    )


async def _auth_failures(conn: Connection, paging: Paging) -> responses.Page[responses.AuthFailure]:
    return await pagination.fill(
        lambda after, count: conn.fetch(AUTH_FAILURES, *after, count),
        pagination.as_they_are,
        lambda row: (row.minute, row.address, row.reason),
        pagination.read_cursor(paging.cursor, (datetime, str, str)) or (None, "", ""),
        paging.limit,
    )


async def _syncs(conn: Connection, query: SyncFilter) -> responses.Page[responses.Sync]:
    node_ids = None
    if query.node is not None:
        node_ids = [str(id) for id in await conn.column(NODES, query.node, _as_id(query.node))]
    return await pagination.fill(
        lambda after, count: conn.fetch(SYNCS, *after, node_ids, query.status, count),
        pagination.each(_sync),
        lambda row: (row.started_at, row.id),
        _newest_first(query.cursor),
        query.limit,
    )


async def _one_sync(conn: Connection, id: str) -> responses.Sync:
    row = await conn.fetchrow(SYNC, id)
    if row is None:
        raise ProblemError("unknown_sync", f"there is no sync {id}", field="id")
    return _sync(row)


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _newest_first(cursor: str | None) -> pagination.Position:
    return pagination.read_cursor(cursor, (datetime, UUID)) or (None, None)


def _sync(row: SyncRow) -> responses.Sync:
    error = wire.SyncError(row.error_code, row.error_message) if row.error_code else None
    return responses.Sync(
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
