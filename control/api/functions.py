"""Functions and their versions (R 2.2, 2.3), and their deletion with what only they use (R 2.4)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict

from control import manifest_rules
from control.api import artifacts, pagination, release_bodies, release_making, releases
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import faults, wire
from control.protocol.counts import counted
from control.protocol.manifest import Manifest, completed, manifest_digest
from control.protocol.wire import Body, Sha256
from control.rollouts import store
from control.storage import bucket_owner, queries
from control.storage.announcements import Changed
from control.storage.artifact_deletions import ArtifactKey
from control.storage.connection import Connection


class NewVersion(Body, frozen=True):
    """``POST /v1/functions/{name}/versions``, of bytes that ``PUT /v1/artifacts/{sha256}`` uploaded."""

    sha256: Sha256
    manifest: Manifest = Manifest()
    release: release_bodies.FollowingRelease | None = None
    """The release with the version, for a group; None: no node gets it yet."""


class Function(Struct):
    name: str
    last_version: int
    """The number of the newest version, which may have been deleted."""
    created_at: datetime
    versions: int
    groups: int = 0
    """How many groups' newest releases have it, among the groups that the calling operator may see."""


class FunctionTarget(Struct):
    """A group whose newest release has a function."""

    group: str
    release: int
    version: int


class DetailedFunction(Function):
    targets: list[FunctionTarget] = field(default_factory=list)
    """The first 100 of these groups, by name."""


class Version(Struct):
    """A version of a function (R 2.2, 2.3)."""

    name: str
    version: int
    sha256: wire.Sha256
    size: int
    manifest: Manifest
    created_by: str
    created_at: datetime


class PushedVersion(Version, omit_defaults=True):
    release: release_bodies.MadeRelease | None = None
    """The release that was requested with it; missing if none was."""


class VersionPlan(Struct):
    """What a push would make."""

    version: Version
    release: release_bodies.MadeRelease | None
    """The release for the requested group; null if none was requested."""


class DeletionPlan(Struct):
    """What a deletion would do."""

    versions: list[int]
    releases: list[release_bodies.MadeRelease]
    """The releases without it that groups would get instead."""


class NewestVersion(NamedTuple):
    """A function, and the number of its newest version."""

    name: str
    last_version: int


class GroupsOfFunction(NamedTuple):
    """How many groups' newest releases have a function."""

    name: str
    groups: int


class VersionText(NamedTuple):
    """A version, its manifest as JSON."""

    name: str
    version: int
    sha256: str
    size: int
    manifest: str
    created_by: str
    created_at: datetime


class GroupName(NamedTuple):
    """A group."""

    id: UUID
    name: str


class NeedingRelease(NamedTuple):
    """A release that a rollback would go to, or that a rollout brings to nodes, and its version of the function."""

    group_name: str
    number: int
    version: int


class DeletedVersion(NamedTuple):
    """A version that was deleted, and the id of its artifact's row."""

    version: int
    artifact_id: str


SQL = queries.load("functions")
FUNCTIONS = SQL.rows("functions", Function)
FUNCTION = SQL.rows("function", DetailedFunction)
NEWEST_OF = SQL.rows("newest_of", NewestVersion)
NOT_AMONG = SQL.rows("not_among", NewestVersion)
NAMED_LIKE = SQL.value("named_like", str)
IN_TARGETS = SQL.rows("in_targets", GroupsOfFunction)
TARGETS = SQL.rows("targets", FunctionTarget)
WITH_ARTIFACT = SQL.rows("with_artifact", release_bodies.ReleaseFunction)
HAS_VERSIONS = SQL.value("has_versions", bool)
VERSIONS = SQL.rows("versions", VersionText)
VERSION = SQL.rows("version", VersionText)
NEXT_VERSION = SQL.value("next_version", int)
GROUPS_WITH = SQL.rows("groups_with", GroupName)
GROUPS_ONCE_WITH = SQL.rows("groups_once_with", release_making.GroupRow)
NEEDED_BY = SQL.rows("needed_by", NeedingRelease)
ROLLED_OUT_WITH = SQL.rows("rolled_out_with", NeedingRelease)
DELETE = SQL.rows("delete", DeletedVersion)

