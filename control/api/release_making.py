"""Making a release: its contents, what is checked, and what it changes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec

from control import manifests, tracing, wire
from control.api.bodies import release_responses, requests
from control.api.node_views import unknown_group
from control.manifest_fields import Route
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import compatibility
from control.sync.effects import change_effects, plan_digests


class GroupRow(NamedTuple):
    """A group and its target."""

    id: UUID
    release_id: UUID | None
    generation: int


class FunctionOfRelease(NamedTuple):
    """A function of a release."""

    release_id: UUID
    name: str
    version: int
    sha256: str


class FoundVersion(NamedTuple):
    """A function version that exists."""

    name: str
    version: int
    sha256: str


class FunctionManifest(NamedTuple):
    """A function's name and the manifest of its version."""

    name: str
    manifest: dict[str, Any]


class ReleaseListRow(NamedTuple):
    """A release without its functions."""

    id: UUID
    group_name: str
    number: int
    generation: int
    schema_floor: int
    rollback_to: int | None
    reason: str
    created_by: str
    created_at: datetime


class NamedChange(NamedTuple):
    """A schema change."""

    number: int
    name: str


SQL = queries.load("releases")
GROUP = SQL.rows("group", GroupRow)
LOCK_GROUP = SQL.value("lock_group", UUID)
NEWEST_CHANGE = SQL.value("newest_change", int)
FLOOR = SQL.value("floor", int)
NUMBER = SQL.value("number", int)
ROLLBACKS = queries.load("rollbacks")
WENT_BACK = ROLLBACKS.optional("went_back", int)
ROLLBACK_TARGET = ROLLBACKS.optional("target", int)
FUNCTIONS = SQL.rows("functions", FunctionOfRelease)
VERSIONS = SQL.rows("versions", FoundVersion)
MANIFESTS = SQL.rows("manifests", FunctionManifest)
MANIFEST_SIZE = SQL.value("manifest_bytes", int)
NEXT_NUMBER = SQL.value("next_number", int)
NEXT_GENERATION = SQL.value("next_generation", int)
TAKE_GENERATION = SQL.value("take_generation", int)
RELEASE = SQL.rows("release", ReleaseListRow)
CHANGES_BETWEEN = SQL.rows("changes_between", NamedChange)

Functions = dict[str, tuple[int, str]]
"""Version and sha256 by name."""
Manifests = dict[str, dict[str, Any]]
"""The manifests of functions, by name."""

MANIFEST_BYTES = 4 * wire.MIB
"""Bytes of the manifests of a release's functions together, at most."""


async def make(
    conn: Connection,
    changed: Changed,
    now: datetime,
    by: str,
    body: requests.NewRelease,
    capabilities: Sequence[compatibility.SameCapabilities] = (),
    found: change_effects.Found = change_effects.NOTHING,
    stall_limit: float = 0.0,
    *,
    plan: bool = False,
    keep_floor: bool = False,
) -> release_responses.MadeRelease:
    """Make a release, or with `plan` only return what it would be.

    `capabilities`: those of the group's nodes. `found`: what schema changes can do to them. `stall_limit`: the seconds
    for which it may hold the writers of a node up. `keep_floor`: where `body` names no floor, keep that of the release
    before.

    Raises: ProblemError, when the release can't be made, or isn't the one of the plan that `body` names, or a node
    can't run it, can lose rows by it or would have its writers wait, and `body` doesn't allow that.
    """
    group = await find_group(conn, body.group)
    newest = await conn.fetchval(NEWEST_CHANGE)
    before, old_floor = await _contents(conn, group.release_id)
    if body.rollback:
        body = await _chosen(conn, body, group)
    if body.rollback_to is not None:
        functions, floor = await _rollback(conn, body)
    else:
        functions = await _changed(conn, body, before)
        floor = newest if body.schema is None else body.schema
        if keep_floor and body.schema is None and group.release_id is not None:
            floor = old_floor
        if floor > newest:
            raise ProblemError(
                "unknown_schema_change", f"the newest schema change is {newest}, there is no {floor}", field="schema"
            )
    await _check_size(conn, functions)
    granted = await _manifests(conn, functions)
    _check_routes(granted)
    unfit = compatibility.unfit(capabilities, granted, await compatibility.stepped(conn, old_floor, floor))
    effects = await change_effects.of_floors(conn, found, old_floor, floor)
    changes = await _changes(conn, before, functions, old_floor, floor, granted)
    number = await conn.fetchval(NEXT_NUMBER, group.id)
    digest = _digest(body.group, number, functions, floor, changes, unfit, effects)
    what = f"this release of group {body.group}"
    refusals = [] if body.allow_unfit else compatibility.refusals(unfit, body.group)
    refusals += change_effects.refusals(effects, what, stall_limit, body.allow_loss, body.allow_stall)
    if not plan:
        plan_digests.refuse_other(body.plan_digest, digest, what)
        if refusals:
            raise refusals[0]
    release_id = uuid4()
    if not plan:
        # Before the generation is taken, so that waiting for a locked group holds up no other decision.
        await lock(conn, group.id)
    generation = await conn.fetchval(NEXT_GENERATION if plan else TAKE_GENERATION)
    if not plan:
        await conn.execute(
            SQL["add"],
            release_id,
            group.id,
            number,
            generation,
            floor,
            body.rollback_to,
            body.reason,
            by,
            now,
            tracing.current(),
        )
        names = sorted(functions)
        await conn.execute(
            SQL["add_functions"],
            release_id,
            names,
            [str(functions[name][0]) for name in names],
            [functions[name][1] for name in names],
        )
        await conn.execute(SQL["set_target"], group.id, release_id, generation)
        changed.groups.add(str(group.id))
    return release_responses.MadeRelease(
        id=None if plan else str(release_id),
        group=body.group,
        number=number,
        generation=generation,
        schema_floor=floor,
        functions=[release_responses.ReleaseFunction(n, v, sha256) for n, (v, sha256) in sorted(functions.items())],
        rollback_to=body.rollback_to,
        reason=body.reason,
        created_by=by,
        created_at=now,
        floor_before=old_floor,
        changes=changes,
        unfit=unfit,
        losses=effects.losses,
        stalls=effects.stalls,
        plan_digest=digest,
        refusals=[release_responses.PlannedRefusal(each.code, each.detail, each.field) for each in refusals],
    )


