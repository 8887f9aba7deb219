"""Releases and groups: a release is what the nodes of a group should run. It is immutable."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple
from uuid import UUID, uuid4

from msgspec import Meta, Struct

from control import wire
from control.api import pagination, requests, responses
from control.api.operations import ApiCall, Reply
from control.api.release_making import FUNCTIONS, GROUP, RELEASE, ReleaseListRow, find_group, make
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import compatibility, losses


class GroupListRow(NamedTuple):
    """A group with its release, if it has one, and the number of its nodes."""

    name: str
    generation: int
    release_id: UUID | None
    number: int | None
    schema_floor: int | None
    nodes: int


SQL = queries.load("releases")
GROUPS = SQL.rows("groups", GroupListRow)
RELEASES = SQL.rows("releases", ReleaseListRow)


class ReleaseQuery(pagination.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None


class PlanQuery(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only answer what it would be and change; nothing is kept."""


async def create(call: ApiCall) -> Reply:
    """POST /v1/releases."""
    body = call.body
    capabilities = await call.services.db.read(lambda conn: compatibility.group_capabilities(conn, body.group))
    lost = await call.services.db.read(lambda conn: losses.of_group(conn, body.group))

    async def work(conn: Connection, changed: Changed) -> responses.MadeRelease:
        now, by = call.services.clock.now(), call.operator.name
        made = await make(conn, changed, now, by, body, capabilities, lost, plan=call.query.plan)
        if not call.query.plan:
            await record(call, conn, made)
        return made

    if call.query.plan:
        return await call.read(lambda conn: work(conn, Changed()))
    return await call.write(work)


class PlanFor(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only answer what would be made, and what a release of `group` with it would change; nothing is kept."""
    group: wire.Name | None = None
    schema: Annotated[int, Meta(ge=0)] | None = None
    """The floor of that release; if not given, the newest schema change."""


async def planned(
    call: ApiCall, conn: Connection, functions: dict[str, int] | None = None
) -> responses.MadeRelease | None:
    """What a release would be that the call's `PlanFor` asks for, after what was written in the transaction."""
    query: PlanFor = call.query
    if query.group is None:
        return None
    body = requests.NewRelease(group=query.group, functions=functions or {}, schema=query.schema)
    capabilities = await compatibility.group_capabilities(conn, query.group)
    lost = await losses.of_group(conn, query.group)
    now, by = call.services.clock.now(), call.operator.name
    return await make(conn, Changed(), now, by, body, capabilities, lost, plan=True)


async def record(call: ApiCall, conn: Connection, made: responses.MadeRelease) -> None:
    """Record a release in the audit log, with the versions that it changed."""
    details = {
        "generation": made.generation,
        "reason": made.reason,
        "rollback_to": made.rollback_to,
        "unfit": made.unfit.count,
        "losses": len(made.losses),
        "schema_floor": made.schema_floor,
    }
    changes = made.changes
    before = {item.name: item.version for item in changes.remove} | {item.name: item.from_ for item in changes.change}
    after = {item.name: item.version for item in changes.add} | {item.name: item.to for item in changes.change}
    target = f"{made.group}/{made.number}"
    await call.audit(conn, "release.create", target, details, before={"functions": before}, after={"functions": after})


async def list_releases(call: ApiCall) -> Reply:
    """GET /v1/releases, newest first."""
    query = call.query
    after = pagination.read_cursor(query.cursor, (int, str)) or (2**62, "")

    async def work(conn: Connection) -> responses.Page[responses.Release]:
        if query.group is not None:
            await find_group(conn, query.group)
        return await pagination.fill(
            lambda after, count: conn.fetch(RELEASES, *after, query.group, count),
            lambda rows: _with_functions(conn, rows),
            lambda row: (row.generation, str(row.id)),
            after,
            query.limit,
            first=4,
        )

    return await call.read(work)


async def get_release(call: ApiCall) -> Reply:
    """GET /v1/releases/{group}/{number}."""
    group, number = call.path["group"], call.path["number"]

    async def work(conn: Connection) -> responses.Release:
        await find_group(conn, group)
        row = await conn.fetchrow(RELEASE, group, number)
        if row is None:
            raise ProblemError("unknown_release", f"group {group} has no release {number}", field="number")
        return (await _with_functions(conn, [row]))[0]

    return await call.read(work)


async def create_group(call: ApiCall) -> Reply:
    """POST /v1/groups."""
    name = call.body.name

    async def work(conn: Connection, _changed: Changed) -> responses.Group:
        if await conn.fetchrow(GROUP, name) is not None:
            raise ProblemError("name_taken", f"there is a group {name} already", field="name")
        await conn.execute(SQL["add_group"], uuid4(), name, call.services.clock.now())
        await call.audit(conn, "group.create", name)
        return responses.Group(name, 0, None, 0)

    return await call.write(work)


async def list_groups(call: ApiCall) -> Reply:
    """GET /v1/groups."""
    paging = call.query
    after = pagination.read_cursor(paging.cursor, (str,)) or ("",)

    async def describe(conn: Connection, rows: Sequence[GroupListRow]) -> list[responses.Group]:
        functions = await _functions(conn, [row.release_id for row in rows if row.release_id is not None])
        items = []
        for row in rows:
            release = None
            if row.release_id is not None and row.number is not None and row.schema_floor is not None:
                listed = functions.get(row.release_id, [])
                release = responses.GroupRelease(row.number, row.generation, row.schema_floor, listed)
            items.append(responses.Group(row.name, row.generation, release, row.nodes))
        return items

    async def work(conn: Connection) -> responses.Page[responses.Group]:
        return await pagination.fill(
            lambda after, count: conn.fetch(GROUPS, *after, count),
            lambda rows: describe(conn, rows),
            lambda row: (row.name,),
            after,
            paging.limit,
            first=4,
        )

    return await call.read(work)


async def _functions(conn: Connection, release_ids: list[UUID]) -> dict[UUID, list[responses.ReleaseFunction]]:
    found: dict[UUID, list[responses.ReleaseFunction]] = {}
    for row in await conn.fetch(FUNCTIONS, [str(id) for id in release_ids]):
        item = responses.ReleaseFunction(row.name, row.version, row.sha256)
        found.setdefault(row.release_id, []).append(item)
    return found


async def _with_functions(conn: Connection, rows: Sequence[ReleaseListRow]) -> list[responses.Release]:
    functions = await _functions(conn, [row.id for row in rows])
    return [
        responses.Release(
            id=str(row.id),
            group=row.group_name,
            number=row.number,
            generation=row.generation,
            schema_floor=row.schema_floor,
            functions=functions.get(row.id, []),
            rollback_to=row.rollback_to,
            reason=row.reason,
            created_by=row.created_by,
            created_at=row.created_at,
        )
        for row in rows
    ]
