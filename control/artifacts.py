"""Artifacts: uploaded once, addressed by sha256, deleted when nothing needs them, and swept up after a kill.

The row goes uploading, ready, deleting, and is written before the object is. The object's key is ``sha256/row id``, so
an upload never meets a deletion of the same bytes. An object without a row, or a row without its object, lasts no
longer than until the sweep.
"""

import asyncio
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from control import answers, faults, queries
from control.calls import Answer, Call
from control.problems import ProblemError
from control.services import Services
from control.store import Store

SQL = queries.load("artifacts")
CHUNK = 1024 * 1024
STALE = timedelta(hours=1)
"""After which an upload is given up, and an artifact that no version uses is deleted."""
RETRY_DELETION = timedelta(minutes=1)
SWEPT_AT_ONCE = 200

_KEY = re.compile(r"[0-9a-f]{64}/([0-9a-f-]{36})")
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
    services, sha256 = call.services, call.path["sha256"]
    # Without a name: a kill leaves nothing behind.
    with tempfile.TemporaryFile(dir=services.settings.spool) as file:
        size, digest = await _spool(call, file)
        if digest != sha256:
            raise ProblemError(
                "digest_mismatch",
                f"the {size} bytes that came have the sha256 {digest}; send them again",
                field="sha256",
            )
        known = await services.db.transaction(lambda conn: _find_and_touch(conn, sha256, services.clock.now()))
        if known is not None and await _has_object(services, sha256, known["id"], file):
            return Answer(200, answers.Artifact(sha256, known["size"], known["abi"]))
        checked = await services.checks.module(
            Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"), services.settings.artifact_limit
        )
        made = await _store(call, file, size, checked)
        return Answer(201 if made else 200, answers.Artifact(sha256, size, checked["abi"]))


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
    stored = await services.store.open(key, wanted if _RANGE.fullmatch(wanted) else None)
    headers = [
        (b"content-type", b"application/wasm"),
        (b"content-length", str(stored["ContentLength"]).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if "ContentRange" in stored:
        headers.append((b"content-range", stored["ContentRange"].encode()))
    return Answer(206 if "ContentRange" in stored else 200, _chunks(stored), tuple(headers))


async def release_unused(conn: Any, artifact_ids: list[str], now: datetime) -> list[tuple[str, str]]:
    """Mark those of the artifacts that no version uses as deleting; returns (sha256, id) of each."""
    rows = await conn.fetch(SQL["release_unused"], sorted(set(artifact_ids)), now)
    return [(row["sha256"], row["id"]) for row in rows]


async def delete(services: Services, artifact: tuple[str, str]) -> bool:
    """Delete the object and then the row of an artifact that is marked deleting (R 2.4).

    False where the store or the database failed: the row stays, and the sweep finishes it.
    """
    sha256, artifact_id = artifact
    try:
        faults.reach("control.delete.object.before")
        await services.store.delete(object_key(sha256, artifact_id))
        faults.reach("control.delete.object.after")
        await services.db.transaction(lambda conn: conn.execute(SQL["forget"], artifact_id))
        faults.reach("control.delete.row.after")
    except ProblemError as error:
        log.warning("artifact %s isn't wholly deleted yet, the sweep will do it: %s", sha256, error.detail)
        return False
    return True


async def sweep(services: Services) -> None:
    """Finish what kills and failures left behind. Raises `ProblemError` where the store or the database is away."""
    now = services.clock.now()
    await services.db.transaction(lambda conn: _mark_stale(conn, now))
    deleting = await services.db.read(lambda conn: conn.fetch(SQL["deleting"], now - RETRY_DELETION, SWEPT_AT_ONCE))
    for row in deleting:
        if not await delete(services, (row["sha256"], row["id"])):
            return
    orphans = 0
    async for page in services.store.objects():
        old = {match[1]: o.key for o in page if o.modified < now - STALE and (match := _KEY.fullmatch(o.key))}
        if not old:
            continue
        known = await services.db.read(lambda conn, ids=list(old): conn.fetch(SQL["known"], ids))  # type: ignore[misc]
        for artifact_id in old.keys() - {row["id"] for row in known}:
            await services.store.delete(old[artifact_id])
            orphans += 1
    if deleting or orphans:
        log.info("swept %d artifacts and %d objects without a row", len(deleting), orphans)


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
    await services.db.transaction(
        lambda conn: conn.execute(
            SQL["begin"], artifact_id, sha256, size, checked["abi"], checked["memory_pages"], clock.now()
        )
    )
    faults.reach("control.upload.row.after")
    try:
        await services.store.put(object_key(*artifact), file)
        await _verify(services.store, artifact, size)
        faults.reach("control.upload.object.after")

        async def work(conn: Any) -> bool:
            other = await conn.fetchrow(SQL["ready"], sha256)
            if other is not None:
                await conn.execute(SQL["give_up"], artifact_id, clock.now())
                return False
            if await conn.fetchval(SQL["set_ready"], artifact_id, clock.now()) is None:
                raise ProblemError("upload_interrupted", "the upload took so long that it was given up; send it again")
            await call.audit(conn, "artifact.upload", sha256, {"size": size})
            return True

        made = await services.db.transaction(work)
    except ProblemError as error:
        # Unknown whether it is ready: the sweep decides.
        if error.code != "commit_unknown":
            await _undo(services, artifact)
        raise
    faults.reach("control.upload.ready.after")
    if not made:
        await delete(services, artifact)
    return made


async def _verify(store: Store, artifact: tuple[str, str], size: int) -> None:
    stored = await store.head(object_key(*artifact))
    if stored != size:
        raise ProblemError("store_unavailable", f"the store has {stored} of {size} bytes; send them again")


async def _undo(services: Services, artifact: tuple[str, str]) -> None:
    try:
        await services.db.transaction(lambda conn: conn.execute(SQL["give_up"], artifact[1], services.clock.now()))
    except ProblemError as error:
        log.warning("a failed upload of %s is left to the sweep: %s", artifact[0], error.detail)
        return
    await delete(services, artifact)


async def _find_and_touch(conn: Any, sha256: str, now: datetime) -> Any:
    row = await conn.fetchrow(SQL["ready"], sha256)
    if row is not None:
        # Its version is about to be made: it isn't unused from now on for another while.
        await conn.execute(SQL["touch"], row["id"], now)
    return row


async def _mark_stale(conn: Any, now: datetime) -> None:
    await conn.execute(SQL["give_up_stale"], now - STALE, now)
    await conn.execute(SQL["release_stale"], now - STALE, now)


async def _chunks(stored: dict[str, Any]) -> AsyncIterator[bytes]:
    async with stored["Body"] as body:
        async for chunk in body.content.iter_chunked(256 * 1024):
            yield chunk


def _unknown(sha256: str) -> ProblemError:
    return ProblemError("unknown_artifact", f"there is no artifact {sha256}; upload it first", field="sha256")


def _too_large(limit: int) -> ProblemError:
    return ProblemError("artifact_too_large", f"an artifact may have {limit} bytes (SKERRY_ARTIFACT_LIMIT)")