def _digest(
    group: str,
    number: int,
    functions: Functions,
    floor: int,
    changes: release_responses.Changes,
    unfit: compatibility.Unfit,
    effects: change_effects.ChangeEffects,
) -> str:
    """The digest of all that a plan of a release shows, but the generation, which other groups' releases take too."""
    losses, stalls = plan_digests.of_losses(effects.losses), plan_digests.of_stalls(effects.stalls)
    return plan_digests.digest(group, number, sorted(functions.items()), floor, changes, unfit.count, losses, stalls)


async def lock(conn: Connection, group_id: UUID) -> None:
    """Lock a group until the end of the transaction."""
    await conn.fetchval(LOCK_GROUP, group_id)


async def _chosen(conn: Connection, body: requests.NewRelease, group: GroupRow) -> requests.NewRelease:
    """What is asked for, with the number of the release that it goes back to.

    Raises: ProblemError, when there is none to go back to, or `body` names one.
    """
    if body.rollback_to is not None:
        raise ProblemError("invalid_body", "send either rollback or rollback_to", field="rollback")
    number = await rollback_target(conn, group)
    if number is None:
        raise ProblemError(
            "release_not_possible",
            f"group {body.group} has no earlier release that a node has run and on which none has failed: choose one "
            f"(`skerry release list --group {body.group}`, `skerry release create --rollback-to N`)",
            field="rollback",
        )
    return msgspec.structs.replace(body, rollback_to=number)


async def rollback_target(conn: Connection, group: GroupRow) -> int | None:
    """The number of the release that a rollback of a group goes to: the newest before its own that some node has run,
    and on which none has failed; None where there is none.

    Where its own is a rollback, it is the newest one before the release that this went back to: so a second rollback
    goes further back, and not forth to what the first one has left.
    """
    if group.release_id is None:
        return None
    number = await conn.fetchval(NUMBER, group.release_id)
    while (earlier := await conn.fetchval(WENT_BACK, group.id, number)) is not None:
        number = earlier
    return await conn.fetchval(ROLLBACK_TARGET, group.id, number)


async def _rollback(conn: Connection, body: requests.NewRelease) -> tuple[Functions, int]:
    if body.functions or body.remove or body.schema is not None:
        raise ProblemError(
            "invalid_body",
            "a rollback takes the functions and the floor of the old release: send none with it",
            field="rollback_to",
        )
    row = await conn.fetchrow(RELEASE, body.group, body.rollback_to)
    if row is None:
        raise ProblemError(
            "unknown_release", f"group {body.group} has no release {body.rollback_to}", field="rollback_to"
        )
    functions, floor = await _contents(conn, row.id)
    versions = await _versions(conn, {name: version for name, (version, _) in functions.items()})
    gone = [f"{name}@{version}" for name, (version, _) in functions.items() if name not in versions]
    if gone:
        raise ProblemError(
            "release_not_possible",
            f"release {body.rollback_to} can't come back: {', '.join(sorted(gone))} was deleted since",
            field="rollback_to",
        )
    return functions, floor


