"""Groups of nodes: created, listed, and deleted when nothing needs them."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
from msgspec import Meta, Struct

from control.api import node_views, pagination, release_bodies
from control.api.operations import ApiCall, Reply, operation
from control.api.releases import GROUP, functions_of
from control.problems import ProblemError
from control.protocol.wire import Body, Name
from control.rollouts import acts, store
from control.rollouts.policy import Policy, rules_of
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection


class NewGroup(Body, frozen=True):
    name: Name


class GroupRelease(Struct):
    number: int
    generation: int
    schema_floor: int
    functions: list[release_bodies.ReleaseFunction]


class GroupBackup(Body, frozen=True):
    """How the databases of a group's nodes are backed up."""

    interval: Annotated[float, Meta(ge=1, le=86_400)] = 10.0
    """Seconds between two uploads of a node while somebody writes."""
    retention: Annotated[int, Meta(ge=3_600, le=10 * 365 * 86_400)] = 30 * 86_400
    """Seconds for which each state can be brought back."""


class Group(Struct):
    name: str
    generation: int
    release: GroupRelease | None
    nodes: int
    policy: Policy | None
    """How its releases go out; null: to all nodes at once."""
    backup: GroupBackup | None
    """How its nodes' databases are backed up; null: they aren't."""


class GroupListRow(NamedTuple):
    """A group with its release, if it has one, and the number of its nodes."""

    name: str
    generation: int
    release_id: UUID | None
    number: int | None
    schema_floor: int | None
    nodes: int
    policy: dict[str, Any] | None
    backup: dict[str, Any] | None


class PolicyRow(NamedTuple):
    """A group that is locked, and its policy."""

    id: UUID
    policy: dict[str, Any] | None


class BackupRow(NamedTuple):
    """A group that is locked, and how its nodes are backed up."""

    id: UUID
    backup: dict[str, Any] | None


SQL = queries.load("groups")
GROUPS = SQL.rows("groups", GroupListRow)
POLICY = SQL.rows("policy", PolicyRow)
BACKUP = SQL.rows("backup", BackupRow)
NODES = SQL.value("nodes", str)
JOIN_TOKENS = SQL.value("join_tokens", str)
OPERATORS = SQL.value("operators", str)

DEFAULT_GROUP = "default"
"""The default group of nodes and releases; it can't be deleted."""
SHOWN = 5
"""The most names of each kind in a refusal."""


@operation(
    "GET",
    "/v1/groups",
    "Groups and their releases",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[Group]},
)
async def list_groups(call: ApiCall, query: pagination.Paging) -> Reply:
    after = pagination.read_cursor(query.cursor, (str,)) or ("",)
    groups = call.operator.rights.groups("read")

    async def describe(conn: Connection, rows: Sequence[GroupListRow]) -> list[Group]:
        functions = await functions_of(conn, [row.release_id for row in rows if row.release_id is not None])
        items = []
        for row in rows:
            release = None
            if row.release_id is not None and row.number is not None and row.schema_floor is not None:
                listed = functions.get(row.release_id, [])
                release = GroupRelease(row.number, row.generation, row.schema_floor, listed)
            policy = None if row.policy is None else msgspec.convert(row.policy, Policy)
            backup = None if row.backup is None else msgspec.convert(row.backup, GroupBackup)
            items.append(Group(row.name, row.generation, release, row.nodes, policy, backup))
        return items

    async def work(conn: Connection) -> pagination.Page[Group]:
        return await pagination.fill(
            lambda after, count: conn.fetch(GROUPS, *after, groups, count),
            lambda rows: describe(conn, rows),
            lambda row: (row.name,),
            after,
            query.limit,
            first=4,
        )

    return await call.read(work)


@operation("POST", "/v1/groups", "Make a group", role="deploy", answers={201: Group}, errors=("name_taken",))
async def create_group(call: ApiCall, body: NewGroup) -> Reply:
    name = body.name

    async def work(conn: Connection, _changed: Changed) -> Group:
        if await conn.fetchrow(GROUP, name) is not None:
            raise ProblemError("name_taken", f"there is a group {name} already", field="name")
        await conn.execute(SQL["add"], uuid4(), name, call.services.clock.now())
        await call.audit(conn, "group.create", name)
        return Group(name, 0, None, 0, None, None)

    return await call.write(work)


@operation(
    "PUT",
    "/v1/groups/{group}/policy",
    "Set how releases of a group go out",
    role="deploy",
    everywhere=False,
    answers={200: Policy},
    errors=("unknown_group", "invalid_policy"),
)
async def set_policy(call: ApiCall, body: Policy) -> Reply:
    """Set the policy of releases to come; an open rollout goes on by its own."""
    name = _deployed(call)
    rules_of(body)

    async def work(conn: Connection, _changed: Changed) -> Policy:
        await _write_policy(call, conn, name, body)
        return body

    return await call.write(work, status=200)


