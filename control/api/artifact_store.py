"""The artifact store: its state, paused deletions, and which objects it lacks that the metadata need.

It is compared with the metadata in both directions, a page at a time, without changing anything.
"""

from datetime import datetime
from typing import Annotated, NamedTuple
from uuid import uuid4

from msgspec import Meta, Struct, field

from control.api.artifacts import STORE_ERRORS
from control.api.operations import ApiCall, Reply, operation
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.storage import bucket_owner, object_store, owner_mark, queries
from control.storage.announcements import Changed
from control.storage.bucket_owner import KNOWN_ARTIFACTS
from control.storage.connection import Connection
from control.storage.object_store import artifact_id_of, object_key


class ArtifactStore(Struct):
    """The bucket of artifacts: which control owns it, and whether artifacts are deleted from it."""

    bucket: str
    owner: str | None
    """The id of this control, which is in the bucket's mark; null until it has a bucket."""
    counter: int
    """The number of the metadata's last step that made an artifact necessary."""
    state: str
    """`owned`, or the code of the problem that keeps this replica from using the bucket."""
    problem: str | None
    deletions: str
    """Whether artifacts are deleted: `on` or `held`."""
    held_since: datetime | None
    held_reason: str | None
    sweep_problem: str | None
    """Why the last sweep failed, or null."""
    unknown_objects: int
    """Objects that no row knows; each is deleted after SKERRY_UNKNOWN_OBJECTS_KEPT seconds."""
    keeps_versions: bool
    """Whether the bucket keeps old versions of deleted objects, so that deletions free no space."""
    restored_at: datetime | None
    """When control noticed that its metadata were restored; null if they weren't, or after `POST /v1/recovery`."""
    access_waiting: int
    """Revocations, joins and similar changes that aren't in the bucket yet: an earlier backup would undo them."""
    access_waiting_since: datetime | None


class ArtifactFault(Struct):
    """An artifact whose object differs from what the metadata say."""

    sha256: wire.Sha256
    size: int
    """Bytes that the object must have."""
    fault: str
    """`missing`, `wrong_size` or `wrong_bytes`."""
    versions: list[str]
    """Versions made from it, as NAME@VERSION; at most ten."""


class StoreCheck(Struct):
    """A page of the comparison of artifacts with the bucket."""

    looked: int = 0
    """Artifacts of this page."""
    looked_size: int = 0
    """Their bytes."""
    faults: list[ArtifactFault] = field(default_factory=list)
    next: str | None = None
    """`after` of the next page, or null."""
    artifacts: int | None = None
    """On the first page, the number of all artifacts."""
    size: int | None = None
    """On the first page, the bytes of all."""


class StoreTrial(Struct):
    """Whether a small object could be stored, read and deleted."""

    code: str | None
    """The problem's code; null if it succeeded."""
    problem: str | None


class BucketObject(Struct):
    """An object of the bucket that no row of the metadata knows."""

    key: str
    size: int
    modified: datetime


class UnknownObjects(Struct):
    """A page of the bucket."""

    unknown: list[BucketObject]
    looked: int
    """Objects of this page, without control's own."""
    next: str | None
    """`after` of the next page, or null."""


PAGE = 100
"""The most artifacts of a page."""
SECONDS = 5.0
"""Time after which a page ends with the artifact that was checked last."""
VERSIONS = 10
"""Versions that are named with an artifact."""
TRIALS = f"{owner_mark.PREFIX}trial/"
"""The prefix of keys of objects that are stored only as a test."""
FIRST = "00000000-0000-0000-0000-000000000000"
"""An id before those of all artifacts."""


class CheckedArtifact(NamedTuple):
    """An artifact whose bytes must be in the store."""

    id: str
    sha256: str
    size: int


class ReadyTotal(NamedTuple):
    """How many artifacts there are, and their bytes together."""

    artifacts: int
    size: int


SQL = queries.load("artifacts")
READY_AFTER = SQL.rows("ready_after", CheckedArtifact)
READY_TOTAL = SQL.rows("ready_total", ReadyTotal)
STILL_READY = SQL.value("still_ready", bool)
USED_BY = SQL.value("used_by", str)
OWNER_SQL = queries.load("bucket_owner")
COUNT_UNKNOWN = OWNER_SQL.value("count_unknown", int)


class CheckQuery(Struct, forbid_unknown_fields=True):
    after: wire.Uuid = FIRST
    """`next` of the page before."""
    bytes: bool = True
    """Read each object and compare its sha256; by default, only its size."""
    needed: bool = False
    """Only the artifacts that the groups' current releases need."""


class UnknownQuery(Struct, forbid_unknown_fields=True):
    after: Annotated[str, Meta(max_length=1024)] = ""
    """`next` of the page before."""


