"""Artifacts: uploaded once, addressed by sha256, and deleted when nothing needs them (deletions.py).

The row goes uploading, ready, deleting, and is written before the object is. The object's key is ``sha256/row id``, so
an upload never meets a deletion of the same bytes.
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
from typing import Any, BinaryIO
from uuid import uuid4

from control import faults
from control.api import responses
from control.api.operations import Answer, Call
from control.api.services import Services
from control.problems import ProblemError
from control.storage import bucket_owner, queries
from control.storage.object_store import Store

SQL = queries.load("artifacts")
CHUNK = 1024 * 1024

_RANGE = re.compile(r"bytes=\d{1,18}-(\d{1,18})?")

log = logging.getLogger("skerry.artifacts")


def object_key(sha256: str, artifact_id: str) -> str:
    """The key of an artifact's object in the bucket."""
    return f"{sha256}/{artifact_id}"


async def location(services: Services, sha256: str, artifact_id: str) -> str:
    """The URL under which a node gets the bytes: presigned, or a path of control's."""
    if services.settings.artifacts_delivery == "control":
        return f"/v1/artifacts/{sha256}"
    return await services.store.url(object_key(sha256, artifact_id))


async def upload(call: Call) -> Answer:
    """PUT /v1/artifacts/{sha256}: spool and hash, check, then row, object, ready (R 2.1)."""
    folder = call.services.settings.spool
    with _spool_failures(folder):
        # Without a name: a kill leaves nothing behind.
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        with _spool_failures(folder):
            size, digest = await _spool(call, file)
        if digest != call.path["sha256"]:
            raise ProblemError(
                "digest_mismatch",
                f"the {size} bytes that came have the sha256 {digest}; send them again",
                field="sha256",
            )
        return await _while_connected(call, _keep(call, file, size))
    finally:
        # A disk that was full says so again.
        with contextlib.suppress(OSError):
            file.close()


