"""Artifacts: uploads, deduplication, deletion, their races, and what the sweep finishes."""

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, BinaryIO

import msgspec
import pytest

from control import edge_check
from control.api import artifacts
from control.local.pki import Pki
from control.problems import ProblemError
from control.protocol import wire
from control.storage.artifact_deletions import ArtifactKey
from control.storage.connection_quotas import ASKS
from control.storage.object_store import DOWNLOADS, DOWNLOADS_OF_ONE, object_key
from tests.support import deploy
from tests.support.control import Control, module, running, until
from tests.support.deadlines import deadline
from tests.support.replica import Site


async def rows(control: Control, sha256: str) -> list[Any]:
    found: list[Any] = await control.services.db.read(
        lambda conn: conn.fetch("SELECT id::text AS id, state FROM artifacts WHERE sha256 = $1", sha256)
    )
    return found


async def keys(control: Control) -> set[str]:
    return {item.key async for page in control.services.store.objects() for item in page}


async def consistent(control: Control) -> None:
    """Every ready row has its object, and every object its row."""
    known = await control.services.db.read(
        lambda conn: conn.fetch("SELECT sha256 || '/' || id::text AS key, state FROM artifacts")
    )
    stored = await keys(control)
    assert {row["key"] for row in known if row["state"] == "ready"} <= stored
    assert stored <= {row["key"] for row in known}


async def left(control: Control, count: int) -> bool:
    """Whether so many artifacts are left, each with its object: deletions end after they are answered."""
    found = await control.services.db.read(lambda conn: conn.fetchval("SELECT count(*) FROM artifacts"))
    return bool(found == count == len(await keys(control)))


async def test_an_upload_is_stored_and_known(control: Control) -> None:
    wasm = module("a")
    sha256 = hashlib.sha256(wasm).hexdigest()
    assert (await control.call("HEAD", f"/v1/artifacts/{sha256}")).status == 404
    reply = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm)
    assert (reply.status, reply.body) == (201, {"sha256": sha256, "size": len(wasm), "abi": "wagi"})
    head = await control.call("HEAD", f"/v1/artifacts/{sha256}")
    assert (head.status, head.headers["content-length"]) == (200, str(len(wasm)))
    [row] = await rows(control, sha256)
    assert await keys(control) == {f"{sha256}/{row['id']}"}


async def test_the_same_bytes_are_stored_once(control: Control) -> None:
    sha256 = await control.upload(module("a"))
    reply = await control.call("PUT", f"/v1/artifacts/{sha256}", data=module("a"))
    assert (reply.status, reply.body["sha256"]) == (200, sha256)
    assert len(await keys(control)) == 1


async def test_an_object_that_the_store_has_less_of_is_no_artifact(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm = module("a")
    sha256, whole = hashlib.sha256(wasm).hexdigest(), control.services.store.put

    async def cut(key: str, file: BinaryIO) -> None:
        file.seek(0)
        await whole(key, io.BytesIO(file.read()[:-1]))

    with monkeypatch.context() as patched:
        patched.setattr(control.services.store, "put", cut)
        reply = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm)
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert f"{len(wasm) - 1} of {len(wasm)} bytes" in reply.body["detail"]
    assert (await control.call("HEAD", f"/v1/artifacts/{sha256}")).status == 404
    assert (await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm)).status == 201


async def test_uploads_of_the_same_bytes_at_once_leave_one(control: Control) -> None:
    wasm = module("race")
    sha256 = hashlib.sha256(wasm).hexdigest()
    replies = await asyncio.gather(*(control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm) for _ in range(6)))
    assert {reply.status for reply in replies} <= {200, 201}
    assert [reply.status for reply in replies].count(201) == 1
    await until(lambda: left(control, 1))
    assert [row["state"] for row in await rows(control, sha256)] == ["ready"]


async def test_a_large_upload_is_streamed_in_pieces(control: Control) -> None:
    wasm = module("x" * (20 * 1024 * 1024))
    sha256 = hashlib.sha256(wasm).hexdigest()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(wasm), 100_000):
            yield wasm[start : start + 100_000]

    reply = await control.call("PUT", f"/v1/artifacts/{sha256}", data=pieces())
    assert reply.status == 201, reply.body
    [row] = await rows(control, sha256)
    _, pieces = await control.services.store.open(f"{sha256}/{row['id']}")
    digest = hashlib.sha256()
    async for piece in pieces:
        digest.update(piece)
    assert digest.hexdigest() == sha256


