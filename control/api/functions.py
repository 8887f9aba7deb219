"""Functions and their versions (R 2.2, 2.3), and what a deletion takes along (R 2.4)."""

from datetime import datetime
from typing import Any

import msgspec

from control import faults, manifests, wire
from control.api import artifacts, pagination, releases, responses
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import bucket_owner, queries
from control.storage.announcements import Changed

SQL = queries.load("functions")


class Deletion(msgspec.Struct, forbid_unknown_fields=True):
    release: bool = False
    """Make releases without it, for the groups whose target has it."""


async def list_functions(call: Call) -> Answer:
    """GET /v1/functions."""
    paging = call.query
    after = pagination.read_cursor(paging.cursor, (str,)) or ("",)
    describe = pagination.each(
        lambda r: responses.Function(r["name"], r["last_version"], r["created_at"], r["versions"])
    )

    async def work(conn: Any) -> responses.Page[responses.Function]:
        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["functions"], *after, count)

        return await pagination.fill(fetch, describe, after, paging.limit, ("name",))

    return await call.read(work)


async def list_versions(call: Call) -> Answer:
    """GET /v1/functions/{name}/versions, newest first."""
    name, paging = call.path["name"], call.query
    before = pagination.read_cursor(paging.cursor, (int,)) or (2**62,)

    async def work(conn: Any) -> responses.Page[responses.Version]:
        if not await conn.fetchval(SQL["has_versions"], name):
            raise _unknown_function(name)

        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["versions"], name, *after, count)

        return await pagination.fill(fetch, pagination.each(_kept), before, paging.limit, ("version",), first=1, most=8)

    return await call.read(work)


async def get_version(call: Call) -> Answer:
    """GET /v1/functions/{name}/versions/{version}."""
    name, version = call.path["name"], call.path["version"]

    async def work(conn: Any) -> responses.Version:
        row = await conn.fetchrow(SQL["version"], name, version)
        if row is None:
            raise _unknown_version(name, version)
        return _kept(row)

    return await call.read(work)


async def add_version(call: Call) -> Answer:
    """POST /v1/functions/{name}/versions: the next number for bytes that are in the store."""
    name, body = call.path["name"], call.body

    async def work(conn: Any, _changed: Changed) -> responses.Version:
        now = call.services.clock.now()
        artifact = await conn.fetchrow(SQL["artifact"], body.sha256)
        if artifact is None:
            raise ProblemError(
                "unknown_artifact",
                f"no artifact {body.sha256} was uploaded, or it was deleted; upload it",
                field="sha256",
            )
        if body.manifest.memory_pages < artifact["memory_pages"]:
            raise ProblemError(
                "module_refused",
                f"the module starts with {artifact['memory_pages']} pages of memory, the manifest allows "
                f"{body.manifest.memory_pages}",
                field="manifest.memory_pages",
            )
        if body.manifest.abi not in ("", artifact["abi"]):
            raise ProblemError(
                "module_refused",
                f"the module speaks {artifact['abi']}, the manifest says {body.manifest.abi}",
                field="manifest.abi",
            )
        kept = msgspec.structs.replace(body.manifest, abi=artifact["abi"])
        try:
            manifests.check(kept)
        except manifests.ManifestUnfit as unfit:
            raise ProblemError("manifest_unfit", str(unfit), field=f"manifest.{unfit.field}") from None
        version = await conn.fetchval(SQL["next_version"], name, now)
        manifest = msgspec.to_builtins(kept)
        digest = wire.manifest_digest(kept)
        row = await conn.fetchrow(
            SQL["add"],
            name,
            version,
            artifact["id"],
            body.sha256,
            artifact["size"],
            manifest,
            digest,
            call.operator.name,
            now,
        )
        await call.audit(conn, "function.push", f"{name}@{version}", {"sha256": body.sha256})
        await bucket_owner.step(conn)
        return _version(row)

    answer = await call.write(work)
    call.services.ownership.wake()
    return answer


async def delete(call: Call) -> Answer:
    """DELETE /v1/functions/{name} and /v1/functions/{name}/versions/{version}."""
    name, version = call.path["name"], call.path.get("version")
    unused: list[tuple[str, str]] = []

    async def work(conn: Any, changed: Changed) -> None:
        now = call.services.clock.now()
        groups = await conn.fetch(SQL["groups_with"], name, version)
        if groups and not call.query.release:
            names = ", ".join(row["name"] for row in groups)
            raise ProblemError(
                "version_in_target",
                f"the target of {names} has it; make a release without it first, or ask with ?release=true",
            )
        subject = name if version is None else f"{name}@{version}"
        # What may be locked comes before the generation: who waits for it then holds up no other decision.
        for row in groups:
            await releases.lock(conn, row["id"])
        deleted = await conn.fetch(SQL["delete"], name, version)
        if not deleted:
            raise _unknown_function(name) if version is None else _unknown_version(name, version)
        unused[:] = await artifacts.release_unused(conn, [row["artifact_id"] for row in deleted], now)
        for row in groups:
            release = wire.NewRelease(group=row["name"], remove=[name], reason=f"{subject} was deleted")
            await releases.make(conn, changed, now, call.operator.name, release, keep_floor=True)
        await call.audit(conn, "function.delete", subject, {"versions": sorted(row["version"] for row in deleted)})

    faults.reach("control.delete.rows.before")
    answer = await call.write(work, status=204)
    faults.reach("control.delete.rows.after")
    call.services.deletions.add(unused)
    return answer


def _unknown_version(name: str, version: int) -> ProblemError:
    return ProblemError("unknown_version", f"there is no version {version} of {name}", field="version")


def _unknown_function(name: str) -> ProblemError:
    return ProblemError("unknown_function", f"there is no function {name}", field="name")


def _kept(row: Any) -> responses.Version:
    """A version whose manifest is JSON, which goes into the answer as it is."""
    return _version({**row, "manifest": msgspec.Raw(row["manifest"].encode())})


def _version(row: Any) -> responses.Version:
    created: datetime = row["created_at"]
    return responses.Version(
        row["name"], row["version"], row["sha256"], row["size"], row["manifest"], row["created_by"], created
    )
