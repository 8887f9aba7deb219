"""The audit log with its seals, and refused authentications; newest first."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from control.api import pagination
from control.api.operations import ApiCall, Reply, operation
from control.api.pagination import LATEST, Paging
from control.audit_chain import AuditEntry, AuditSeal
from control.storage import audit_log, queries
from control.storage.connection import Connection


class AuthFailure(Struct):
    """Refused authentications of one minute, address and reason (R 7.4)."""

    minute: datetime
    address: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime


SQL = queries.load("audit")
SEALED = SQL.rows("sealed", AuditEntry)
SEALS = SQL.rows("seals", AuditSeal)
NEWEST = SQL.rows("newest", AuditEntry)
BY_INDEX = tuple(
    (by, SQL.rows(f"newest_{name}", AuditEntry))
    for by, name in (("target", "of_target"), ("actor", "of_actor"), ("action", "with_action"))
)
"""For each filter, the query that reads only its rows by an index; of several given filters, the first one counts."""
AUTH_FAILURES = SQL.rows("auth_failures", AuthFailure)

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LOWEST = -(2**63)
"""Below every seal number that the database can contain: somebody who writes there may invent one below 0."""

FilterText = Annotated[str, Meta(min_length=1, max_length=300)]
FilterTime = Annotated[datetime, Meta(tz=True)]


class AuditFilter(Paging, forbid_unknown_fields=True):
    actor: FilterText | None = None
    """The name of an operator, a node, or a part of control."""
    target: FilterText | None = None
    action: FilterText | None = None
    since: FilterTime | None = None
    """The time of the oldest row."""
    until: FilterTime | None = None
    """A time that is later than the newest row's."""


class AfterSeal(Paging, forbid_unknown_fields=True):
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The number of a seal, after which the list begins."""


@operation(
    "GET",
    "/v1/audit",
    "Who changed what, newest first",
    role="admin",
    answers={200: pagination.Page[AuditEntry]},
)
async def list_audit(call: ApiCall, query: AuditFilter) -> Reply:
    return await call.read(lambda conn: _audit(conn, query))


@operation(
    "GET",
    "/v1/audit/sealed",
    "The rows of the audit log that have a seal, in the order in which they are hashed",
    role="admin",
    answers={200: pagination.Page[AuditEntry]},
)
async def list_sealed(call: ApiCall, query: AfterSeal) -> Reply:
    """List the rows that have a seal, by seal, time and id: the order in which they are hashed."""
    return await call.read(lambda conn: _sealed(conn, query))


@operation(
    "GET",
    "/v1/audit/seals",
    "The seals over the audit log's rows, by number",
    role="admin",
    answers={200: pagination.Page[AuditSeal]},
)
async def list_seals(call: ApiCall, query: AfterSeal) -> Reply:
    return await call.read(lambda conn: _seals(conn, query))


async def newest_seal(call: ApiCall) -> Reply:
    """Return the newest seal, or None if there is none yet."""
    return await call.read(lambda conn: conn.fetchrow(audit_log.NEWEST_SEAL))


@operation(
    "GET",
    "/v1/auth-failures",
    "Refused authentications, newest first",
    role="admin",
    answers={200: pagination.Page[AuthFailure]},
)
async def list_auth_failures(call: ApiCall, query: pagination.Paging) -> Reply:
    return await call.read(lambda conn: _auth_failures(conn, query))


async def _audit(conn: Connection, query: AuditFilter) -> pagination.Page[AuditEntry]:
    rows = next((rows for name, rows in BY_INDEX if getattr(query, name) is not None), NEWEST)
    # Because of their offsets from UTC, times may be out of the database's range.
    since, until = (min(max(time, EARLIEST), LATEST) for time in (query.since or EARLIEST, query.until or LATEST))
    return await pagination.fill(
        lambda after, count: conn.fetch(rows, query.target, query.actor, query.action, *after, since, count),
        pagination.as_they_are,
        lambda row: (row.at, row.id),
        pagination.read_cursor(query.cursor, (datetime, UUID)) or (until, UUID(int=0)),
        query.limit,
    )


async def _sealed(conn: Connection, paging: AfterSeal) -> pagination.Page[AuditEntry]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SEALED, *after, count),
        pagination.as_they_are,
        lambda row: (row.seal, row.at, row.id),
        pagination.read_cursor(paging.cursor, (int, datetime, UUID)) or (paging.after or LOWEST, LATEST, UUID(int=0)),
        paging.limit,
    )


async def _seals(conn: Connection, paging: AfterSeal) -> pagination.Page[AuditSeal]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SEALS, *after, count),
        pagination.as_they_are,
        lambda row: (row.number,),
        pagination.read_cursor(paging.cursor, (int,)) or (paging.after,),
        paging.limit,
    )


async def _auth_failures(conn: Connection, paging: Paging) -> pagination.Page[AuthFailure]:
    return await pagination.fill(
        lambda after, count: conn.fetch(AUTH_FAILURES, *after, count),
        pagination.as_they_are,
        lambda row: (row.minute, row.address, row.reason),
        pagination.read_cursor(paging.cursor, (datetime, str, str)) or (None, "", ""),
        paging.limit,
    )