async def test_what_is_refused_leaves_nothing(control: Control) -> None:
    wasm = module("b")
    sha256 = hashlib.sha256(wasm).hexdigest()
    wrong = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm + b"x")
    assert (wrong.status, wrong.code) == (409, "digest_mismatch")
    text = b"no module"
    refused = await control.call("PUT", f"/v1/artifacts/{hashlib.sha256(text).hexdigest()}", data=text)
    assert (refused.status, refused.code) == (422, "module_refused")
    assert "module_source" in refused.body["detail"]
    component = b"\0asm\x0d\0\1\0"
    refused = await control.call("PUT", f"/v1/artifacts/{hashlib.sha256(component).hexdigest()}", data=component)
    assert "component" in refused.body["detail"]
    assert await keys(control) == set()
    assert await control.services.db.read(lambda conn: conn.fetchval("SELECT count(*) FROM artifacts")) == 0


async def test_too_large_is_refused_with_and_without_a_length(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with running(database_url, bucket_url, pki, artifact_limit=1000) as control:
        wasm = module("y" * 2000)
        path = f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}"

        async def pieces() -> AsyncIterator[bytes]:
            yield wasm[:900]
            yield wasm[900:]

        for data in (wasm, pieces()):
            reply = await control.call("PUT", path, data=data)
            assert (reply.status, reply.code) == (413, "artifact_too_large")
        assert await keys(control) == set()


async def test_a_missing_object_is_stored_again(control: Control) -> None:
    sha256 = await control.upload(module("lost"))
    [row] = await rows(control, sha256)
    # A deletion of what isn't marked for it takes the object, and leaves the row.
    await control.services.deletions.delete(ArtifactKey(sha256, row["id"]))
    assert (await rows(control, sha256), await keys(control)) == ([row], set())
    await control.upload(module("lost"))
    assert await rows(control, sha256) == [row]
    await consistent(control)


async def test_a_deleted_version_takes_its_artifact_along(control: Control) -> None:
    await control.push("one", module("a"))
    await control.push("two", module("a"))
    sha256 = (await control.push("one", module("b")))["sha256"]
    await control.ok("DELETE", "/v1/functions/one/versions/2")
    await until(lambda: left(control, 1))
    assert await rows(control, sha256) == []
    # The other function still has these bytes.
    await control.ok("DELETE", "/v1/functions/one")
    assert len(await keys(control)) == 1
    await control.ok("DELETE", "/v1/functions/two")
    await until(lambda: left(control, 0))


async def test_uploads_race_deletions_of_the_same_bytes(control: Control) -> None:
    """Whatever the order, no version is without its object, and no object without its row."""
    wasm = module("contended")
    sha256 = hashlib.sha256(wasm).hexdigest()
    outcomes = set()

    async def push(number: int) -> None:
        while True:
            await control.ok("PUT", f"/v1/artifacts/{sha256}", data=wasm)
            reply = await control.call("POST", f"/v1/functions/f{number}/versions", {"sha256": sha256})
            outcomes.add(reply.status)
            if reply.status == 201:
                return
            assert reply.code == "unknown_artifact"  # deleted in between: once more

    async def churn(number: int) -> None:
        for _ in range(6):
            await push(number)
            await control.ok("DELETE", f"/v1/functions/f{number}")

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(churn(number))
    await push(9)
    # The last deletion, which was answered before, may still be under way beside it.
    await until(lambda: left(control, 1))
    await consistent(control)
    assert [row["state"] for row in await rows(control, sha256)] == ["ready"]
    await control.ok("DELETE", "/v1/functions/f9")
    await until(lambda: left(control, 0))


