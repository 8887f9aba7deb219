"""Backups' objects at a real store: presigned PUTs that write nothing over, listings, the sweep that leaves them."""

import hashlib
import io

import aiohttp
import pytest
from yarl import URL

from control.backups import objects
from control.backups.objects import BackupFile
from control.storage.object_store import WriteConflict, object_key
from tests.support.control import Control, module

NODE, LINEAGE = "01234567-89ab-4def-8123-456789abcdef", "0123456789abcdef" * 2
KEY = objects.key(NODE, LINEAGE, BackupFile(0, 2, 3))


async def put(url: str, data: bytes, **headers: str) -> int:
    async with aiohttp.ClientSession() as http, http.put(URL(url, encoded=True), data=data, headers=headers) as answer:
        return answer.status


async def test_a_presigned_put_writes_its_own_key_once(control: Control) -> None:
    store = control.services.store
    url = await store.upload_url(KEY, 60)
    only = {"If-None-Match": "*"}
    assert await put(url, b"without the header") == 403
    assert await put(url.replace("000003.ltx", "000004.ltx"), b"another key", **only) == 403
    assert await put(url.replace(NODE, "f" + NODE[1:]), b"another node", **only) == 403
    assert await store.beginning(KEY, 100) is None
    assert await put(url, b"the shipment", **only) == 200
    assert await put(url, b"another disk's", **only) == 412
    assert await put(url, b"another disk's") == 403
    assert await put(await store.upload_url(KEY, 60), b"another disk's", **only) == 412
    assert await store.beginning(KEY, 100) == b"the shipment"
    assert await store.beginning(KEY, 3) == b"the"
    async with aiohttp.ClientSession() as http:
        found = await http.get(URL(await store.download_url(KEY, 60), encoded=True))
        assert await found.read() == b"the shipment"


async def test_what_is_put_anew_replaces_nothing(control: Control) -> None:
    store = control.services.store
    await store.put_new(KEY, io.BytesIO(b"first"))
    with pytest.raises(WriteConflict):
        await store.put_new(KEY, io.BytesIO(b"second"))
    assert await store.beginning(KEY, 100) == b"first"
    empty = objects.key(NODE, LINEAGE, BackupFile(0, 4, 4))
    await store.put_new(empty, io.BytesIO(b""))
    assert await store.beginning(empty, 100) == b""


async def test_a_lineage_is_listed_alone_with_sizes(control: Control) -> None:
    store = control.services.store
    # More than a page of a listing has.
    expected = [BackupFile(0, at, at, at % 3) for at in range(2, 1105)]
    for file in expected:
        await store.put_new(objects.key(NODE, LINEAGE, file), io.BytesIO(b"x" * file.size))
    for other in (objects.key(NODE, "f" * 32, expected[0]), objects.key("f" + NODE[1:], LINEAGE, expected[0])):
        await store.put_new(other, io.BytesIO(b"other"))
    pages = [page async for page in store.under(objects.prefix(NODE, LINEAGE))]
    assert len(pages) == 2
    listed = [(item.key, item.size) for page in pages for item in page]
    assert objects.files_of(listed, NODE, LINEAGE) == expected
    assert len([item async for page in store.under(objects.prefix(NODE)) for item in page]) == len(expected) + 1

    # Artifacts with keys on both sides of backups' are listed, in two requests.
    around = [object_key(first + "a" * 63, NODE) for first in "af"]
    for key in around:
        await store.put(key, io.BytesIO(b"artifact"))
    seen = 0

    def count(**_: object) -> None:
        nonlocal seen
        seen += 1

    store._client.meta.events.register("before-send.s3.ListObjectsV2", count)
    assert [item.key async for page in store.objects() for item in page] == around
    assert seen == 2


async def test_the_sweep_of_artifacts_leaves_backups_alone(control: Control) -> None:
    services = control.services
    await control.upload(module("1"))
    orphan = object_key(hashlib.sha256(b"").hexdigest(), NODE)
    names = [KEY, f"backups/{orphan}", "backups/stray"]
    for key in [*names, orphan]:
        await services.store.put(key, io.BytesIO(b""))
    # The first sweep notices what no row knows, and one that is late enough deletes it.
    for hours in (2, 24 * 9):
        control.clock.advance(hours=hours)
        await services.deletions.sweep()
    assert await services.store.head(orphan) is None
    assert [await services.store.head(key) for key in names] == [0, 0, 0]
