"""An artifact store that stands, is slow, refuses or answers nonsense: bounded, said in words, over when it is over."""

import asyncio
import contextlib
import hashlib
import io
import os
import re
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control.access import certificates
from control.local.pki import Pki
from control.local.seaweedfs import s3_client
from control.problems import ProblemError
from control.storage import object_store, owner_mark
from tests.support import replica
from tests.support.control import Control, Reply, module, running, until
from tests.support.deadlines import deadline
from tests.support.replica import Site
from tests.support.store_proxy import StoreProxy, always, never, store_proxy

QUICK = {"artifacts_timeout": 5.0, "artifacts_stall": 5.0}
"""Limits with which a test takes seconds, and which a store that is well keeps on a busy machine too."""


@pytest.fixture
async def proxy(bucket_url: str) -> AsyncIterator[StoreProxy]:
    async with store_proxy(bucket_url) as found:
        yield found


@pytest.fixture
async def behind(database_url: str, proxy: StoreProxy, pki: Pki, tmp_path: Path) -> AsyncIterator[Control]:
    """Control, whose way to the store is through `proxy`."""
    async with running(database_url, proxy.url, pki, spool=tmp_path, **QUICK) as control:
        yield control


@pytest.fixture
async def patient(database_url: str, proxy: StoreProxy, pki: Pki, tmp_path: Path) -> AsyncIterator[Control]:
    """The same with the usual limits."""
    async with running(database_url, proxy.url, pki, spool=tmp_path) as control:
        yield control


async def put(control: Control, wasm: bytes) -> Reply:
    return await control.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", data=io.BytesIO(wasm))


async def ready(control: Control) -> bool:
    return (await control.call("GET", "/readyz", token="")).status == 200