async def _while_connected(call: Call, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Do `work`, and end it where the client leaves, whose body has been read."""
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


async def _keep(call: Call, file: BinaryIO, size: int) -> Answer:
    """Store the bytes in `file`, unless they are stored."""
    services, sha256 = call.services, call.path["sha256"]
    known = await services.db.transaction(lambda conn: _find_and_touch(conn, sha256, services.clock.now()))
    if known is not None and await _has_object(services, sha256, known["id"], file):
        return Answer(200, responses.Artifact(sha256, known["size"], known["abi"]))
    checked = await services.checks.module(
        Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"), services.settings.artifact_limit
    )
    made = await _store(call, file, size, checked)
    return Answer(201 if made else 200, responses.Artifact(sha256, size, checked["abi"]))


async def head(call: Call) -> Answer:
    """HEAD /v1/artifacts/{sha256}."""
    row = await call.services.db.read(lambda conn: conn.fetchrow(SQL["ready"], call.path["sha256"]))
    if row is None:
        raise _unknown(call.path["sha256"])
    headers = ((b"content-type", b"application/wasm"), (b"content-length", str(row["size"]).encode()))
    return Answer(200, b"", headers)


async def download(call: Call) -> Answer:
    """GET /v1/artifacts/{sha256}, for a node whose target or running set has it (R 4.2)."""
    sha256 = call.path["sha256"]
    services = call.services
    row = await services.db.read(lambda conn: conn.fetchrow(SQL["for_node"], sha256, call.node_id))
    if row is None:
        raise _unknown(sha256)
    key = object_key(sha256, row["id"])
    if services.settings.artifacts_delivery == "presigned":
        return Answer(307, b"", ((b"location", (await services.store.url(key)).encode()),))
    wanted = next((value.decode("latin-1") for name, value in call.scope["headers"] if name == b"range"), "")
    stored, pieces = await services.store.open(key, wanted if _RANGE.fullmatch(wanted) else None)
    headers = [
        (b"content-type", b"application/wasm"),
        (b"content-length", str(stored["ContentLength"]).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if "ContentRange" in stored:
        headers.append((b"content-range", stored["ContentRange"].encode()))
    return Answer(206 if "ContentRange" in stored else 200, pieces, tuple(headers))


async def release_unused(conn: Any, artifact_ids: list[str], now: datetime) -> list[tuple[str, str]]:
    """Mark those of the artifacts that no version uses as deleting; returns (sha256, id) of each."""
    rows = await conn.fetch(SQL["release_unused"], sorted(set(artifact_ids)), now)
    if rows:
        await bucket_owner.step(conn)
    return [(row["sha256"], row["id"]) for row in rows]


async def _spool(call: Call, file: BinaryIO) -> tuple[int, str]:
    """Write the request's body to `file`; returns its size and sha256. Raises `ProblemError`."""
    settings = call.services.settings
    limit = settings.artifact_limit
    for name, value in call.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    digest = hashlib.sha256()
    waiting: list[bytes] = []
    waits = size = 0

    def write(parts: list[bytes]) -> None:
        for part in parts:
            digest.update(part)
            file.write(part)

    try:
        async with asyncio.timeout(settings.upload_timeout):
            more = True
            while more:
                async with asyncio.timeout(settings.body_timeout):
                    message = await call.receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError("body_incomplete", "the connection was closed within the upload")
                part = message.get("body", b"")
                more = message.get("more_body", False)
                waiting.append(part)
                waits += len(part)
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                if waits >= CHUNK or not more:
                    await asyncio.to_thread(write, waiting)
                    waiting, waits = [], 0
            await asyncio.to_thread(file.flush)
    except TimeoutError:
        raise ProblemError("body_timeout", f"the upload took too long (at {size} bytes); send it again") from None
    return size, digest.hexdigest()


async def _has_object(services: Services, sha256: str, artifact_id: str, file: BinaryIO) -> bool:
    """Whether a ready artifact is in the store; a lost object is stored again. False where it is being deleted."""
    key = object_key(sha256, artifact_id)
    if await services.store.head(key) is not None:
        return True
    await services.ownership.confirm()
    await services.store.put(key, file)
    row = await services.db.read(lambda conn: conn.fetchrow(SQL["ready"], sha256))
    if row is None or row["id"] != artifact_id:
        # Its deletion was under way, and may not see what was just stored.
        await services.store.delete(key)
        return False
    log.warning("the object of artifact %s was missing from the store; it was stored again", sha256)
    return True


async def _store(call: Call, file: BinaryIO, size: int, checked: dict[str, Any]) -> bool:
    """Row, object, ready. False where another upload of the same bytes was first. Raises `ProblemError`."""
    services, sha256 = call.services, call.path["sha256"]
    clock, artifact_id = services.clock, str(uuid4())
    artifact = (sha256, artifact_id)
    faults.reach("control.upload.row.before")

    async def begin(conn: Any) -> None:
        await conn.execute(
            SQL["begin"], artifact_id, sha256, size, checked["abi"], checked["memory_pages"], clock.now()
        )
        await bucket_owner.step(conn)

    await services.writes.transaction(begin)
    faults.reach("control.upload.row.after")
    try:
        # The bucket has the step before it has the object: metadata that don't know the object are then seen to be old.
        await services.ownership.confirm()
        await services.store.put(object_key(*artifact), file)
        await _verify(services.store, artifact, size)
        faults.reach("control.upload.object.after")

        async def work(conn: Any) -> bool:
            other = await conn.fetchrow(SQL["ready"], sha256)
            if other is not None:
                await conn.execute(SQL["give_up"], [artifact_id], clock.now())
                return False
            if await conn.fetchval(SQL["set_ready"], artifact_id, clock.now()) is None:
                raise ProblemError("upload_interrupted", "the upload took so long that it was given up; send it again")
            await call.audit(conn, "artifact.upload", sha256, {"size": size})
            await bucket_owner.step(conn)
            return True

        made = await services.writes.transaction(work)
    except (ProblemError, asyncio.CancelledError):
        # One whose commit is unknown is given up only if it isn't ready.
        services.deletions.give_up(artifact)
        raise
    faults.reach("control.upload.ready.after")
    services.ownership.wake()
    if not made:
        services.deletions.add([artifact])
    return made


async def _verify(store: Store, artifact: tuple[str, str], size: int) -> None:
    stored = await store.head(object_key(*artifact))
    if stored != size:
        raise ProblemError("store_unavailable", f"the store has {stored} of {size} bytes; send them again")


async def _find_and_touch(conn: Any, sha256: str, now: datetime) -> Any:
    row = await conn.fetchrow(SQL["ready"], sha256)
    if row is not None:
        # Its version is about to be made: it isn't unused from now on for another while.
        await conn.execute(SQL["touch"], row["id"], now)
    return row


def _unknown(sha256: str) -> ProblemError:
    return ProblemError("unknown_artifact", f"there is no artifact {sha256}; upload it first", field="sha256")


@contextlib.contextmanager
def _spool_failures(folder: Path) -> Iterator[None]:
    """What the disk says of the folder in which uploads wait, as a problem."""
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


def _too_large(limit: int) -> ProblemError:
    return ProblemError("artifact_too_large", f"an artifact may have {limit} bytes (SKERRY_ARTIFACT_LIMIT)")