@operation(
    "GET",
    "/v1/artifact-store",
    "The bucket of artifacts: whose it is, and whether anything is deleted from it",
    role="read",
    everywhere=False,
    answers={200: ArtifactStore},
)
async def show(call: ApiCall) -> Reply:
    return await call.read(lambda conn: _described(call.services, conn))


@operation(
    "POST",
    "/v1/artifact-store/resume",
    "Let deletions from the bucket go on, which were held",
    role="admin",
    answers={200: ArtifactStore},
)
async def resume(call: ApiCall) -> Reply:
    """Resume deletions, which are held after a restore of the metadata, for example."""
    services = call.services

    async def work(conn: Connection, _changed: Changed) -> ArtifactStore:
        before = await _described(services, conn)
        await conn.execute(OWNER_SQL["resume"])
        old = {"deletions": before.deletions, "held_reason": before.held_reason}
        new = {"deletions": "on", "held_reason": None}
        await call.audit(conn, "artifacts.resume", before.bucket, before=old, after=new)
        return await _described(services, conn)

    answer = await call.write(work, status=200)
    services.ownership.wake()
    return answer


async def _described(services: Services, conn: Connection) -> ArtifactStore:
    row, waiting = await bucket_owner.state(conn), await services.access.waiting(conn)
    ownership = services.ownership
    return ArtifactStore(
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


@operation(
    "GET",
    "/v1/artifact-store/check",
    "The artifacts whose objects are missing or damaged",
    role="admin",
    answers={200: StoreCheck},
    errors=STORE_ERRORS,
)
async def check(call: ApiCall, query: CheckQuery) -> Reply:
    """Compare a page of artifacts with their objects; answer those that differ."""
    store, db = call.services.store, call.services.databases.lists
    rows = await db.read(lambda conn: conn.fetch(READY_AFTER, query.after, PAGE, query.needed))
    page = StoreCheck()
    if query.after == FIRST:
        total = await db.read(lambda conn: conn.one(READY_TOTAL, query.needed))
        page.artifacts, page.size = total.artifacts, total.size
    ends = call.services.clock.monotonic() + SECONDS
    for row in rows:
        wanted = row.sha256 if query.bytes else None
        found = await object_store.fault(store, object_key(row.sha256, row.id), row.size, wanted)
        if found is not None:
            versions = await db.read(lambda conn, id=row.id: _used_by(conn, id))  # type: ignore[misc]
            if versions is not None:
                page.faults.append(ArtifactFault(row.sha256, row.size, found, versions))
        page.looked, page.looked_size, page.next = page.looked + 1, page.looked_size + row.size, row.id
        if call.services.clock.monotonic() >= ends:
            break
    if page.looked == len(rows) < PAGE:
        page.next = None
    return Reply(200, page)


@operation(
    "GET",
    "/v1/artifact-store/unknown",
    "The objects of the bucket that the metadata don't know",
    role="admin",
    answers={200: UnknownObjects},
    errors=STORE_ERRORS,
)
async def unknown(call: ApiCall, query: UnknownQuery) -> Reply:
    """Answer the objects of a page of the bucket that no row knows."""
    objects, after = await call.services.store.page(query.after)
    ids = [id for item in objects if (id := artifact_id_of(item.key))]
    known = set(await call.services.databases.lists.read(lambda conn: conn.column(KNOWN_ARTIFACTS, ids)))
    found = [BucketObject(o.key, o.size, o.modified) for o in objects if artifact_id_of(o.key) not in known]
    return Reply(200, UnknownObjects(found, len(objects), after))


@operation(
    "GET",
    "/v1/artifact-store/trial",
    "Whether a small object can be stored, read and deleted",
    role="admin",
    answers={200: StoreTrial},
)
async def trial(call: ApiCall) -> Reply:
    """Store, read and delete a small object of control's own. It leaves nothing."""
    store, name = call.services.store, str(uuid4())
    try:
        await call.services.ownership.confirm()
        await store.write(f"{TRIALS}{name}", name.encode(), None)
        try:
            found = await store.read(f"{TRIALS}{name}")
        finally:
            await store.delete(f"{TRIALS}{name}")
    except ProblemError as problem:
        return Reply(200, StoreTrial(problem.code, problem.detail))
    if found is None or found.data != name.encode():
        return Reply(200, StoreTrial("store_unavailable", "the store doesn't give back what was stored a moment ago"))
    return Reply(200, StoreTrial(None, None))


async def _used_by(conn: Connection, artifact_id: str) -> list[str] | None:
    """Return the versions of an artifact, as NAME@VERSION; None if it was deleted meanwhile, or is being deleted."""
    if not await conn.fetchval(STILL_READY, artifact_id):
        return None
    return await conn.column(USED_BY, artifact_id, VERSIONS)