MOST_TARGETS = 100
"""Groups that are named with a function."""
TOLD = 10
"""The most releases that a refusal names, and versions that are listed for an artifact."""


class DeletionQuery(msgspec.Struct, forbid_unknown_fields=True):
    release: bool = False
    """Make releases without the function, for the groups whose target has it."""
    force: bool = False
    """Delete it also where a rollback would need it."""
    plan: bool = False
    """Only return what would be deleted, and which releases would be made."""


@operation("GET", "/v1/functions", "Functions", role="read", everywhere=False, answers={200: pagination.Page[Function]})
async def list_functions(call: ApiCall, query: pagination.Paging) -> Reply:
    begin = pagination.read_cursor(query.cursor, (str,)) or ("",)
    groups = call.operator.rights.groups("read")

    async def describe(conn: Connection, rows: Sequence[Function]) -> Sequence[Function]:
        found = dict(await conn.fetch(IN_TARGETS, [row.name for row in rows], groups))
        for row in rows:
            row.groups = found.get(row.name, 0)
        return rows

    async def work(conn: Connection) -> pagination.Page[Function]:
        return await pagination.fill(
            lambda after, count: conn.fetch(FUNCTIONS, *after, count),
            lambda rows: describe(conn, rows),
            lambda row: (row.name,),
            begin,
            query.limit,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/functions/{name}",
    "A function, and the groups whose newest release has it",
    role="read",
    everywhere=False,
    answers={200: DetailedFunction},
    errors=("unknown_function",),
)
async def get_function(call: ApiCall) -> Reply:
    name = call.path["name"]
    groups = call.operator.rights.groups("read")

    async def work(conn: Connection) -> DetailedFunction:
        function = await conn.fetchrow(FUNCTION, name)
        if function is None:
            raise _unknown_function(name)
        function.groups = dict(await conn.fetch(IN_TARGETS, [name], groups)).get(name, 0)
        function.targets = await conn.fetch(TARGETS, name, groups, MOST_TARGETS)
        return function

    return await call.read(work)


async def newest_of(call: ApiCall) -> Reply:
    """Return the newest versions of the functions `names`, as the form of a release shows them."""
    return await call.read(lambda conn: conn.fetch(NEWEST_OF, call.path["names"]))


async def not_among(call: ApiCall) -> Reply:
    """Return the newest versions of the first `count` functions that aren't among `names`."""
    return await call.read(lambda conn: conn.fetch(NOT_AMONG, call.path["names"], call.path["count"]))


async def named_like(call: ApiCall) -> Reply:
    """Return the names of at most `count` functions that contain `text`, an exact match first."""
    return await call.read(lambda conn: conn.column(NAMED_LIKE, call.path["text"], call.path["count"]))


async def with_artifact(call: ApiCall) -> Reply:
    """Return the versions whose artifact's sha256 begins with the path's `sha256`."""
    begin = call.path["sha256"]
    return await call.read(lambda conn: conn.fetch(WITH_ARTIFACT, begin, begin + "g", TOLD))


@operation(
    "GET",
    "/v1/functions/{name}/versions",
    "Versions of a function, newest first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[Version]},
    errors=("unknown_function",),
)
async def list_versions(call: ApiCall, query: pagination.Paging) -> Reply:
    name = call.path["name"]
    before = pagination.read_cursor(query.cursor, (int,)) or (2**62,)

    async def work(conn: Connection) -> pagination.Page[Version]:
        if not await conn.fetchval(HAS_VERSIONS, name):
            raise _unknown_function(name)

        return await pagination.fill(
            lambda before, count: conn.fetch(VERSIONS, name, *before, count),
            pagination.each(_version),
            lambda row: (row.version,),
            before,
            query.limit,
            first=1,
            most=8,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/functions/{name}/versions/{version}",
    "A version",
    role="read",
    everywhere=False,
    answers={200: Version},
    errors=("unknown_version",),
)
async def get_version(call: ApiCall) -> Reply:
    name, version = call.path["name"], call.path["version"]

    async def work(conn: Connection) -> Version:
        row = await conn.fetchrow(VERSION, name, version)
        if row is None:
            raise _unknown_version(name, version)
        return _version(row)

    return await call.read(work)