async def _changed(conn: Connection, body: requests.NewRelease, before: Functions) -> Functions:
    for name in body.remove:
        if name in body.functions:
            raise ProblemError(
                "invalid_body", f"{name} is in functions and in remove: it can be in one of them only", field="remove"
            )
        if name not in before:
            raise ProblemError(
                "unknown_function", f"the newest release of {body.group} has no function {name}", field="remove"
            )
    versions = await _versions(conn, body.functions)
    for name, version in body.functions.items():
        if name not in versions:
            raise ProblemError("unknown_version", f"there is no version {version} of {name}", field=f"functions.{name}")
    return {name: item for name, item in {**before, **versions}.items() if name not in body.remove}


async def _versions(conn: Connection, wanted: dict[str, int]) -> Functions:
    """Those of the wanted versions that exist."""
    names = sorted(wanted)
    rows = await conn.fetch(VERSIONS, names, [str(wanted[name]) for name in names])
    return {row.name: (row.version, row.sha256) for row in rows}


async def _contents(conn: Connection, release_id: UUID | None) -> tuple[Functions, int]:
    """A release's functions and floor; for None, no functions and 0."""
    if release_id is None:
        return {}, 0
    rows = await conn.fetch(FUNCTIONS, [str(release_id)])
    return {row.name: (row.version, row.sha256) for row in rows}, await conn.fetchval(FLOOR, release_id)


async def _manifests(conn: Connection, functions: Functions) -> Manifests:
    names = sorted(functions)
    return dict(await conn.fetch(MANIFESTS, names, [str(functions[name][0]) for name in names]))


async def _check_size(conn: Connection, functions: Functions) -> None:
    """Raises: ProblemError release_not_possible, when the release is too large for a plan, which is one answer."""
    if len(functions) > wire.MOST_FUNCTIONS:
        raise ProblemError(
            "release_not_possible",
            f"a release has {wire.MOST_FUNCTIONS} functions at most, and this one would have {len(functions)}; remove "
            "some, or put them into releases of other groups",
            field="functions",
        )
    names = sorted(functions)
    size = await conn.fetchval(MANIFEST_SIZE, names, [str(functions[name][0]) for name in names])
    if size > MANIFEST_BYTES:
        raise ProblemError(
            "release_not_possible",
            f"the manifests of a release's functions have {MANIFEST_BYTES} bytes together at most, and these {size}; "
            "keep large configuration in the functions, or in the database",
            field="functions",
        )


def _check_routes(granted: Manifests) -> None:
    """Raises: ProblemError route_conflict, when two functions have the same route."""
    routes = {
        name: msgspec.convert(manifest["route"], Route)
        for name, manifest in granted.items()
        if manifest.get("route") is not None
    }
    said = manifests.conflict(routes)
    if said:
        raise ProblemError("route_conflict", f"{said}; give one of them another route, or take it out of the release")


async def _changes(
    conn: Connection, before: Functions, after: Functions, old_floor: int, floor: int, granted: Manifests
) -> release_responses.Changes:
    changes = await conn.fetch(CHANGES_BETWEEN, old_floor, floor) if floor > old_floor else []
    touched = sorted(name for name in after if after[name] != before.get(name))
    had = await _manifests(conn, {name: before[name] for name in touched if name in before})
    return release_responses.Changes(
        add=[release_responses.VersionOf(n, after[n][0]) for n in sorted(after.keys() - before.keys())],
        change=[
            release_responses.Replaced(n, before[n][0], after[n][0])
            for n in sorted(after.keys() & before.keys())
            if after[n] != before[n]
        ],
        remove=[release_responses.VersionOf(n, before[n][0]) for n in sorted(before.keys() - after.keys())],
        schema=[release_responses.NumberedChange(row.number, row.name) for row in changes],
        grants=[
            release_responses.ChangedGrant(name, grant, old, new)
            for name in touched
            # A version's manifest goes when it is deleted, and may be missing here of releases that were.
            if name in granted and (name in had or name not in before)
            for grant, (old, new) in manifests.differences(had.get(name, {}), granted[name]).items()
        ],
    )


async def changes_by(conn: Connection, release: ReleaseListRow) -> tuple[release_responses.Changes, int]:
    """How a release differs from the one before it in its group, and the floor of that one."""
    earlier = await conn.fetchrow(RELEASE, release.group_name, release.number - 1)
    before, old_floor = await _contents(conn, None if earlier is None else earlier.id)
    after, floor = await _contents(conn, release.id)
    return await _changes(conn, before, after, old_floor, floor, await _manifests(conn, after)), old_floor


async def changes_to(conn: Connection, before: Functions, version: int, group: str) -> release_responses.Changes:
    """How the release of a group differs from what a node runs: these functions and this schema version."""
    after, floor = await _contents(conn, (await find_group(conn, group)).release_id)
    return await _changes(conn, before, after, version, floor, await _manifests(conn, after))


async def find_group(conn: Connection, name: str) -> GroupRow:
    """The group of this name. Raises: ProblemError unknown_group, when there is none."""
    row = await conn.fetchrow(GROUP, name)
    if row is None:
        raise unknown_group(name)
    return row
