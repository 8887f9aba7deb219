"""Comparing the metadata with the bucket, in both directions, a page at a time. Nothing is changed by it."""

from typing import Annotated, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import Meta

from control.api.artifacts import STORE_ERRORS
from control.api.bodies.recovery_responses import ArtifactFault, BucketObject, StoreCheck, StoreTrial, UnknownObjects
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import wire
from control.storage import owner_mark, queries
from control.storage.bucket_owner import KNOWN_ARTIFACTS
from control.storage.connection import Connection
from control.storage.object_store import artifact_id_of, object_key
from control.storage.recovery import stored_bytes

PAGE = 100
"""Artifacts of a page at most."""
SECONDS = 5.0
"""Time after which a page ends with the artifact that was looked at last."""
VERSIONS = 10
"""Versions that are named with an artifact."""
TRIALS = f"{owner_mark.PREFIX}trial/"
"""How the keys of objects begin that are stored only to see whether that works."""
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


class CheckQuery(msgspec.Struct, forbid_unknown_fields=True):
    after: wire.Uuid = FIRST
    """`next` of the page before."""
    bytes: bool = True
    """Read each object and compare its sha256; else only its size."""
    needed: bool = False
    """Only the artifacts that the releases need that groups have."""


class UnknownQuery(msgspec.Struct, forbid_unknown_fields=True):
    after: Annotated[str, Meta(max_length=1024)] = ""
    """`next` of the page before."""


@operation(
    "GET",
    "/v1/artifact-store/check",
    "The artifacts whose objects are missing or damaged",
    role="admin",
    answers={200: StoreCheck},
    errors=STORE_ERRORS,
)
async def check(call: ApiCall, query: CheckQuery) -> Reply:
    """The artifacts of a page whose objects aren't what they must be."""
    store, db = call.services.store, call.services.databases.lists
    rows = await db.read(lambda conn: conn.fetch(READY_AFTER, query.after, PAGE, query.needed))
    page = StoreCheck()
    if query.after == FIRST:
        total = await db.read(lambda conn: conn.one(READY_TOTAL, query.needed))
        page.artifacts, page.size = total.artifacts, total.size
    ends = call.services.clock.monotonic() + SECONDS
    for row in rows:
        wanted = row.sha256 if query.bytes else None
        found = await stored_bytes.fault(store, object_key(row.sha256, row.id), row.size, wanted)
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
    """The objects of a page of the bucket that no row knows."""
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
    """The versions of an artifact, as NAME@VERSION; None where it was deleted meanwhile, or is being so."""
    if not await conn.fetchval(STILL_READY, artifact_id):
        return None
    return await conn.column(USED_BY, artifact_id, VERSIONS)