@operation(
    "POST",
    "/v1/functions/{name}/versions",
    "Make a version of an uploaded artifact",
    role="push",
    everywhere=False,
    answers={200: VersionPlan, 201: PushedVersion},
    errors=("unknown_artifact", "module_refused", "manifest_unfit", *releases.FOLLOWING_ERRORS),
)
async def add_version(call: ApiCall, body: NewVersion, query: releases.PlanFor) -> Reply:
    """Give bytes that are in the store the function's next version number."""
    name = call.path["name"]
    call.operator.need_somewhere("push", {name})

    wanted = await releases.following(call, body.release, query)

    async def add(conn: Connection) -> Version:
        now = call.services.clock.now()
        artifact = await conn.fetchrow(artifacts.READY, body.sha256)
        if artifact is None:
            raise ProblemError(
                "unknown_artifact",
                f"no artifact {body.sha256} was uploaded, or it was deleted; upload it",
                field="sha256",
            )
        if body.manifest.memory_pages < artifact.memory_pages:
            raise ProblemError(
                "module_refused",
                f"the module starts with {counted(artifact.memory_pages, 'page')} of memory, the manifest allows "
                f"{body.manifest.memory_pages}",
                field="manifest.memory_pages",
            )
        if body.manifest.abi not in ("", artifact.abi):
            raise ProblemError(
                "module_refused",
                f"the module speaks {artifact.abi}, the manifest says {body.manifest.abi}",
                field="manifest.abi",
            )
        asked = msgspec.structs.replace(body.manifest, abi=artifact.abi)
        try:
            manifest_rules.check(asked)
        except manifest_rules.ManifestUnfit as unfit:
            raise ProblemError("manifest_unfit", str(unfit), field=f"manifest.{unfit.field}") from None
        kept = completed(asked)
        version = await conn.fetchval(NEXT_VERSION, name, now)
        digest, by = manifest_digest(kept), call.operator.name
        row = name, version, artifact.id, body.sha256, artifact.size, msgspec.to_builtins(kept), digest, by, now
        await conn.execute(SQL["add"], *row)
        after = {"sha256": body.sha256, "manifest_digest": digest}
        await call.audit(conn, "function.push", f"{name}@{version}", after=after)
        await bucket_owner.step(conn)
        return Version(name, version, body.sha256, artifact.size, kept, by, now)

    async def work(conn: Connection, changed: Changed) -> VersionPlan:
        made = await add(conn)
        release = await releases.make_following(call, conn, changed, wanted, {name: made.version})
        return VersionPlan(made, release)

    async def push(conn: Connection, changed: Changed) -> PushedVersion:
        made = await work(conn, changed)
        return PushedVersion(**asdict(made.version), release=made.release)

    if query.plan:
        return await call.dry_run(work)
    answer = await call.write(push)
    call.services.ownership.wake()
    return answer


