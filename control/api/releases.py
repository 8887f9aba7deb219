"""Releases: a release is what the nodes of a group should run. It is immutable."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from control.access.auth import Principal
from control.access.rights import Grant
from control.api import pagination, release_bodies, undo
from control.api.node_views import unknown_group
from control.api.operations import ApiCall, Audit, Reply, operation
from control.api.release_making import (
    FUNCTIONS,
    RELEASE,
    GroupRow,
    ReleaseListRow,
    Way,
    changes_by,
    make,
    rollback_target,
    to_release,
)
from control.backups.undo import AtStore
from control.edge_check import CheckedChange
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.counts import counted
from control.rollouts.policy import Policy, rules_of
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import change_effects, compatibility


class ShownRelease(release_bodies.DetailedRelease):
    rolls_back_to: int | None
    """The number of the release that a rollback goes to; null if this isn't the group's newest, or there is none. A
    release that is only rehearsed isn't its newest."""
    undo: release_bodies.UndoCounts | None
    """How far nodes' data have gone back with it; null if it isn't a rollback with data."""


class ReleaseRetry(Struct):
    nodes: int
    """How many failing nodes try again with their next poll."""


SQL = queries.load("releases")
GROUP = SQL.rows("group", GroupRow)
RELEASES = SQL.rows("releases", ReleaseListRow)
RETRY = SQL.value("retry", str)

FOLLOWING_ERRORS = (
    *("unknown_group", "unknown_schema_change", "release_not_possible", "route_conflict", "nodes_unfit"),
    *("loss_not_allowed", "stall_not_allowed", "invalid_policy", "rollout_open"),
)
"""Codes with which a release that is made with a version or a schema change may be refused."""
MOST_RETRIED = 10_000
"""The most nodes that one request lets try again; another request continues with the others."""


