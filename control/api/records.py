"""The logs: changes (audit), syncs, refused authentications; newest first."""

from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

from msgspec import Meta

from control.access.rights import Rights
from control.api import pagination
from control.api.bodies import node_responses, responses
from control.api.operations import ApiCall, Reply, operation
from control.api.pagination import LATEST, Paging
from control.audit_chain import AuditEntry, AuditSeal
from control.problems import ProblemError
from control.protocol import wire
from control.storage import audit_seals, queries
from control.storage.connection import Connection


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
AUDIT_SQL = queries.load("audit")
SEALED = AUDIT_SQL.rows("sealed", AuditEntry)
SEALS = AUDIT_SQL.rows("seals", AuditSeal)
NEWEST = AUDIT_SQL.rows("newest", AuditEntry)
BY_INDEX = tuple(
    (by, AUDIT_SQL.rows(f"newest_{name}", AuditEntry))
    for by, name in (("target", "of_target"), ("actor", "of_actor"), ("action", "with_action"))
)
"""The query that reads only such rows by an index, for each filter; where several are given, the first of these."""
AUTH_FAILURES = SQL.rows("auth_failures", responses.AuthFailure)
NODES = SQL.value("nodes", UUID)
SYNCS = SQL.rows("syncs", SyncRow)
SYNC = SQL.rows("sync", SyncRow)


EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LOWEST = -(2**63)
"""Below every number that the database can have of a seal: whoever writes there may invent one below 0."""

FilterText = Annotated[str, Meta(min_length=1, max_length=300)]
FilterTime = Annotated[datetime, Meta(tz=True)]


class AuditFilter(Paging, forbid_unknown_fields=True):
    actor: FilterText | None = None
    """The name of an operator, of a node, or of the part of control."""
    target: FilterText | None = None
    action: FilterText | None = None
    since: FilterTime | None = None
    """The time of the oldest row."""
    until: FilterTime | None = None
    """A time that is later than the newest row's."""


class AfterSeal(Paging, forbid_unknown_fields=True):
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The number of a seal, after which the list begins."""


class SyncFilter(Paging, forbid_unknown_fields=True):
    node: wire.Name | None = None
    """A node's name or id."""
    status: Literal["running", "succeeded", "failed", "expired", "superseded"] | None = None


@operation(
    "GET",
    "/v1/audit",
    "Who changed what, newest first",
    role="admin",
    answers={200: responses.Page[AuditEntry]},
)
async def list_audit(call: ApiCall, query: AuditFilter) -> Reply:
    return await call.read(lambda conn: _audit(conn, query))


@operation(
    "GET",
    "/v1/audit/sealed",
    "The rows of the audit log that have a seal, in the order in which they are hashed",
    role="admin",
    answers={200: responses.Page[AuditEntry]},
)
async def list_sealed(call: ApiCall, query: AfterSeal) -> Reply:
    """The rows that have a seal, by seal, time and id: the order in which they are hashed."""
    return await call.read(lambda conn: _sealed(conn, query))


@operation(
    "GET",
    "/v1/audit/seals",
    "The seals over the audit log's rows, by number",
    role="admin",
    answers={200: responses.Page[AuditSeal]},
)
async def list_seals(call: ApiCall, query: AfterSeal) -> Reply:
    return await call.read(lambda conn: _seals(conn, query))


async def newest_seal(call: ApiCall) -> Reply:
    """The newest seal, or None where there is none yet."""
    return await call.read(lambda conn: conn.fetchrow(audit_seals.NEWEST_SEAL))


@operation(
    "GET",
    "/v1/auth-failures",
    "Refused authentications, newest first",
    role="admin",
    answers={200: responses.Page[responses.AuthFailure]},
)
async def list_auth_failures(call: ApiCall, query: pagination.Paging) -> Reply:
    return await call.read(lambda conn: _auth_failures(conn, query))


@operation(
    "GET",
    "/v1/syncs",
    "The log of syncs, newest first",
    role="read",
    everywhere=False,
    answers={200: responses.Page[node_responses.Sync]},
)
async def list_syncs(call: ApiCall, query: SyncFilter) -> Reply:
    return await call.read(lambda conn: _syncs(conn, query, call.operator.rights.groups("read")))


@operation(
    "GET",
    "/v1/syncs/{id}",
    "A sync",
    role="read",
    everywhere=False,
    answers={200: node_responses.Sync},
    errors=("unknown_sync",),
)
async def get_sync(call: ApiCall) -> Reply:
    return await call.read(lambda conn: _one_sync(conn, call.path["id"], call.operator.rights))


async def _audit(conn: Connection, query: AuditFilter) -> responses.Page[AuditEntry]:
    rows = next((rows for name, rows in BY_INDEX if getattr(query, name) is not None), NEWEST)
    # By their offsets from UTC, times may be outside of what the database takes.
    since, until = (min(max(time, EARLIEST), LATEST) for time in (query.since or EARLIEST, query.until or LATEST))
    return await pagination.fill(
        lambda after, count: conn.fetch(rows, query.target, query.actor, query.action, *after, since, count),
        pagination.as_they_are,
        lambda row: (row.at, row.id),
        pagination.read_cursor(query.cursor, (datetime, UUID)) or (until, UUID(int=0)),
        query.limit,
    )


async def _sealed(conn: Connection, paging: AfterSeal) -> responses.Page[AuditEntry]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SEALED, *after, count),
        pagination.as_they_are,
        lambda row: (row.seal, row.at, row.id),
        pagination.read_cursor(paging.cursor, (int, datetime, UUID)) or (paging.after or LOWEST, LATEST, UUID(int=0)),
        paging.limit,
    )


async def _seals(conn: Connection, paging: AfterSeal) -> responses.Page[AuditSeal]:
    return await pagination.fill(
        lambda after, count: conn.fetch(SEALS, *after, count),
        pagination.as_they_are,
        lambda row: (row.number,),
        pagination.read_cursor(paging.cursor, (int,)) or (paging.after,),
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


async def _syncs(conn: Connection, query: SyncFilter, groups: list[str] | None) -> responses.Page[node_responses.Sync]:
    node_ids = None
    if query.node is not None:
        node_ids = [str(id) for id in await conn.column(NODES, query.node, _as_id(query.node))]
    return await pagination.fill(
        lambda after, count: conn.fetch(SYNCS, *after, node_ids, query.status, groups, count),
        pagination.each(_sync),
        lambda row: (row.started_at, row.id),
        _newest_first(query.cursor),
        query.limit,
    )


async def _one_sync(conn: Connection, id: str, rights: Rights) -> node_responses.Sync:
    row = await conn.fetchrow(SYNC, id)
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


def _sync(row: SyncRow) -> node_responses.Sync:
    error = wire.SyncError(row.error_code, row.error_message) if row.error_code else None
    return node_responses.Sync(
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
