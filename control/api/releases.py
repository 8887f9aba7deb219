"""Releases: what a group's nodes should run. Immutable; each takes the next generation."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct

from control import manifests, wire
from control.api import pagination, records, responses
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.sync import compatibility

SQL = queries.load("releases")

Functions = dict[str, tuple[int, str]]
"""Version and sha256 by name."""
Manifests = dict[str, dict[str, Any]]
"""Of functions, by name."""


MANIFEST_BYTES = 4 * wire.MIB
"""Of the manifests of a release's functions together, as the database has them."""


class ReleaseQuery(records.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None


class PlanQuery(Struct, forbid_unknown_fields=True):
    plan: bool = False
    """Only say what the release would be and change."""


async def create(call: Call) -> Answer:
    """POST /v1/releases."""
    body = call.body
    told = await call.services.db.read(lambda conn: compatibility.told(conn, body.group))

    async def work(conn: Any, changed: Changed) -> responses.MadeRelease:
        now, by = call.services.clock.now(), call.operator.name
        made = await make(conn, changed, now, by, body, told, plan=call.query.plan)
        if not call.query.plan:
            details = {
                "generation": made.generation,
                "reason": body.reason,
                "rollback_to": body.rollback_to,
                "unfit": made.unfit.count,
            }
            await call.audit(conn, "release.create", f"{made.group}/{made.number}", details)
        return made

    if call.query.plan:
        return await call.read(lambda conn: work(conn, Changed()))
    return await call.write(work)


async def list_releases(call: Call) -> Answer:
    """GET /v1/releases, newest first."""
    query = call.query
    after = pagination.read_cursor(query.cursor, (int, str)) or (2**62, "")

    async def work(conn: Any) -> responses.Page[responses.Release]:
        if query.group is not None:
            await _group(conn, query.group)

        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["releases"], *after[:1], str(after[1]), query.group, count)

        return await pagination.fill(
            fetch, lambda rows: _with_functions(conn, rows), after, query.limit, ("generation", "id"), first=4
        )

    return await call.read(work)


async def get_release(call: Call) -> Answer:
    """GET /v1/releases/{group}/{number}."""
    group, number = call.path["group"], call.path["number"]

    async def work(conn: Any) -> responses.Release:
        await _group(conn, group)
        row = await conn.fetchrow(SQL["release"], group, number)
        if row is None:
            raise ProblemError("unknown_release", f"group {group} has no release {number}", field="number")
        return (await _with_functions(conn, [row]))[0]

    return await call.read(work)


async def create_group(call: Call) -> Answer:
    """POST /v1/groups."""
    name = call.body.name

    async def work(conn: Any, _changed: Changed) -> responses.Group:
        if await conn.fetchrow(SQL["group"], name) is not None:
            raise ProblemError("name_taken", f"there is a group {name} already", field="name")
        await conn.execute(SQL["add_group"], uuid4(), name, call.services.clock.now())
        await call.audit(conn, "group.create", name, {})
        return responses.Group(name, 0, None, 0)

    return await call.write(work)


async def list_groups(call: Call) -> Answer:
    """GET /v1/groups."""
    paging = call.query
    after = pagination.read_cursor(paging.cursor, (str,)) or ("",)

    async def describe(conn: Any, rows: Sequence[Any]) -> list[responses.Group]:
        functions = await _functions(conn, [row["release_id"] for row in rows if row["release_id"] is not None])
        items = []
        for row in rows:
            release = None
            if row["release_id"] is not None:
                listed = functions.get(row["release_id"], [])
                release = responses.GroupRelease(row["number"], row["generation"], row["schema_floor"], listed)
            items.append(responses.Group(row["name"], row["generation"], release, row["nodes"]))
        return items

    async def work(conn: Any) -> responses.Page[responses.Group]:
        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["groups"], *after, count)

        return await pagination.fill(fetch, lambda rows: describe(conn, rows), after, paging.limit, ("name",), first=4)

    return await call.read(work)