class ReleaseQuery(pagination.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None


class PlanQuery(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only return what it would be and change; nothing is kept."""


@operation(
    "POST",
    "/v1/releases",
    "Make a release, or with plan say what it would change",
    role="push",
    everywhere=False,
    answers={200: release_bodies.MadeRelease, 201: release_bodies.MadeRelease},
    errors=("unknown_function", "unknown_version", "unknown_release", "plan_changed", *FOLLOWING_ERRORS),
)
async def create(call: ApiCall, body: release_bodies.NewRelease, query: PlanQuery) -> Reply:
    call.operator.need("push", body.group, ())
    at_store: AtStore | None = None
    if body.data:
        call.operator.need("deploy", body.group)
        if not query.plan and (kept := await call.replayed()):
            return kept
        at_store = await undo.at_store(call.services, body.group, body.rollback_to)
    known = await _known(call, body.group)

    async def work(conn: Connection, changed: Changed) -> release_bodies.MadeRelease:
        return await _make(call, conn, changed, body, known, plan=query.plan, at_store=at_store)

    if query.plan:
        if not body.data:
            return await call.read(lambda conn: work(conn, Changed()))
        planned = await call.services.db.read(lambda conn: work(conn, Changed()))
        await undo.compare(call.services, planned.undo)
        return Reply(200, planned)
    return await call.write(work)


class PlanFor(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only return what would be made, and what a release of `group` with it would change; nothing is kept."""
    group: wire.Name | None = None
    schema: Annotated[int, Meta(ge=0)] | None = None
    """The floor of that release; if not given, the newest schema change, or the one that the group was lowered to."""


class KnownOfGroup(NamedTuple):
    """What a release depends on and reads outside its own transaction, so as not to conflict with nodes' reports."""

    capabilities: Sequence[compatibility.SameCapabilities]
    effects: change_effects.Found
    has_nodes: bool
    """Whether the group has a node that isn't revoked."""


NOTHING_KNOWN = KnownOfGroup((), change_effects.NOTHING, has_nodes=False)
"""For a group that doesn't exist."""


class ReleaseToMake(NamedTuple):
    """A release that is requested with a version or a schema change."""

    body: release_bodies.FollowingRelease
    known: KnownOfGroup
    plan: bool
    """Only return what it would be; nothing is kept."""


async def _known(
    call: ApiCall, group: str, number: int | None = None, checked: CheckedChange | None = None
) -> KnownOfGroup:
    """Read what a release of the group depends on. `number`, `checked`: of the schema change made with it."""
    services = call.services

    async def read(conn: Connection, *, as_they_are: bool = False) -> KnownOfGroup | None:
        """Return None if there are changes that aren't checked yet, unless they are to be taken `as_they_are`."""
        row = await change_effects.group_floor(conn, group)
        if row is None:
            return NOTHING_KNOWN
        registered = await change_effects.registered_between(conn, row.schema_floor, row.newest_change)
        if not as_they_are and not all(change.known for change in registered):
            return None
        return KnownOfGroup(
            await compatibility.group_capabilities(conn, row.id),
            await change_effects.of_group(conn, row.id, registered, number, checked),
            row.has_nodes,
        )

    known = await services.db.read(read)
    if known is None:
        # Between transactions, since a check may take long.
        await change_effects.check_for_group(services.databases.writes, services.checks.of(call.operator.id), group)
        known = await services.db.read(partial(read, as_they_are=True))
    return known or NOTHING_KNOWN


async def following(
    call: ApiCall,
    body: release_bodies.FollowingRelease | None,
    query: PlanFor,
    number: int | None = None,
    checked: CheckedChange | None = None,
) -> ReleaseToMake | None:
    """Return the release to make or plan with a version or a schema change; None if the call requests none.

    `number`, `checked`: of the schema change.
    """
    if body is None and query.plan and query.group is not None:
        body = release_bodies.FollowingRelease(group=query.group, schema=query.schema)
    if body is None:
        return None
    call.operator.need("push", body.group, ())
    return ReleaseToMake(body, await _known(call, body.group, number, checked), query.plan)


async def make_following(
    call: ApiCall,
    conn: Connection,
    changed: Changed,
    wanted: ReleaseToMake | None,
    functions: dict[str, int] | None = None,
) -> release_bodies.MadeRelease | None:
    """Make or plan the release that `following` returned, after what the transaction wrote.

    That is a version of each of `functions`, or, without any, a schema change.
    """
    if wanted is None:
        return None
    given = asdict(wanted.body)
    body = release_bodies.NewRelease(**{**given, "functions": {**given["functions"], **(functions or {})}})
    return await _make(call, conn, changed, body, wanted.known, plan=wanted.plan, with_change=functions is None)


async def _make(
    call: ApiCall,
    conn: Connection,
    changed: Changed,
    body: release_bodies.NewRelease,
    known: KnownOfGroup,
    *,
    plan: bool,
    with_change: bool = False,
    at_store: AtStore | None = None,
) -> release_bodies.MadeRelease:
    """Make or plan a release, and record a made one in the audit log.

    It changes no more than the operator may change in its group.
    """
    operator = call.operator
    deploys = operator.rights.allows("deploy", body.group)
    made, way = await make(
        conn,
        changed,
        call.services.clock.now(),
        operator.name,
        body,
        known.capabilities,
        known.effects,
        call.services.settings.stall_limit,
        plan=plan,
        keep_floor=not deploys,
        with_change=with_change,
        has_nodes=known.has_nodes,
        at_store=at_store,
    )
    if not deploys:
        _refuse_more(operator, made, way)
    if not plan:
        await record(call.audit, conn, made, way)
    return made


def _refuse_more(operator: Principal, made: release_bodies.MadeRelease, way: Way) -> None:
    """Check that a release does no more than the operator's grants in its group allow. Raises: AuthError."""
    changes = made.changes
    touched = {f.name for f in (*changes.add, *changes.remove)} | {f.name for f in changes.change}
    more = [f"changes {n}" for n in sorted(touched) if not operator.rights.allows("push", made.group, {n})]
    if made.schema_floor != made.floor_before:
        more.append(f"moves the schema floor from {made.floor_before} to {made.schema_floor}")
    if made.unfit.count and made.id is not None:
        more.append(f"goes to {counted(made.unfit.count, 'node')} that can't run it")
    if way.own:
        more.append("goes out in another way than the group's policy says")
    if more:
        operator.refuse(f"the role {Grant('deploy', made.group)}, since the release {', and '.join(more)}")


async def record(audit: Audit, conn: Connection, made: release_bodies.MadeRelease, way: Way) -> None:
    """Record a release in the audit log: the versions that it changed, and whether it leaves out a policy."""
    details: dict[str, Any] = {
        "generation": made.generation,
        "reason": made.reason,
        "rollback_to": made.rollback_to,
        "unfit": made.unfit.count,
        "losses": len(made.losses),
        "schema_floor": made.schema_floor,
    }
    if made.rollout is not None:
        details["rollout"] = msgspec.to_builtins(way.policy)
    if way.rehearsal_only:
        details["rehearsal_only"] = True
    if way.left_out:
        details["now"] = True
    if made.undo is not None:
        details["data"] = {"back": made.undo.back, "left": made.undo.left}
    changes = made.changes
    before = {item.name: item.version for item in changes.remove} | {item.name: item.from_ for item in changes.change}
    after = {item.name: item.version for item in changes.add} | {item.name: item.to for item in changes.change}
    target = f"{made.group}/{made.number}"
    await audit(conn, "release.create", target, details, before={"functions": before}, after={"functions": after})


@operation(
    "GET",
    "/v1/releases",
    "Releases, newest first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[release_bodies.Release]},
    errors=("unknown_group",),
)
async def list_releases(call: ApiCall, query: ReleaseQuery) -> Reply:
    after = pagination.read_cursor(query.cursor, (int, str)) or (2**62, "")
    groups = call.operator.rights.groups("read") if query.group is None else [query.group]

    async def work(conn: Connection) -> pagination.Page[release_bodies.Release]:
        if query.group is not None:
            await _visible(conn, call.operator, query.group)
        return await pagination.fill(
            lambda after, count: conn.fetch(RELEASES, *after, groups, count),
            lambda rows: _with_functions(conn, rows),
            lambda row: (row.generation, str(row.id)),
            after,
            query.limit,
            first=4,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/releases/{group}/{number}",
    "A release",
    role="read",
    everywhere=False,
    answers={200: ShownRelease},
    errors=("unknown_group", "unknown_release"),
)
async def get_release(call: ApiCall) -> Reply:
    group, number = call.path["group"], call.path["number"]

    async def work(conn: Connection) -> ShownRelease:
        await _visible(conn, call.operator, group)
        row = await _release(conn, group, number)
        changes, floor_before = await changes_by(conn, row)
        next_one = await to_release(conn, group)
        back = await rollback_target(conn, next_one) if row.id == next_one.release_id else None
        found = (await _with_functions(conn, [row]))[0]
        undone = await undo.counts(conn, row.id, row.number)
        return ShownRelease(
            **asdict(found), floor_before=floor_before, changes=changes, rolls_back_to=back, undo=undone
        )

    return await call.read(work)


@operation(
    "POST",
    "/v1/releases/{group}/{number}/retry",
    "Let the failing nodes of a group try its release again at once",
    role="deploy",
    everywhere=False,
    answers={200: ReleaseRetry},
    errors=("unknown_group", "unknown_release", "release_not_possible"),
)
async def retry(call: ApiCall) -> Reply:
    """Let the group's failing nodes try again with their next poll."""
    group, number = call.path["group"], call.path["number"]
    if not call.operator.rights.allows("read", group):
        raise unknown_group(group)
    call.operator.need("deploy", group)

    async def work(conn: Connection, changed: Changed) -> ReleaseRetry:
        found = await _group(conn, group)
        row = await _release(conn, group, number)
        if row.id != found.release_id and row.state not in ("running", "paused", "aborted"):
            raise ProblemError(
                "release_not_possible",
                f"release {number} isn't the target of nodes of group {group} any more: they try the newest one",
                field="number",
            )
        ids = await conn.column(RETRY, found.id, MOST_RETRIED, row.id)
        changed.nodes.update(ids)
        await call.audit(conn, "release.retry", f"{group}/{number}", {"nodes": len(ids)})
        return ReleaseRetry(len(ids))

    return await call.write(work, status=200)


async def _release(conn: Connection, group: str, number: int) -> ReleaseListRow:
    """Return a group's release by number. Raises: ProblemError unknown_release, when there is none."""
    row = await conn.fetchrow(RELEASE, group, number)
    if row is None:
        raise ProblemError("unknown_release", f"group {group} has no release {number}", field="number")
    return row


async def _visible(conn: Connection, operator: Principal, group: str) -> GroupRow:
    """Return a group. Raises: ProblemError unknown_group, when there is none, or the operator may not see it."""
    if not operator.rights.allows("read", group):
        raise unknown_group(group)
    return await _group(conn, group)


async def _group(conn: Connection, name: str) -> GroupRow:
    """Return the group of this name. Raises: ProblemError unknown_group, when there is none."""
    row = await conn.fetchrow(GROUP, name)
    if row is None:
        raise unknown_group(name)
    return row


async def functions_of(conn: Connection, release_ids: list[UUID]) -> dict[UUID, list[release_bodies.ReleaseFunction]]:
    """Return the functions of each of these releases."""
    found: dict[UUID, list[release_bodies.ReleaseFunction]] = {}
    for row in await conn.fetch(FUNCTIONS, [str(id) for id in release_ids]):
        item = release_bodies.ReleaseFunction(row.name, row.version, row.sha256)
        found.setdefault(row.release_id, []).append(item)
    return found


async def _with_functions(conn: Connection, rows: Sequence[ReleaseListRow]) -> list[release_bodies.Release]:
    functions = await functions_of(conn, [row.id for row in rows])
    return [
        release_bodies.Release(
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
            rollout=_rollout(row),
        )
        for row in rows
    ]


def _rollout(row: ReleaseListRow) -> release_bodies.ReleaseRollout | None:
    if row.state is None:
        return None
    policy = msgspec.convert(row.policy, Policy)
    only = bool(row.rehearsal_only)
    steps = [step.text for step in rules_of(policy).steps]
    return release_bodies.ReleaseRollout(row.state, policy.rehearse or only, only, steps)
