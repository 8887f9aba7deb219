"""The bucket of artifacts: its state, and the order to resume deletions."""

from control.api.bodies import responses
from control.api.operations import ApiCall, Reply, operation
from control.api.services import Services
from control.storage import bucket_owner, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection

SQL = queries.load("bucket_owner")
COUNT_UNKNOWN = SQL.value("count_unknown", int)


@operation(
    "GET",
    "/v1/artifact-store",
    "The bucket of artifacts: whose it is, and whether anything is deleted from it",
    role="read",
    everywhere=False,
    answers={200: responses.ArtifactStore},
)
async def show(call: ApiCall) -> Reply:
    return await call.read(lambda conn: _described(call.services, conn))


@operation(
    "POST",
    "/v1/artifact-store/resume",
    "Let deletions from the bucket go on, which were held",
    role="admin",
    answers={200: responses.ArtifactStore},
)
async def resume(call: ApiCall) -> Reply:
    """Resume deletions, which are held after a restore of the metadata, for example."""
    services = call.services

    async def work(conn: Connection, _changed: Changed) -> responses.ArtifactStore:
        before = await _described(services, conn)
        await conn.execute(SQL["resume"])
        old = {"deletions": before.deletions, "held_reason": before.held_reason}
        new = {"deletions": "on", "held_reason": None}
        await call.audit(conn, "artifacts.resume", before.bucket, before=old, after=new)
        return await _described(services, conn)

    answer = await call.write(work, status=200)
    services.ownership.wake()
    return answer


async def _described(services: Services, conn: Connection) -> responses.ArtifactStore:
    row, waiting = await bucket_owner.state(conn), await services.access.waiting(conn)
    ownership = services.ownership
    return responses.ArtifactStore(
        bucket=services.store.bucket,
        owner=row.owner,
        counter=row.counter,
        state="owned" if ownership.problem is None else ownership.problem.code,
        problem=None if ownership.problem is None else ownership.problem.detail,
        deletions="on" if row.held_since is None else "held",
        held_since=row.held_since,
        held_reason=row.held_reason or None,
        sweep_problem=row.sweep_problem or None,
        unknown_objects=await conn.fetchval(COUNT_UNKNOWN),
        keeps_versions=ownership.keeps_versions,
        restored_at=row.restored_at,
        access_waiting=waiting.changes,
        access_waiting_since=waiting.since,
    )
