"""What operators may ask of the bucket of artifacts, and that deletions go on."""

from typing import Any

from control.api import responses
from control.api.operations import Answer, Call
from control.api.services import Services
from control.storage import queries
from control.storage.announcements import Changed

SQL = queries.load("ownership")


async def show(call: Call) -> Answer:
    """GET /v1/artifact-store."""
    return await call.read(lambda conn: _described(call.services, conn))


async def resume(call: Call) -> Answer:
    """POST /v1/artifact-store/resume: let deletions go on that were held, as after a restore of the metadata."""
    services = call.services

    async def work(conn: Any, _changed: Changed) -> responses.ArtifactStore:
        before = await _described(services, conn)
        await conn.execute(SQL["resume"])
        await call.audit(conn, "artifacts.resume", before.bucket, {"held": before.held_reason})
        return await _described(services, conn)

    answer = await call.write(work, status=200)
    services.ownership.wake()
    return answer


async def _described(services: Services, conn: Any) -> responses.ArtifactStore:
    row = await conn.fetchrow(SQL["state"])
    ownership = services.ownership
    return responses.ArtifactStore(
        bucket=services.store.bucket,
        owner=row["owner"],
        counter=row["counter"],
        state="owned" if ownership.problem is None else ownership.problem.code,
        problem=None if ownership.problem is None else ownership.problem.detail,
        deletions="on" if row["held_since"] is None else "held",
        held_since=row["held_since"],
        held_reason=row["held_reason"] or None,
        sweep_problem=row["sweep_problem"] or None,
        unknown_objects=await conn.fetchval(SQL["count_unknown"]),
        keeps_versions=ownership.keeps_versions,
    )