async def test_the_sweep_leaves_what_is_in_use_and_takes_the_rest(control: Control) -> None:
    kept = (await control.push("kept", module("kept")))["sha256"]
    unused = await control.upload(module("unused"))
    store, db = control.services.store, control.services.db
    half = hashlib.sha256(b"half").hexdigest()
    await db.transaction(
        lambda conn: conn.execute(
            artifacts.SQL["begin"],
            "00000000-0000-0000-0000-000000000001",
            half,
            1,
            "wagi",
            1,
            control.clock.now(),
        )
    )
    await store.put(f"{half}/00000000-0000-0000-0000-000000000001", io.BytesIO(b"half"))
    unknown = f"{half}/00000000-0000-0000-0000-000000000002"
    await store.put(unknown, io.BytesIO(b"half"))
    await store.put("somebody-elses", io.BytesIO(b"half"))
    await control.services.deletions.sweep()
    assert len(await keys(control)) == 5, "nothing is old enough"
    control.clock.advance(hours=1, minutes=2)
    await control.services.deletions.sweep()
    control.clock.advance(minutes=2)
    await control.services.deletions.sweep()
    [row] = await rows(control, kept)
    assert await keys(control) == {f"{kept}/{row['id']}", "somebody-elses", unknown}, "it is kept for days"
    control.clock.advance(days=6)
    await control.services.deletions.sweep()
    assert unknown in await keys(control)
    control.clock.advance(days=2)
    await control.services.deletions.sweep()
    assert await keys(control) == {f"{kept}/{row['id']}", "somebody-elses"}
    assert await rows(control, unused) == []
    assert await rows(control, half) == []


async def test_another_upload_of_unused_bytes_puts_the_sweep_off(control: Control) -> None:
    sha256 = await control.upload(module("again"))
    control.clock.advance(minutes=50)
    await control.upload(module("again"))
    control.clock.advance(minutes=50)
    await control.services.deletions.sweep()
    assert [row["state"] for row in await rows(control, sha256)] == ["ready"]


async def test_an_upload_that_was_given_up_is_not_made_ready(control: Control) -> None:
    """The sweep came between the object and the row's last step, as after a very long pause of this process."""
    wasm = module("slow")
    sha256 = hashlib.sha256(wasm).hexdigest()
    put = control.services.store.put

    async def slow(key: str, file: Any) -> None:
        await put(key, file)
        control.clock.advance(hours=2)
        await control.services.deletions.sweep()

    control.services.store.put = slow  # type: ignore[method-assign]
    reply = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm)
    assert (reply.status, reply.code) == (409, "upload_interrupted")
    control.services.store.put = put  # type: ignore[method-assign]
    await control.upload(wasm)
    control.clock.advance(hours=2)
    await consistent(control)


async def test_a_store_that_is_away_is_said_to_be(database_url: str, pki: Pki) -> None:
    async with running(database_url, "http://K:S@127.0.0.1:9/artifacts", pki) as control:
        wasm = module("a")
        reply = await control.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", data=wasm)
        assert (reply.status, reply.code) == (503, "store_unavailable")
        assert (await control.call("GET", "/readyz")).code == "not_ready"
        assert (await control.call("GET", "/healthz")).status == 200
        states = await control.services.db.read(lambda conn: conn.fetch("SELECT state FROM artifacts"))
        assert {row["state"] for row in states} <= {"deleting"}