@operation(
    "DELETE",
    "/v1/functions/{name}",
    "Delete a function with all its versions",
    role="deploy",
    answers={200: DeletionPlan, 204: None},
    errors=("unknown_function", "version_in_target", "version_needed", "rollout_open"),
)
@operation(
    "DELETE",
    "/v1/functions/{name}/versions/{version}",
    "Delete a version",
    role="deploy",
    answers={200: DeletionPlan, 204: None},
    errors=("unknown_version", "version_in_target", "version_needed", "rollout_open"),
)
async def delete(call: ApiCall, query: DeletionQuery) -> Reply:
    name, version = call.path["name"], call.path.get("version")
    unused: list[ArtifactKey] = []

    async def work(conn: Connection, changed: Changed) -> DeletionPlan:
        now = call.services.clock.now()
        groups = await conn.fetch(GROUPS_WITH, name, version)
        if groups and not query.release:
            names = ", ".join(row.name for row in groups)
            raise ProblemError(
                "version_in_target",
                f"the target of {names} has it; make a release without it first, or ask with ?release=true",
            )
        await _refuse_rolled_out(conn, name, version)
        if not query.force:
            await _refuse_needed(conn, name, version)
        subject = name if version is None else f"{name}@{version}"
        # Rows are locked before the generation is taken, so that waiting for a lock delays no other decision.
        for row in groups:
            await release_making.lock(conn, row.id)
        deleted = await conn.fetch(DELETE, name, version)
        if not deleted:
            raise _unknown_function(name) if version is None else _unknown_version(name, version)
        unused[:] = await artifacts.release_unused(conn, [row.artifact_id for row in deleted], now)
        made_releases = []
        for row in groups:
            release = release_bodies.NewRelease(group=row.name, remove=[name], reason=f"{subject} was deleted")
            await _refuse_open(conn, row)
            made, way = await release_making.make(conn, changed, now, call.operator.name, release, keep_floor=True)
            await releases.record(call.audit, conn, made, way)
            made_releases.append(made)
        before = {"versions": sorted(row.version for row in deleted)}
        await call.audit(conn, "function.delete", subject, before=before)
        return DeletionPlan(before["versions"], made_releases)

    async def delete_all(conn: Connection, changed: Changed) -> None:
        await work(conn, changed)

    if query.plan:
        return await call.dry_run(work)

    faults.reach("control.delete.rows.before")
    answer = await call.write(delete_all, status=204)
    faults.reach("control.delete.rows.after")
    call.services.deletions.add(unused)
    return answer


async def _refuse_open(conn: Connection, group: GroupName) -> None:
    """Refuse to send a release to all nodes at once while a rollout is open. Raises: ProblemError rollout_open."""
    if (found := await store.open_of(conn, group.id)) is not None:
        raise ProblemError(
            "rollout_open",
            f"the rollout of release {found.name} is open, and a release without the function would go to all nodes at "
            "once: make that release first, or end the rollout",
        )


async def _refuse_rolled_out(conn: Connection, name: str, version: int | None) -> None:
    """Refuse to delete what a rollout has given to nodes, or may. Raises: ProblemError version_in_target."""
    found = await conn.fetch(ROLLED_OUT_WITH, name, version, TOLD + 1)
    if found:
        named = [f"release {row.number} of group {row.group_name} ({name}@{row.version})" for row in found[:TOLD]]
        others = " and others" if len(found) > TOLD else ""
        raise ProblemError(
            "version_in_target",
            f"nodes get {', '.join(named)}{others} by a rollout: wait until a newer release has taken its place, or "
            "take it back (`skerry rollout rollback`)",
        )


async def _refuse_needed(conn: Connection, name: str, version: int | None) -> None:
    """Check that no rollback needs the function or version. Raises: ProblemError version_needed."""
    chosen: dict[str, str] = {}
    for group in await conn.fetch(GROUPS_ONCE_WITH, name, version):
        if (number := await release_making.rollback_target(conn, group)) is not None:
            chosen[str(group.id)] = str(number)
    needing = await conn.fetch(NEEDED_BY, name, version, TOLD + 1, list(chosen), list(chosen.values()))
    if needing:
        releases = [f"release {row.number} of group {row.group_name} ({name}@{row.version})" for row in needing[:TOLD]]
        others = " and others" if len(needing) > TOLD else ""
        raise ProblemError(
            "version_needed",
            f"{', '.join(releases)}{others} needs it: a rollback would go there, and couldn't any more. Keep it until "
            "nodes run a newer release that is good, or ask with ?force=true",
        )


def _unknown_version(name: str, version: int) -> ProblemError:
    return ProblemError("unknown_version", f"there is no version {version} of {name}", field="version")


def _unknown_function(name: str) -> ProblemError:
    return ProblemError("unknown_function", f"there is no function {name}", field="name")


def _version(row: VersionText) -> Version:
    """Return a version whose manifest goes into the answer as the JSON that is stored."""
    manifest: Any = msgspec.Raw(row.manifest.encode())
    return Version(row.name, row.version, row.sha256, row.size, manifest, row.created_by, row.created_at)
