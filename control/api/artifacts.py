"""Artifacts: uploaded once, addressed by sha256, and deleted when nothing needs them (`artifact_deletions`).

The setting `artifact_limit` limits its size, and `presigned_life` is how long its presigned URL is valid
(`control/settings.py`).

A row's state goes from uploading to ready to deleting, and each state is written before the object changes. The
object's key is ``sha256/row id``, so an upload never touches an object that is being deleted.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Coroutine, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import UUID, uuid4

from msgspec import Struct

from control.access import auth
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import faults, wire
from control.settings import ControlSettings
from control.storage import bucket_owner, object_store, queries
from control.storage.artifact_deletions import GIVE_UP, RELEASE_UNUSED, ArtifactKey
from control.storage.connection import Connection
from control.storage.object_store import Fault, Store, object_key


class Artifact(Struct):
    sha256: wire.Sha256
    size: int
    abi: str


class ReadyArtifact(NamedTuple):
    """An artifact whose bytes are in the store: a version can be made of it."""

    id: str
    size: int
    abi: str
    memory_pages: int


SQL = queries.load("artifacts")
READY = SQL.rows("ready", ReadyArtifact)
FOR_NODE = SQL.optional("for_node", str)
SET_READY = SQL.optional("set_ready", UUID)

CHUNK = 1024 * 1024
"""Bytes of an upload that are written to the spool in one go."""

STORE_ERRORS = (
    *("store_unavailable", "store_refused", "store_full", "store_not_owned", "store_mark_refused"),
    "bucket_missing",
)
"""Codes of problems that the artifact store may cause."""

_RANGE = re.compile(r"bytes=\d{1,18}-(\d{1,18})?")

log = logging.getLogger("skerry.artifacts")


@operation(
    "PUT",
    "/v1/artifacts/{sha256}",
    "Upload an artifact",
    role="push",
    everywhere=False,
    answers={200: Artifact, 201: Artifact},
    errors=(
        "digest_mismatch",
        "upload_interrupted",
        "artifact_too_large",
        "module_refused",
        "check_unavailable",
        "spool_failed",
        "spool_full",
        *STORE_ERRORS,
    ),
    stream=True,
)
async def upload(call: ApiCall) -> Reply:
    """Spool and hash the bytes, check them, then row, object, and row ready (R 2.1)."""
    with call.services.checks.of(call.operator.id).upload():
        return await _upload(call)


async def _upload(call: ApiCall) -> Reply:
    folder = call.services.settings.spool
    with spool_failures(folder):
        # A file without a name, so that a kill leaves nothing behind.
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        with spool_failures(folder):
            size, digest = await spool(call, file, call.services.settings.artifact_limit)
        if digest != call.path["sha256"]:
            raise ProblemError(
                "digest_mismatch",
                f"the {size} bytes that came have the sha256 {digest}; send them again",
                field="sha256",
            )
        return await _while_connected(call, _keep(call, file, size))
    finally:
        # Closing repeats the error of a full disk.
        with contextlib.suppress(OSError):
            file.close()


async def _while_connected(call: ApiCall, work: Coroutine[Any, Any, Reply]) -> Reply:
    """Do `work`, and cancel it when the client, whose body has been read, closes the connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(call.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProblemError("body_incomplete", "the connection was closed before the upload was stored")
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _keep(call: ApiCall, file: BinaryIO, size: int) -> Reply:
    """Store the bytes in `file`, unless they are stored already."""
    services, sha256 = call.services, call.path["sha256"]

    async def find(conn: Connection) -> ReadyArtifact | None:
        # The body may have taken minutes to arrive.
        await auth.refuse_changed(conn, call.operator)
        return await _find_and_touch(conn, sha256, services.clock.now())

    known = await services.db.transaction(find)
    if known is not None and await _has_object(call, known, file):
        return Reply(200, Artifact(sha256, known.size, known.abi))
    checked = await services.checks.of(call.operator.id).module(
        Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"), services.settings.artifact_limit
    )
    made = await _store(call, file, size, checked)
    return Reply(201 if made else 200, Artifact(sha256, size, checked["abi"]))


@operation(
    "HEAD",
    "/v1/artifacts/{sha256}",
    "Is it uploaded, and whole in the store?",
    role="push",
    everywhere=False,
    answers={200: bytes},
    errors=("unknown_artifact", *STORE_ERRORS),
)
async def head(call: ApiCall) -> Reply:
    """Answer whether the artifact is stored. Its object is read, since it may be lost or damaged."""
    sha256 = call.path["sha256"]
    row = await call.services.db.read(lambda conn: conn.fetchrow(READY, sha256))
    if row is None or await _fault(call, row):
        raise _unknown(sha256)
    headers = ((b"content-type", b"application/wasm"), (b"content-length", str(row.size).encode()))
    return Reply(200, b"", headers)


@operation(
    "GET",
    "/v1/artifacts/{sha256}",
    "The bytes, for a node that was ever to have them",
    role="node",
    answers={200: bytes, 206: bytes, 307: None},
    errors=("unknown_artifact", *STORE_ERRORS),
)
async def download(call: ApiCall) -> Reply:
    """Serve an artifact to a node whose target includes it, or for which a sync with it was opened (R 4.2)."""
    sha256 = call.path["sha256"]
    services = call.services
    id = await services.db.read(lambda conn: conn.fetchval(FOR_NODE, sha256, call.node_id))
    if id is None:
        raise _unknown(sha256)
    if services.settings.artifacts_delivery == "presigned":
        return Reply(307, b"", ((b"location", (await services.store.location(sha256, id)).encode()),))
    return await passed_on(call, object_key(sha256, id), "application/wasm")


async def passed_on(call: ApiCall, key: str, media: str) -> Reply:
    """Reply with an object of the store, or with the part of it that the call's range names.

    Raises: ProblemError, as `Store.open` does.
    """
    wanted = next((value.decode("latin-1") for name, value in call.scope["headers"] if name == b"range"), "")
    stored, pieces = await call.services.store.open(key, wanted if _RANGE.fullmatch(wanted) else None)
    headers = [
        (b"content-type", media.encode()),
        (b"content-length", str(stored["ContentLength"]).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if "ContentRange" in stored:
        headers.append((b"content-range", stored["ContentRange"].encode()))
    return Reply(206 if "ContentRange" in stored else 200, pieces, tuple(headers))


async def release_unused(conn: Connection, artifact_ids: list[str], now: datetime) -> list[ArtifactKey]:
    """Mark those of the artifacts that no version uses as deleting, and return them."""
    released = await conn.fetch(RELEASE_UNUSED, sorted(set(artifact_ids)), now)
    if released:
        await bucket_owner.step(conn)
    return released


async def spool(call: ApiCall, file: BinaryIO, limit: int) -> tuple[int, str]:
    """Write the request's body, of at most `limit` bytes, to `file`; return its size and sha256.

    Raises: ProblemError, when the body ends early, or is too large or too slow.
    """
    settings = call.services.settings
    for name, value in call.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(settings, limit)
    digest = hashlib.sha256()
    waiting: list[bytes] = []
    waits = size = 0

    def write(parts: list[bytes]) -> None:
        for part in parts:
            digest.update(part)
            file.write(part)

    try:
        async with call.services.clock.timeout(settings.upload_timeout):
            more = True
            while more:
                async with call.services.clock.timeout(settings.body_timeout):
                    message = await call.receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError("body_incomplete", "the connection was closed within the upload")
                part = message.get("body", b"")
                more = message.get("more_body", False)
                waiting.append(part)
                waits += len(part)
                size += len(part)
                if size > limit:
                    raise _too_large(settings, limit)
                if waits >= CHUNK or not more:
                    await asyncio.to_thread(write, waiting)
                    waiting, waits = [], 0
            await asyncio.to_thread(file.flush)
    except TimeoutError:
        raise ProblemError("body_timeout", f"the upload took too long (at {size} bytes); send it again") from None
    return size, digest.hexdigest()


async def _fault(call: ApiCall, artifact: ReadyArtifact) -> Fault | None:
    """Return what is wrong with the object of a ready artifact."""
    sha256 = call.path["sha256"]
    return await object_store.fault(call.services.store, object_key(sha256, artifact.id), artifact.size, sha256)


async def _has_object(call: ApiCall, artifact: ReadyArtifact, file: BinaryIO) -> bool:
    """Return whether a ready artifact is in the store; store its object again if that is lost or damaged.

    False when it is being deleted.
    """
    services, sha256 = call.services, call.path["sha256"]
    key = object_key(sha256, artifact.id)
    fault = await _fault(call, artifact)
    if fault is None:
        return True
    await services.ownership.confirm()
    await services.store.put(key, file)

    async def note(conn: Connection) -> bool:
        row = await conn.fetchrow(READY, sha256)
        if row is None or row.id != artifact.id:
            return False
        await call.audit(conn, "artifact.restore", sha256, {"object": key, "fault": fault})
        return True

    if not await services.databases.writes.transaction(note):
        # It was being deleted, which may have missed the object that was just stored.
        await services.store.delete(key)
        return False
    log.warning("the object of artifact %s was lost or damaged (%s); it was stored again", sha256, fault)
    return True


async def _store(call: ApiCall, file: BinaryIO, size: int, checked: dict[str, Any]) -> bool:
    """Write the row, the object, and the row as ready. Return False if another upload of the same bytes was first."""
    services, sha256 = call.services, call.path["sha256"]
    clock, artifact = services.clock, ArtifactKey(sha256, str(uuid4()))
    faults.reach("control.upload.row.before")

    async def begin(conn: Connection) -> None:
        await conn.execute(
            SQL["begin"], artifact.id, sha256, size, checked["abi"], checked["memory_pages"], clock.now()
        )
        await bucket_owner.step(conn)

    await services.databases.writes.transaction(begin)
    faults.reach("control.upload.row.after")
    try:
        # The step goes to the bucket before the object: metadata that lack the object are then known to be old.
        await services.ownership.confirm()
        await services.store.put(object_key(*artifact), file)
        await _verify(services.store, artifact, size)
        faults.reach("control.upload.object.after")

        async def work(conn: Connection) -> bool:
            other = await conn.fetchrow(READY, sha256)
            if other is not None:
                await conn.fetch(GIVE_UP, [artifact.id], clock.now())
                return False
            if await conn.fetchval(SET_READY, artifact.id, clock.now()) is None:
                raise ProblemError("upload_interrupted", "the upload took so long that it was given up; send it again")
            await call.audit(conn, "artifact.upload", sha256, after={"size": size})
            await bucket_owner.step(conn)
            return True

        made = await services.databases.writes.transaction(work)
    except (ProblemError, asyncio.CancelledError):
        # If the answer to COMMIT was lost, the row may be ready and is then kept.
        services.deletions.give_up(artifact)
        raise
    faults.reach("control.upload.ready.after")
    services.ownership.wake()
    if not made:
        services.deletions.add([artifact])
    return made


async def _verify(store: Store, artifact: ArtifactKey, size: int) -> None:
    """Check the size of the stored object. Raises: ProblemError store_unavailable, when it differs."""
    stored = await store.head(object_key(*artifact))
    if stored != size:
        raise ProblemError("store_unavailable", f"the store has {stored} of {size} bytes; send them again")


async def _find_and_touch(conn: Connection, sha256: str, now: datetime) -> ReadyArtifact | None:
    """Return the artifact, if it is stored, and have the sweep leave it for now: a version of it is probably coming."""
    row = await conn.fetchrow(READY, sha256)
    if row is not None:
        await conn.execute(SQL["touch"], row.id, now)
    return row


def _unknown(sha256: str) -> ProblemError:
    return ProblemError("unknown_artifact", f"there is no artifact {sha256}; upload it first", field="sha256")


@contextlib.contextmanager
def spool_failures(folder: Path) -> Iterator[None]:
    """Turn disk errors of uploads into problems."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = ProblemError(
                "spool_full", f"control has no room for the upload in {folder} (SKERRY_SPOOL): {why}; make room there"
            )
        else:
            problem = ProblemError("spool_failed", f"control can't keep the upload in {folder} (SKERRY_SPOOL): {why}")
        log.warning("%s", problem.detail)
        raise problem from error


def _too_large(settings: ControlSettings, limit: int) -> ProblemError:
    if limit != settings.artifact_limit:
        return ProblemError("body_too_large", f"a file of a backup may have {limit} bytes")
    return ProblemError("artifact_too_large", f"an artifact may have {limit} bytes (SKERRY_ARTIFACT_LIMIT)")