@operation(
    "DELETE",
    "/v1/groups/{group}/policy",
    "Let releases of a group go to all nodes at once",
    role="deploy",
    everywhere=False,
    answers={204: None},
    errors=("unknown_group",),
)
async def delete_policy(call: ApiCall) -> Reply:
    """Delete the policy; an open rollout goes on by its own."""
    name = _deployed(call)
    return await call.write(lambda conn, _changed: _write_policy(call, conn, name, None), status=204)


def _deployed(call: ApiCall) -> str:
    """Return the group that is named. Raises: ProblemError, when the operator may not see it, or not deploy to it."""
    name: str = call.path["group"]
    if not call.operator.rights.allows("read", name):
        raise node_views.unknown_group(name)
    call.operator.need("deploy", name)
    return name


async def _write_policy(call: ApiCall, conn: Connection, name: str, policy: Policy | None) -> None:
    row = await conn.fetchrow(POLICY, name)
    if row is None:
        raise node_views.unknown_group(name)
    new = None if policy is None else msgspec.to_builtins(policy)
    await conn.execute(SQL["set_policy"], row.id, new)
    await call.audit(conn, "group.policy", name, before={"policy": row.policy}, after={"policy": new})


@operation(
    "PUT",
    "/v1/groups/{group}/backup",
    "Back up the databases of a group's nodes",
    role="deploy",
    everywhere=False,
    answers={200: GroupBackup},
    errors=("unknown_group",),
)
async def set_backup(call: ApiCall, body: GroupBackup) -> Reply:
    """Nodes begin, or take another interval, with their next poll."""
    name = _deployed(call)

    async def work(conn: Connection, changed: Changed) -> GroupBackup:
        await _write_backup(call, conn, changed, name, body)
        return body

    return await call.write(work, status=200)


@operation(
    "DELETE",
    "/v1/groups/{group}/backup",
    "Back up the databases of a group's nodes no more",
    role="deploy",
    everywhere=False,
    answers={204: None},
    errors=("unknown_group",),
)
async def delete_backup(call: ApiCall) -> Reply:
    """What is at the store stays there and can be brought back; it isn't swept any more."""
    name = _deployed(call)
    return await call.write(lambda conn, changed: _write_backup(call, conn, changed, name, None), status=204)


async def _write_backup(
    call: ApiCall, conn: Connection, changed: Changed, name: str, backup: GroupBackup | None
) -> None:
    row = await conn.fetchrow(BACKUP, name)
    if row is None:
        raise node_views.unknown_group(name)
    new = None if backup is None else msgspec.to_builtins(backup)
    await conn.execute(SQL["set_backup"], row.id, new)
    changed.groups.add(str(row.id))
    await call.audit(conn, "group.backup", name, before={"backup": row.backup}, after={"backup": new})


@operation(
    "DELETE",
    "/v1/groups/{group}",
    "Delete a group that nothing needs",
    role="admin",
    answers={204: None},
    errors=("unknown_group", "group_in_use"),
)
async def delete_group(call: ApiCall) -> Reply:
    """Refused while anything needs it. Its releases leave the lists; the audit log keeps them."""
    name: str = call.path["group"]

    async def work(conn: Connection, changed: Changed) -> None:
        id = await node_views.group(conn, name)
        if name == DEFAULT_GROUP:
            raise ProblemError("group_in_use", f"the group {name} is that of nodes for which no other one is named")
        now = call.services.clock.now()
        uses: list[tuple[str, list[Any]]] = [
            ("nodes", await conn.column(NODES, id, SHOWN + 1)),
            ("join tokens that are open", await conn.column(JOIN_TOKENS, id, now, SHOWN + 1)),
            ("grants of operators", await conn.column(OPERATORS, name, now, SHOWN + 1)),
        ]
        found = [f"{what} ({_some(names)})" for what, names in uses if names]
        if found:
            raise ProblemError("group_in_use", f"the group {name} still has {', '.join(found)}", field="group")
        if (rollout := await store.open_of(conn, id)) is not None:
            await acts.end(conn, changed, now, rollout, "aborted", "its group was deleted")
        await conn.execute(SQL["delete"], id, now)
        changed.groups.add(str(id))
        await call.audit(conn, "group.delete", name, before={"id": str(id)})

    return await call.write(work, status=204)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and others" if len(names) > SHOWN else "")