async def make(
    conn: Any,
    changed: Changed,
    now: datetime,
    by: str,
    body: wire.NewRelease,
    told: Sequence[compatibility.Told] = (),
    *,
    plan: bool = False,
    keep_floor: bool = False,
) -> responses.MadeRelease:
    """Make a release, or with `plan` say what it would be. Raises `ProblemError`.

    `told`: what the group's nodes can run; one that can't run the release is in its way, unless `body` allows it.
    `keep_floor`: keep the floor of the release before where `body` names none.
    """
    group = await _group(conn, body.group)
    newest: int = await conn.fetchval(SQL["newest_change"])
    before, old_floor = await _contents(conn, group["release_id"])
    if body.rollback_to is not None:
        functions, floor = await _rollback(conn, body)
    else:
        functions = await _changed(conn, body, before)
        floor = newest if body.schema is None else body.schema
        if keep_floor and body.schema is None and group["release_id"] is not None:
            floor = old_floor
        if floor > newest:
            raise ProblemError(
                "unknown_schema_change", f"the newest schema change is {newest}, there is no {floor}", field="schema"
            )
    await _check_size(conn, functions)
    granted = await _manifests(conn, functions)
    _check_routes(granted)
    unfit = compatibility.unfit(told, granted)
    if not plan and not body.allow_unfit:
        compatibility.refuse(unfit, body.group)
    changes = await _changes(conn, before, functions, old_floor, floor, granted)
    number: int = await conn.fetchval(SQL["next_number"], group["id"])
    release_id = uuid4()
    if not plan:
        # First: who waits for a locked group holds up no decision about another one.
        await lock(conn, group["id"])
    generation: int = await conn.fetchval(SQL["next_generation" if plan else "take_generation"])
    if not plan:
        await conn.execute(
            SQL["add"], release_id, group["id"], number, generation, floor, body.rollback_to, body.reason, by, now
        )
        names = sorted(functions)
        await conn.execute(
            SQL["add_functions"],
            release_id,
            names,
            [str(functions[name][0]) for name in names],
            [functions[name][1] for name in names],
        )
        await conn.execute(SQL["set_target"], group["id"], release_id, generation)
        changed.groups.add(str(group["id"]))
    return responses.MadeRelease(
        id=None if plan else str(release_id),
        group=body.group,
        number=number,
        generation=generation,
        schema_floor=floor,
        functions=[responses.ReleaseFunction(n, v, sha256) for n, (v, sha256) in sorted(functions.items())],
        rollback_to=body.rollback_to,
        reason=body.reason,
        created_by=by,
        created_at=now,
        changes=changes,
        unfit=unfit,
    )


async def lock(conn: Any, group_id: Any) -> None:
    """Have a group for this transaction alone."""
    await conn.execute(SQL["lock_group"], group_id)


async def _rollback(conn: Any, body: wire.NewRelease) -> tuple[Functions, int]:
    if body.functions or body.remove or body.schema is not None:
        raise ProblemError(
            "invalid_body",
            "a rollback takes the functions and the floor of the old release: send none with it",
            field="rollback_to",
        )
    row = await conn.fetchrow(SQL["release"], body.group, body.rollback_to)
    if row is None:
        raise ProblemError(
            "unknown_release", f"group {body.group} has no release {body.rollback_to}", field="rollback_to"
        )
    functions, floor = await _contents(conn, row["id"])
    versions = await _versions(conn, {name: version for name, (version, _) in functions.items()})
    gone = [f"{name}@{version}" for name, (version, _) in functions.items() if name not in versions]
    if gone:
        raise ProblemError(
            "release_not_possible",
            f"release {body.rollback_to} can't come back: {', '.join(sorted(gone))} was deleted since",
            field="rollback_to",
        )
    return functions, floor


async def _changed(conn: Any, body: wire.NewRelease, before: Functions) -> Functions:
    for name in body.remove:
        if name in body.functions:
            raise ProblemError("invalid_body", f"{name} is to be set and to be removed", field="remove")
        if name not in before:
            raise ProblemError(
                "unknown_function", f"the newest release of {body.group} has no function {name}", field="remove"
            )
    versions = await _versions(conn, body.functions)
    for name, version in body.functions.items():
        if name not in versions:
            raise ProblemError("unknown_version", f"there is no version {version} of {name}", field=f"functions.{name}")
    return {name: item for name, item in {**before, **versions}.items() if name not in body.remove}


async def _versions(conn: Any, wanted: dict[str, int]) -> Functions:
    """Those of the wanted versions that there are."""
    names = sorted(wanted)
    rows = await conn.fetch(SQL["versions"], names, [str(wanted[name]) for name in names])
    return {row["name"]: (row["version"], row["sha256"]) for row in rows}