def spools(folder: Path) -> list[str]:
    """Files without a name in the folder for uploads that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = os.readlink(descriptor)
            if name.startswith(f"{folder}/#"):
                found.append(name)
    return found


async def states(control: Control) -> list[str]:
    rows = await control.services.db.read(lambda conn: conn.fetch("SELECT state FROM artifacts"))
    return [row["state"] for row in rows]


async def test_requests_say_who_asks_and_nothing_of_the_machine(control: Control) -> None:
    said = []
    events = control.services.store._client.meta.events
    events.register("before-send.s3", lambda request, **_: said.append(request.headers["User-Agent"]))
    await control.upload(module("1"))
    [header] = {*said}
    assert re.fullmatch(rb"skerry botocore/[0-9.]+", header)


@pytest.mark.parametrize("size", [100, 8_000_000])
async def test_an_upload_that_the_store_takes_and_does_not_answer_ends(
    behind: Control, proxy: StoreProxy, size: int
) -> None:
    proxy.silent = always
    async with deadline(60):
        reply = await put(behind, module("x" * size))
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert "no progress" in reply.body["detail"]
    assert spools(behind.services.settings.spool) == []
    await until(lambda: none_uploading(behind))
    proxy.silent = never
    assert (await put(behind, module("x" * size))).status == 201


async def none_uploading(control: Control) -> bool:
    return "uploading" not in await states(control)


async def test_an_upload_that_goes_on_slowly_is_not_ended(
    database_url: str, proxy: StoreProxy, pki: Pki, tmp_path: Path
) -> None:
    """The limit is on the time without progress, not on the whole."""
    limit = 6.0
    async with running(database_url, proxy.url, pki, spool=tmp_path, artifacts_stall=limit) as control:
        # What the system's buffers hold at the end, which is some MB, takes less than the limit.
        proxy.pace = 0.03
        began = time.monotonic()
        assert (await put(control, module("x" * 16_000_000))).status == 201
        assert time.monotonic() - began > limit


async def test_clients_that_leave_end_their_uploads_and_nothing_stays(
    database_url: str, proxy: StoreProxy, pki: Pki, tmp_path: Path
) -> None:
    """More uploads than there are connections to the store, their clients gone: all is well as soon as the store is."""
    # On a busy machine the first is not to give up before the last has come so far.
    async with running(database_url, proxy.url, pki, spool=tmp_path, artifacts_stall=600.0) as control:
        await until(lambda: ready(control))
        proxy.silent = lambda line: line.startswith("PUT") and "owner.json" not in line
        uploads = [asyncio.create_task(put(control, module(f"{n} {'x' * 300_000}"))) for n in range(24)]

        async def all_wait() -> bool:
            return len(await states(control)) == len(spools(tmp_path)) == 24

        await until(all_wait)
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

        async def all_gone() -> bool:
            return spools(tmp_path) == []

        # Long before the limit of the requests to the store.
        await until(all_gone)
        proxy.silent = never
        await until(lambda: ready(control))
        assert (await put(control, module("after"))).status == 201
        await until(lambda: none_uploading(control))


async def test_readiness_is_answered_while_the_store_stands_and_is_back_with_it(
    behind: Control, proxy: StoreProxy
) -> None:
    await until(lambda: ready(behind))

    async def unready() -> bool:
        """For this reason: on a busy machine the database may for a moment be another."""
        reply = await behind.call("GET", "/readyz", token="")
        return reply.status == 503 and reply.code == "not_ready" and reason in reply.body["detail"]

    proxy.silent, reason = always, "the artifact store doesn't answer"
    await until(unready)
    proxy.silent = never
    await until(lambda: ready(behind))
    # Which object it is that can't be read: it may be this one alone, as after a loss of power.
    proxy.answers(500, "InternalError")
    reason = "asked to read the object skerry/owner.json"
    await until(unready)
    proxy.answer = b""
    await until(lambda: ready(behind))


async def test_a_deletion_is_answered_at_its_commit(behind: Control, proxy: StoreProxy, bucket_url: str) -> None:
    await behind.push("f", module("f"))
    proxy.deaf = True
    async with asyncio.timeout(60):
        await behind.ok("DELETE", "/v1/functions/f")
    assert await states(behind) == ["deleting"], "its object goes afterwards"
    proxy.deaf = False
    behind.clock.advance(minutes=2)

    async def swept() -> bool:
        with contextlib.suppress(ProblemError):
            await behind.services.deletions.sweep()
        return await states(behind) == []

    await until(swept)
    async with s3_client(bucket_url) as client:
        listed = await client.list_objects_v2(Bucket=bucket_url.rpartition("/")[2])
        assert not [found for found in listed.get("Contents", ()) if found["Key"][:1] != "s"]


async def test_a_slow_store_is_used_and_ready(behind: Control, proxy: StoreProxy) -> None:
    proxy.delay = 0.5
    await until(lambda: ready(behind))
    assert (await put(behind, module("slow"))).status == 201


@pytest.mark.parametrize(
    ("status", "s3", "code", "words"),
    [
        (403, "AccessDenied", "store_refused", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "store_refused", "doesn't know the access key"),
        (403, "SignatureDoesNotMatch", "store_refused", "secret"),
        (403, "RequestTimeTooSkewed", "store_refused", "clock"),
        (400, "AuthorizationHeaderMalformed", "store_refused", "SKERRY_ARTIFACTS_REGION"),
        (404, "NoSuchBucket", "bucket_missing", "make it"),
        (507, "XMinioStorageFull", "store_full", "no room"),
        (400, "QuotaExceeded", "store_full", "quota"),
        (503, "SlowDown", "store_unavailable", "503 SlowDown"),
        (500, "InternalError", "store_unavailable", "500 InternalError"),
        (418, "Teapot", "store_unavailable", "418 Teapot"),
    ],
)
async def test_what_the_store_answers_is_said_in_words(
    patient: Control, proxy: StoreProxy, status: int, s3: str, code: str, words: str
) -> None:
    proxy.answers(status, s3)
    with pytest.raises(ProblemError) as caught:
        await patient.services.store.put("a/b", io.BytesIO(b"x"))
    assert caught.value.code == code
    assert words in caught.value.detail
    assert "ClientError" not in caught.value.detail


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 No\r\ncontent-length: 15\r\n\r\n<html>no</html>", b"nothing of HTTP\r\n\r\n"]
)
async def test_a_store_that_is_none_is_said_to_be_none(patient: Control, proxy: StoreProxy, answer: bytes) -> None:
    proxy.answer = answer
    reply = await put(patient, module("a"))
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert not await ready(patient)


async def test_no_store_at_all_is_said_in_words(database_url: str, pki: Pki) -> None:
    async with running(database_url, "http://K:S@127.0.0.1:9/artifacts", pki) as control:
        reply = await put(control, module("a"))
        assert (reply.status, reply.code) == (503, "store_unavailable")
        assert "refuses connections" in reply.body["detail"]

        async def said() -> bool:
            return "refuses connections" in (await control.call("GET", "/readyz", token="")).body["detail"]

        await until(said)


async def test_a_store_whose_certificate_nobody_vouches_for_is_not_believed(database_url: str, pki: Pki) -> None:
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", ssl=certificates.server_context(pki.certificate, pki.key))
    async with server:
        url = f"https://K:S@localhost:{server.sockets[0].getsockname()[1]}/artifacts"
        async with running(database_url, url, pki) as control:
            assert (await put(control, module("a"))).code == "store_unavailable"
    assert asked == []


async def test_a_start_reads_no_certificates_that_nothing_asks_for(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the store, which is reached by http, nor of the system, for webhooks that nobody has."""
    read = []
    own = ssl.SSLContext.load_verify_locations

    def locations(self: ssl.SSLContext, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        if cadata is None:
            read.append(cafile)
        own(self, cafile, capath, cadata)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", locations)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: read.append("the system's"))
    async with replica.running(control_site.settings):
        assert read == []


async def test_a_body_is_read_beside_the_loop(control: Control, tmp_path: Path) -> None:
    """Neither for its signature nor for its way is a large body read in the loop."""
    readers = set()

    class Watched(io.BufferedReader):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.current_thread())
            return super().read(size)

    (tmp_path / "body").write_bytes(b"x" * 300_000)
    with Watched(io.FileIO(tmp_path / "body")) as file:
        await control.services.store.put("watched", file)
    assert readers
    assert threading.current_thread() not in readers
    assert await control.services.store.head("watched") == 300_000