async def test_a_presigned_url_is_kept_and_names_the_public_host(control: Control) -> None:
    sha256 = await control.upload(module("a"))
    [row] = await rows(control, sha256)
    first = await control.services.store.location(sha256, str(row["id"]))
    assert await control.services.store.location(sha256, str(row["id"])) == first
    async with control.session.get(first) as response:
        assert response.status == 200
        assert await response.read() == module("a")
    async with control.session.get(first.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601")) as response:
        assert response.status == 403


async def test_nodes_get_only_what_they_are_to_run(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with running(database_url, bucket_url, pki, artifacts_delivery="control") as control:
        wasm = module("theirs")
        node = await control.join("n1")
        version = await control.push("f", wasm)
        path = f"/v1/artifacts/{version['sha256']}"
        assert (await control.call("GET", path, token=node.credential)).code == "unknown_artifact"
        await control.release(functions={"f": 1})
        reply = await control.call("GET", path, token=node.credential)
        assert (reply.status, reply.body, reply.headers["content-type"]) == (200, wasm, "application/wasm")
        part = await control.call("GET", path, token=node.credential, headers={"range": "bytes=10-"})
        assert (part.status, part.body) == (206, wasm[10:])
        assert part.headers["content-range"] == f"bytes 10-{len(wasm) - 1}/{len(wasm)}"
        assert (await control.call("GET", path)).code == "credentials_invalid", "an operator is no node"


async def test_a_node_gets_nothing_by_saying_that_it_runs_it(control_site: Site) -> None:
    async with control_site.running(artifacts_delivery="control") as live:
        mine = await deploy.push(live, "f", module("mine"))
        theirs = await deploy.push(live, "g", module("theirs"))
        await deploy.ok(live, "POST", "/v1/groups", {"name": "apart"})
        await deploy.release(live, functions={"f": 1})
        await deploy.release(live, group="apart", functions={"g": 1})
        node = await live.join("n1")
        await node.sync()

        async def status(version: Any) -> int:
            return (await live.call("GET", f"/v1/artifacts/{version['sha256']}", token=node.credential)).status

        assert (await status(mine), await status(theirs)) == (200, 404)
        claimed = wire.RunningFunction("g", 1, theirs["sha256"], "0" * 64)
        node.inventory = msgspec.structs.replace(node.inventory, functions=[*node.inventory.functions, claimed])
        plan = await node.plan()
        assert [f["name"] for f in (await live.node("n1"))["functions"]] == ["f", "g"], "it is told what the node said"
        assert await status(theirs) == 404
        await node.report(plan.sync_id, "failed", error=wire.SyncError("x", "x"))
        assert await status(theirs) == 404
        # What was once planned for it, it gets, also when its target has it no more.
        await deploy.release(live, remove=["f"])
        assert await status(mine) == 200


async def test_the_url_of_a_redirect_is_the_stores(control: Control) -> None:
    wasm = module("theirs")
    node = await control.join("n1")
    version = await control.push("f", wasm)
    await control.release(functions={"f": 1})
    reply = await control.call("GET", f"/v1/artifacts/{version['sha256']}", token=node.credential)
    assert reply.status == 307
    async with control.session.get(reply.headers["location"]) as response:
        assert await response.read() == wasm


async def test_the_public_url_is_what_is_signed(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with running(database_url, bucket_url, pki, artifacts_public_url="https://store.example:9000") as control:
        url = await control.services.store.location("a", "b")
        assert url.startswith("https://store.example:9000/")


async def test_a_problem_of_the_store_is_none_of_the_works(control: Control) -> None:
    with pytest.raises(ProblemError, match="unknown_artifact"):
        await control.services.store.open("nothing/here")
    assert await control.services.store.head("nothing/here") is None
    await control.services.store.delete("nothing/here")


async def test_one_who_reads_slowly_leaves_places_to_others(control: Control) -> None:
    wasm = module("x" * 100_000)
    sha256 = await control.upload(wasm)
    id = await control.services.db.read(lambda conn: conn.fetchval("SELECT id FROM artifacts"))

    async def opened(who: str) -> AsyncGenerator[bytes]:
        ASKS.set(who)
        return (await control.services.store.open(object_key(sha256, str(id))))[1]

    slow = [asyncio.create_task(opened("slow")) for _ in range(DOWNLOADS + 1)]
    async with deadline(20):
        while sum(task.done() for task in slow) < DOWNLOADS_OF_ONE:
            await asyncio.sleep(0.01)
        pieces = await asyncio.create_task(opened("other"))
        assert b"".join([piece async for piece in pieces]) == wasm
        # As it reads on, it is served, too.
        for task in slow:
            await (await task).aclose()


async def test_uploads_of_one_operator_are_bounded_from_their_first_byte_on(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes are on a disk that all share."""
    monkeypatch.setattr(edge_check, "MOST_UPLOADS", 2)
    token, wasm, goes_on = await control.operator("anna", "push"), module("slow"), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield wasm[:10]
        await goes_on.wait()
        yield wasm[10:]

    async def put(data: Any, token: str | None) -> Any:
        return await control.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", data=data, token=token)

    async def under_way() -> bool:
        return control.services.checks.uploads.total() == 2

    slow = [asyncio.create_task(put(slowly(), token)) for _ in range(2)]
    await until(under_way)
    assert (await put(wasm, token)).code == "check_unavailable"
    assert (await put(wasm, None)).status == 201
    goes_on.set()
    assert [(await task).status for task in slow] == [200, 200]
    assert not control.services.checks.uploads
