"""Where a node may put files of its backup: under its own prefix, in the history that goes on, and once each."""

import base64
import hashlib
import io
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import aiohttp
import pytest
from yarl import URL

from control.backups import grants, objects
from control.problems import ProblemError
from tests.support.deploy import ok
from tests.support.replica import Answered, Replica, Site, TestNode

FIRST = f"0/{1:016x}-{1:016x}.ltx"
SECOND = f"0/{2:016x}-{2:016x}.ltx"
SNAPSHOT = f"9/{1:016x}-{2:016x}.ltx"
ONLY_NEW = {"If-None-Match": "*"}
UPLOADS = "/v1/nodes/self/backup/uploads"
MD5_OF_ROWS, MD5_OF_OTHERS = (
    base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode() for data in (b"rows", b"others")
)


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
        yield replica


async def ask(node: TestNode, lineage: str, *names: str) -> Answered:
    wanted = {"lineage": lineage, "names": names}
    return await node.replica.call("POST", UPLOADS, wanted, token=node.credential)


async def urls(node: TestNode, lineage: str, *names: str) -> list[str]:
    answer = await ask(node, lineage, *names)
    assert answer.status == 200, answer
    assert answer.json()["seconds"] == 3600.0
    return answer.json()["urls"]  # type: ignore[no-any-return]


async def put(url: str, body: bytes, headers: dict[str, str]) -> int:
    where = URL(url, encoded=True)
    async with aiohttp.ClientSession() as session, session.put(where, data=body, headers=headers) as answer:
        return answer.status


async def state(node: TestNode, lineage: str, name: str) -> Answered:
    return await node.replica.call("GET", f"{UPLOADS}/{lineage}/{name}", token=node.credential)


async def test_a_file_is_put_once_and_only_where_it_was_signed_for(replica: Replica) -> None:
    node, lineage = await replica.join("shop-1"), uuid4().hex
    first, snapshot = await urls(node, lineage, FIRST, SNAPSHOT)
    for url, name in ((first, FIRST), (snapshot, SNAPSHOT)):
        key = f"backups/{node.id}/{lineage}/ltx/{name}"
        assert unquote(urlsplit(url).path).endswith(f"/{key}")
    assert (await state(node, lineage, FIRST)).json()["code"] == "unknown_backup_file"
    assert await put(first, b"rows", {}) == 403  # without the condition that was signed
    other = (await replica.join("shop-2")).id
    assert await put(first.replace(node.id, other), b"rows", ONLY_NEW) == 403
    assert await put(first.replace(lineage, uuid4().hex), b"rows", ONLY_NEW) == 403
    assert await put(first, b"rows", ONLY_NEW) == 200
    assert await put(first, b"others", ONLY_NEW) == 412
    md5 = hashlib.md5(b"rows", usedforsecurity=False).hexdigest()
    assert (await state(node, lineage, FIRST)).json() == {"size": 4, "md5": md5}


async def test_a_hostile_node_gets_no_url_elsewhere(replica: Replica) -> None:
    node, other, lineage = await replica.join("bad"), await replica.join("good"), uuid4().hex
    wrong = [
        *("", "/", "..", "0", "0/", "0/x.ltx", f"/{FIRST}", f"{FIRST}/", f"{FIRST}\n", f"0/{FIRST}", f"00{FIRST[1:]}"),
        f"../{other.id}/{lineage}/ltx/{FIRST}",
        f"0/../../../../{other.id}/{lineage}/ltx/{FIRST}",
        FIRST.replace("/", "%2f"),
        f"1/{FIRST[2:]}",  # control merges
        f"2/{FIRST[2:]}",
        f"9/{2:016x}-{2:016x}.ltx",  # a snapshot begins with 1
        f"0/{2:016x}-{1:016x}.ltx",
        f"0/{0:016x}-{1:016x}.ltx",
        f"0/{1:016x}-{10:016X}.ltx",
        f"0/{1:016x}-{1:016x}.LTX",
    ]
    for name in wrong:
        answer = await ask(node, lineage, FIRST, name)
        assert (answer.status, answer.json()["code"]) == (422, "invalid_body"), (name, answer)
    for bad in ("", "..", lineage[:-1], lineage.upper() if lineage.upper() != lineage else "A" * 32, f"{lineage}\n"):
        assert (await ask(node, bad, FIRST)).status == 422, bad
    assert (await ask(node, lineage)).status == 422
    assert (await ask(node, lineage, *[FIRST] * 65)).status == 422
    # Nothing of that began a history.
    found = await replica.services.db.read(lambda conn: conn.fetchval(grants.ENDED, node.id, lineage))
    assert found is None


