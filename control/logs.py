"""What happened: operators' writes (audit), syncs, refused authentications, newest first. And how lists are paged."""

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from msgspec import Meta, Struct

from control import answers, queries, wire
from control.calls import Answer, Call
from control.problems import ProblemError

SQL = queries.load("logs")
Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=500)]


class Paging(Struct, forbid_unknown_fields=True):
    """Which part of a list."""

    cursor: Cursor | None = None
    """`next` of the part before."""
    limit: Limit = 100


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


async def _audit(conn: Any, paging: Paging) -> answers.Page[answers.AuditEntry]:
    before, id = _newest_first(paging.cursor)
    rows = await conn.fetch(SQL["audit"], before, id, paging.limit + 1)
    items = [answers.AuditEntry(r["at"], r["operator"], r["action"], r["subject"], r["details"]) for r in rows]
    return page(items, rows, paging.limit, "at", "id")


async def _auth_failures(conn: Any, paging: Paging) -> answers.Page[answers.AuthFailure]:
    last = read_cursor(paging.cursor, (datetime, str, str)) or (None, "", "")
    rows = await conn.fetch(SQL["auth_failures"], *last, paging.limit + 1)
    items = [
        answers.AuthFailure(r["minute"], r["address"], r["reason"], r["count"], r["first_at"], r["last_at"])
        for r in rows
    ]
    return page(items, rows, paging.limit, "minute", "address", "reason")


async def _syncs(conn: Any, query: SyncFilter) -> answers.Page[answers.Sync]:
    before, id = _newest_first(query.cursor)
    node_ids = None
    if query.node is not None:
        node_ids = [str(row["id"]) for row in await conn.fetch(SQL["nodes"], query.node, _as_id(query.node))]
    rows = await conn.fetch(SQL["syncs"], before, id, node_ids, query.status, query.limit + 1)
    return page([_sync(row) for row in rows], rows, query.limit, "started_at", "id")


async def _one_sync(conn: Any, id: str) -> answers.Sync:
    row = await conn.fetchrow(SQL["sync"], id)
    if row is None:
        raise ProblemError("unknown_sync", f"there is no sync {id}", field="id")
    return _sync(row)


def page(items: list[Any], rows: list[Any], limit: int, *columns: str) -> answers.Page[Any]:
    """A page of `limit` of the items, which are one more where there is a next page."""
    if len(items) <= limit:
        return answers.Page(items)
    return answers.Page(items[:limit], write_cursor(*(rows[limit - 1][column] for column in columns)))


def write_cursor(*values: object) -> str:
    """Where a page ended: opaque to clients."""
    return base64.urlsafe_b64encode(orjson.dumps(values, default=str)).decode().rstrip("=")


def read_cursor(cursor: str | None, types: tuple[type, ...]) -> tuple[Any, ...] | None:
    """The values of a cursor; raises `ProblemError` for what isn't one of this list's."""
    if cursor is None:
        return None
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(values, list) or len(values) != len(types) or any("\x00" in v for v in values if v == str(v)):
            raise ValueError
        return tuple(_cursor_value(value, type) for value, type in zip(values, types, strict=True))
    except (ValueError, TypeError, binascii.Error):
        raise ProblemError(
            "invalid_parameter", "it isn't a cursor of this list: send what an answer had as `next`", field="cursor"
        ) from None


def _cursor_value(value: object, type: type) -> object:
    if type is datetime and isinstance(value, str):
        time = datetime.fromisoformat(value)
        if time.tzinfo is None:
            raise ValueError
        return time
    if type is UUID and isinstance(value, str):
        return UUID(value)
    if type is int and isinstance(value, int) and abs(value) < 2**62:
        return value
    if type is str and isinstance(value, str):
        return value
    raise ValueError


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _newest_first(cursor: str | None) -> tuple[Any, ...]:
    return read_cursor(cursor, (datetime, UUID)) or (None, None)


def _sync(row: Any) -> answers.Sync:
    error = wire.SyncError(row["error_code"], row["error_message"]) if row["error_code"] else None
    return answers.Sync(
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
    )
