"""What happened: operators' writes (audit), syncs, refused authentications, newest first."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta, Struct

from control import wire
from control.api import pagination, responses
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import queries

SQL = queries.load("logs")
Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=500)]


class Paging(Struct, forbid_unknown_fields=True):
    """Which part of a list."""

    cursor: Cursor | None = None
    """`next` of the part before."""
    limit: Limit = 100
    """Items at most; a page with much in it has fewer, and a `next`."""


class SyncFilter(Paging, forbid_unknown_fields=True):
    node: wire.Name | None = None
    """A node's name or id."""
    status: Literal["running", "succeeded", "failed", "expired", "superseded"] | None = None


async def list_audit(call: Call) -> Answer:
    """GET /v1/audit."""
    return await call.read(lambda conn: _audit(conn, call.query))


async def list_auth_failures(call: Call) -> Answer:
    """GET /v1/auth-failures."""
    return await call.read(lambda conn: _auth_failures(conn, call.query))


async def list_syncs(call: Call) -> Answer:
    """GET /v1/syncs."""
    return await call.read(lambda conn: _syncs(conn, call.query))


async def get_sync(call: Call) -> Answer:
    """GET /v1/syncs/{id}."""
    return await call.read(lambda conn: _one_sync(conn, call.path["id"]))


async def _audit(conn: Any, paging: Paging) -> responses.Page[responses.AuditEntry]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SQL["audit"], *after, count),
        pagination.each(
            lambda r: responses.AuditEntry(r["at"], r["operator"], r["action"], r["subject"], r["details"])
        ),
        _newest_first(paging.cursor),
        paging.limit,
        ("at", "id"),
    )


async def _auth_failures(conn: Any, paging: Paging) -> responses.Page[responses.AuthFailure]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SQL["auth_failures"], *after, count),
        pagination.each(lambda r: responses.AuthFailure(**r)),
        pagination.read_cursor(paging.cursor, (datetime, str, str)) or (None, "", ""),
        paging.limit,
        ("minute", "address", "reason"),
    )


async def _syncs(conn: Any, query: SyncFilter) -> responses.Page[responses.Sync]:
    node_ids = None
    if query.node is not None:
        node_ids = [str(row["id"]) for row in await conn.fetch(SQL["nodes"], query.node, _as_id(query.node))]
    return await pagination.fill(
        lambda after, count: conn.fetch(SQL["syncs"], *after, node_ids, query.status, count),
        pagination.each(_sync),
        _newest_first(query.cursor),
        query.limit,
        ("started_at", "id"),
    )


async def _one_sync(conn: Any, id: str) -> responses.Sync:
    row = await conn.fetchrow(SQL["sync"], id)
    if row is None:
        raise ProblemError("unknown_sync", f"there is no sync {id}", field="id")
    return _sync(row)


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _newest_first(cursor: str | None) -> tuple[Any, ...]:
    return pagination.read_cursor(cursor, (datetime, UUID)) or (None, None)


def _sync(row: Any) -> responses.Sync:
    error = wire.SyncError(row["error_code"], row["error_message"]) if row["error_code"] else None
    return responses.Sync(
        id=str(row["id"]),
        node=row["node"],
        group=row["group_name"],
        release=row["release"],
        generation=row["generation"],
        status=row["status"],
        step=row["step"],
        started_at=row["started_at"],
        lease_until=row["lease_until"],
        ended_at=row["ended_at"],
        error=error,
        late=row["late_status"],
        folded=row["folded"],
    )