async def test_a_new_history_ends_the_one_before_it(replica: Replica) -> None:
    node, twin = await replica.join("shop-1"), await replica.join("shop-2")
    old, new = uuid4().hex, uuid4().hex
    await urls(node, old, FIRST)
    await urls(twin, old, FIRST)  # another node's, whatever its id
    await urls(node, new, FIRST)
    answer = await ask(node, old, SECOND)
    assert (answer.status, answer.json()["code"]) == (409, "backup_ended")
    await urls(node, new, SECOND)
    await urls(twin, old, SECOND)


async def test_a_disk_that_was_replaced_just_now_ends_no_history(replica: Replica) -> None:
    """This replica hasn't heard yet that its credential was revoked."""
    node, lineage = await replica.join("shop-1"), uuid4().hex
    await urls(node, lineage, FIRST)
    revoke = "UPDATE credentials SET revoked_at = now() WHERE node_id = $1::text::uuid"
    await replica.services.db.transaction(lambda conn: conn.execute(revoke, node.id))
    assert (await ask(node, uuid4().hex, FIRST)).status == 401
    ended = await replica.services.db.read(lambda conn: conn.fetchval(grants.ENDED, node.id, lineage))
    assert ended is False


async def test_nothing_without_a_backup_of_the_group(replica: Replica) -> None:
    node = await replica.join("shop-1")
    await ok(replica, "DELETE", "/v1/groups/default/backup")
    answer = await ask(node, uuid4().hex, FIRST)
    assert (answer.status, answer.json()["code"]) == (409, "backup_off")


async def test_a_node_gets_so_many_an_hour_only(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "FILES", 3)
    monkeypatch.setattr(grants, "LINEAGES", 2)
    limits = replica.services.grants
    node, other = str(uuid4()), str(uuid4())
    limits.count(node, 2)
    with pytest.raises(ProblemError, match="3 files of a backup an hour") as refused:
        limits.count(node, 2)
    assert refused.value.code == "too_many_acts"
    assert refused.value.retry_after in (1200, 1201)
    limits.count(other, 3)
    joined = await replica.join("shop-1")
    for _ in range(2):
        await limits.check(joined.id, uuid4().hex)
    with pytest.raises(ProblemError, match="2 histories of its database an hour"):
        await limits.check(joined.id, uuid4().hex)


async def test_a_private_store_gets_files_through_control(control_site: Site) -> None:
    async with control_site.running(artifacts_delivery="control") as replica:
        await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
        node, lineage = await replica.join("shop-1"), uuid4().hex
        (where,) = await urls(node, lineage, FIRST)
        assert where == f"{UPLOADS}/{lineage}/{FIRST}"

        async def send(path: str, body: bytes) -> Any:
            answer = await replica.call("PUT", path, body, token=node.credential)
            return answer.status, answer.json()["code"] if answer.body else ""

        assert await send(where, b"rows") == (201, "")
        assert await send(where, b"others") == (412, "backup_file_exists")
        found = await replica.services.store.read(objects.key(node.id, lineage, grants.file_of(FIRST, "file")))
        assert found is not None
        assert found.data == b"rows"
        assert (await state(node, lineage, FIRST)).json()["size"] == 4
        for md5, told in ((MD5_OF_ROWS[::-1], "invalid_parameter"), (MD5_OF_OTHERS, "store_unavailable")):
            headers = {"authorization": f"Bearer {node.credential}", "content-md5": md5}
            url = f"{replica.url}{UPLOADS}/{lineage}/{SECOND}"
            async with replica.session.put(url, data=io.BytesIO(b"rows"), headers=headers) as answer:
                assert (await answer.json(content_type=None))["code"] == told
            assert (await state(node, lineage, SECOND)).status == 404
        assert await send(f"{UPLOADS}/{lineage}/1/{FIRST[2:]}", b"x") == (422, "invalid_parameter")
        await urls(node, uuid4().hex, FIRST)
        assert await send(f"{UPLOADS}/{lineage}/{SECOND}", b"x") == (409, "backup_ended")
        await ok(replica, "DELETE", "/v1/groups/default/backup")
        assert await send(f"{UPLOADS}/{lineage}/{SECOND}", b"x") == (409, "backup_off")