async def _contents(conn: Any, release_id: Any) -> tuple[Functions, int]:
    """A release's functions and floor; nothing and 0 for None."""
    if release_id is None:
        return {}, 0
    rows = await conn.fetch(SQL["functions"], [str(release_id)])
    floor: int = await conn.fetchval(SQL["floor"], release_id)
    return {row["name"]: (row["version"], row["sha256"]) for row in rows}, floor


async def _manifests(conn: Any, functions: Functions) -> Manifests:
    names = sorted(functions)
    rows = await conn.fetch(SQL["manifests"], names, [str(functions[name][0]) for name in names])
    return {row["name"]: row["manifest"] for row in rows}


async def _check_size(conn: Any, functions: Functions) -> None:
    """A plan has all of a release in one answer. Error: ProblemError."""
    if len(functions) > wire.MOST_FUNCTIONS:
        raise ProblemError(
            "release_not_possible",
            f"a release has {wire.MOST_FUNCTIONS} functions at most, and this one would have {len(functions)}; remove "
            "some, or put them into releases of other groups",
            field="functions",
        )
    names = sorted(functions)
    size: int = await conn.fetchval(SQL["manifest_bytes"], names, [str(functions[name][0]) for name in names])
    if size > MANIFEST_BYTES:
        raise ProblemError(
            "release_not_possible",
            f"the manifests of a release's functions have {MANIFEST_BYTES} bytes together at most, and these {size}; "
            "keep large configuration in the functions, or in the database",
            field="functions",
        )


def _check_routes(granted: Manifests) -> None:
    """No two functions of a release may have the same route. Error: ProblemError."""
    routes = {
        name: msgspec.convert(manifest["route"], wire.Route)
        for name, manifest in granted.items()
        if manifest.get("route") is not None
    }
    said = manifests.conflict(routes)
    if said:
        raise ProblemError("route_conflict", f"{said}; give one of them another route, or take it out of the release")


async def _changes(
    conn: Any, before: Functions, after: Functions, old_floor: int, floor: int, granted: Manifests
) -> responses.Changes:
    changes = await conn.fetch(SQL["changes_between"], old_floor, floor)
    touched = sorted(name for name in after if after[name] != before.get(name))
    had = await _manifests(conn, {name: before[name] for name in touched if name in before})
    return responses.Changes(
        add=[responses.VersionOf(n, after[n][0]) for n in sorted(after.keys() - before.keys())],
        change=[
            responses.Replaced(n, before[n][0], after[n][0])
            for n in sorted(after.keys() & before.keys())
            if after[n] != before[n]
        ],
        remove=[responses.VersionOf(n, before[n][0]) for n in sorted(before.keys() - after.keys())],
        schema=[responses.NumberedChange(row["number"], row["name"]) for row in changes],
        grants=[
            responses.ChangedGrant(name, grant, old, new)
            for name in touched
            for grant, (old, new) in manifests.differences(had.get(name, {}), granted[name]).items()
        ],
    )


async def _group(conn: Any, name: str) -> Any:
    row = await conn.fetchrow(SQL["group"], name)
    if row is None:
        raise ProblemError("unknown_group", f"there is no group {name}", field="group")
    return row


async def _functions(conn: Any, release_ids: list[Any]) -> dict[Any, list[responses.ReleaseFunction]]:
    found: dict[Any, list[responses.ReleaseFunction]] = {}
    for row in await conn.fetch(SQL["functions"], [str(id) for id in release_ids]):
        item = responses.ReleaseFunction(row["name"], row["version"], row["sha256"])
        found.setdefault(row["release_id"], []).append(item)
    return found


async def _with_functions(conn: Any, rows: Sequence[Any]) -> list[responses.Release]:
    functions = await _functions(conn, [row["id"] for row in rows])
    return [
        responses.Release(
            id=str(row["id"]),
            group=row["group_name"],
            number=row["number"],
            generation=row["generation"],
            schema_floor=row["schema_floor"],
            functions=functions.get(row["id"], []),
            rollback_to=row["rollback_to"],
            reason=row["reason"],
            created_by=row["created_by"],
            created_at=row["created_at"],
        )
        for row in rows
    ]