async def test_a_start_does_not_wait_for_a_store_that_stands(database_url: str, proxy: StoreProxy, pki: Pki) -> None:
    proxy.silent = always
    async with asyncio.timeout(60), running(database_url, proxy.url, pki, artifacts_timeout=120.0) as control:
        assert (await control.call("GET", "/healthz", token="")).status == 200
        proxy.silent = never


async def test_a_wrong_secret_is_said_in_words(database_url: str, bucket_url: str, pki: Pki) -> None:
    before, at, after = bucket_url.partition("@")
    async with running(database_url, f"{before}x{at}{after}", pki) as control:
        assert (await put(control, module("a"))).code == "store_refused"
        detail = ""

        async def said() -> bool:
            nonlocal detail
            detail = (await control.call("GET", "/readyz", token="")).body["detail"]
            return "secret" in detail

        await until(said)
        assert before.rpartition(":")[2] not in detail


async def test_a_bucket_that_is_not_there_is_not_made(database_url: str, bucket_url: str, pki: Pki) -> None:
    missing = f"{bucket_url}-missing"
    async with running(database_url, missing, pki) as control:

        async def said() -> bool:
            reply = await control.call("GET", "/readyz", token="")
            assert reply.code == "not_ready"
            return f"no bucket {missing.rpartition('/')[2]}" in reply.body["detail"]

        await until(said)
        assert (await put(control, module("a"))).code == "bucket_missing"
    async with s3_client(bucket_url) as client:
        names = {found["Name"] for found in (await client.list_buckets())["Buckets"]}
    assert missing.rpartition("/")[2] not in names


async def test_a_spool_without_room_says_so(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    reply = await put(control, module("a"))
    assert (reply.status, reply.code) == (507, "spool_full")
    assert "SKERRY_SPOOL" in reply.body["detail"]


async def test_a_spool_that_is_gone_says_so(
    database_url: str, bucket_url: str, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database_url, bucket_url, pki, spool=tmp_path / "gone") as control:
        reply = await put(control, module("a"))
        assert (reply.status, reply.code) == (503, "spool_failed")
        assert str(tmp_path / "gone") in reply.body["detail"]


async def test_bytes_through_control_end_when_the_store_stands(database_url: str, proxy: StoreProxy, pki: Pki) -> None:
    async with running(database_url, proxy.url, pki, artifacts_delivery="control", **QUICK) as control:
        node, wasm = await control.join("n1"), module("x" * 8_000_000)
        assert (await put(control, wasm)).status == 201
        sha256 = hashlib.sha256(wasm).hexdigest()
        await control.ok("POST", "/v1/functions/f/versions", {"sha256": sha256})
        await control.release(functions={"f": 1})
        proxy.deaf = True
        reply = await control.call("GET", f"/v1/artifacts/{sha256}", token=node.credential)
        assert (reply.status, reply.code) == (503, "store_unavailable")
        proxy.deaf = False
        async with control.session.get(
            f"{control.url}/v1/artifacts/{sha256}", headers={"authorization": f"Bearer {node.credential}"}
        ) as response:
            await response.content.read(1)
            proxy.deaf = True
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        proxy.deaf = False
        await until(lambda: ready(control))


async def test_an_object_that_comes_in_pieces_is_read_whole(patient: Control, proxy: StoreProxy) -> None:
    proxy.piece, proxy.delay = 50, 0.01
    found = await patient.services.store.read(owner_mark.KEY)
    assert found is not None
    assert isinstance(owner_mark.decode(found.data), owner_mark.OwnerMark)
    proxy.piece, proxy.delay = 65_536, 0.0
    # Of a large one no more is read than shows that it is none of ours.
    await patient.services.store.put("large", io.BytesIO(b"x" * 1_000_000))
    found = await patient.services.store.read("large")
    assert found is not None
    assert len(found.data) == object_store.SMALL + 1


async def test_an_object_that_is_cut_off_says_nothing_of_the_owner(patient: Control, proxy: StoreProxy) -> None:
    proxy.answer = b'HTTP/1.1 200 OK\r\netag: "1"\r\ncontent-length: 200\r\n\r\n{"owner": "'
    with pytest.raises(ProblemError) as caught:
        await patient.services.store.read(owner_mark.KEY)
    assert caught.value.code == "store_unavailable"
