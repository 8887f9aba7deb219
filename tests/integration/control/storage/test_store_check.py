"""The bucket lost objects, or has damaged ones: verify finds them, and pushing the same bytes again mends them."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import orjson
import pytest

from control.api import artifact_store
from control.cli.main import run as cli
from control.local.pki import Pki
from control.local.seaweedfs import s3_client
from control.storage import owner_mark
from control.storage.object_store import Store, StoredObject, object_key
from control.storage.owner_mark import OwnerMark
from tests.support.control import Control, module, until

WASM = {"content-type": "application/wasm"}


class Bucket:
    """The bucket behind control's back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = url.rpartition("/")[2]

    async def key_of(self, wasm: bytes) -> str:
        async with s3_client(self._url) as client:
            listed = await client.list_objects_v2(Bucket=self._name, Prefix=hashlib.sha256(wasm).hexdigest())
            [item] = listed["Contents"]
            return str(item["Key"])

    async def put(self, key: str, body: bytes) -> None:
        async with s3_client(self._url) as client:
            await client.put_object(Bucket=self._name, Key=key, Body=body)

    async def delete(self, key: str) -> None:
        async with s3_client(self._url) as client:
            await client.delete_object(Bucket=self._name, Key=key)

    async def keys(self) -> set[str]:
        """The keys of all objects but control's own."""
        async with s3_client(self._url) as client:
            listed = await client.list_objects_v2(Bucket=self._name)
            return {i["Key"] for i in listed.get("Contents", ()) if not i["Key"].startswith(owner_mark.PREFIX)}

    async def get(self, key: str) -> bytes:
        async with s3_client(self._url) as client:
            answer = await client.get_object(Bucket=self._name, Key=key)
            async with answer["Body"] as body:
                return bytes(await body.read())


@pytest.fixture
def bucket(bucket_url: str) -> Bucket:
    return Bucket(bucket_url)


@pytest.fixture
def skerry(control: Control, pki: Pki, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; returns its exit code, its JSON, and what it said of an error."""
    monkeypatch.setenv("SKERRY_URL", control.url)
    monkeypatch.setenv("SKERRY_TOKEN", control.token)
    monkeypatch.setenv("SKERRY_CA", str(pki.ca))

    async def run(*arguments: str) -> tuple[int, Any, Any]:
        code = await asyncio.to_thread(cli, [*arguments, "--json"])
        said = capsys.readouterr()
        return code, orjson.loads(said.out) if said.out else None, said.err

    return run


@pytest.mark.parametrize("damage", ["missing", "wrong_size", "wrong_bytes"])
async def test_the_same_bytes_pushed_again_mend_the_bucket(
    control: Control, bucket: Bucket, skerry: Any, tmp_path: Path, damage: str
) -> None:
    wasm = module("lost")
    file = tmp_path / "f.wasm"
    file.write_bytes(wasm)
    assert (await skerry("function", "push", "f", str(file), "--no-release"))[0] == 0
    key = await bucket.key_of(wasm)
    if damage == "missing":
        await bucket.delete(key)
    else:
        await bucket.put(key, wasm[:-1] if damage == "wrong_size" else wasm[:-1] + b"?")
    sha256 = hashlib.sha256(wasm).hexdigest()
    assert (await control.call("HEAD", f"/v1/artifacts/{sha256}")).status == 404
    assert (await skerry("function", "push", "f", str(file), "--no-release"))[0] == 0
    assert await bucket.get(key) == wasm
    [entry] = await control.items("/v1/audit?action=artifact.restore")
    assert (entry["target"], entry["details"]["fault"]) == (sha256, damage)
    assert (await control.call("HEAD", f"/v1/artifacts/{sha256}")).status == 200


async def test_a_bucket_that_became_anothers_is_not_mended(control: Control, bucket: Bucket) -> None:
    wasm = module("lost")
    sha256 = await control.upload(wasm)
    key = await bucket.key_of(wasm)
    await bucket.delete(key)
    await bucket.put(owner_mark.KEY, owner_mark.encode("a key", OwnerMark(str(uuid4()), 1, str(uuid4()))))
    refused = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm, headers=WASM)
    assert (refused.status, refused.code) == (503, "store_not_owned")
    assert key not in await bucket.keys()


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "deleted-and-uploaded-again"])
async def test_an_artifact_deleted_while_it_is_mended_is_stored_anew(
    control: Control, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    wasm = module("lost")
    sha256 = await control.upload(wasm)
    key = await bucket.key_of(wasm)
    await bucket.delete(key)
    put = Store.put

    async def and_lose_its_row(store: Store, stored: str, file: BinaryIO) -> None:
        """The deletion ends before control notes that the object is there again."""
        await put(store, stored, file)
        if stored == key:
            await control.services.db.transaction(lambda conn: conn.execute("DELETE FROM artifacts"))
            if again:
                assert (await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm, headers=WASM)).status == 201

    monkeypatch.setattr(Store, "put", and_lose_its_row)
    answer = await control.call("PUT", f"/v1/artifacts/{sha256}", data=wasm, headers=WASM)
    assert answer.status == (200 if again else 201)
    rows = await control.services.db.read(lambda conn: conn.fetch("SELECT id::text AS id FROM artifacts"))

    async def has_what_the_metadata_have() -> bool:
        ready = await control.services.db.read(
            lambda conn: conn.fetch("SELECT id::text AS id FROM artifacts WHERE state = 'ready'")
        )
        return await bucket.keys() == {object_key(sha256, row["id"]) for row in ready}

    assert rows
    await until(has_what_the_metadata_have)
    assert key not in await bucket.keys()
    assert (await control.call("HEAD", f"/v1/artifacts/{sha256}")).status == 200
    assert await control.items("/v1/audit?action=artifact.restore") == []


async def test_verify_finds_what_is_lost_and_repairs_it_from_a_folder(
    control: Control, bucket: Bucket, skerry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pages in both directions.
    monkeypatch.setattr(artifact_store, "PAGE", 2)
    page = Store.page

    async def of_two(store: Store, after: str) -> tuple[list[StoredObject], str | None]:
        """As the store answers whose pages have two objects."""
        found, last = await page(store, after)
        return (found[:2], found[1].key) if len(found) > 2 else (found, last)

    monkeypatch.setattr(Store, "page", of_two)
    modules = [module(f"m{n}") for n in range(5)]
    for n, wasm in enumerate(modules):
        await control.push(f"f{n}", wasm)
    code, found, _ = await skerry("artifacts", "verify")
    assert (code, found["artifacts"], found["bytes"]) == (0, 5, sum(map(len, modules)))
    assert (found["faults"], found["unknown"]) == ([], 0)

    keys = [await bucket.key_of(wasm) for wasm in modules]
    await bucket.delete(keys[0])
    await bucket.put(keys[1], modules[1] + b"more")
    await bucket.put(keys[2], modules[2][:-1] + b"?")
    stray = f"{'0' * 64}/00000000-0000-0000-0000-000000000001"
    await bucket.put(stray, b"stray")
    await bucket.put("of-somebody-else", b"x")
    await control.services.ownership.confirm()  # it has the uploads' last steps
    before = await bucket.get(owner_mark.KEY)

    code, found, said = await skerry("artifacts", "verify")
    assert code == 1
    assert orjson.loads(said)["error"]["code"] == "artifacts_lost"
    faults = {fault["sha256"]: (fault["fault"], fault["versions"]) for fault in found["faults"]}
    names = [hashlib.sha256(wasm).hexdigest() for wasm in modules]
    assert faults == {
        names[0]: ("missing", ["f0@1"]),
        names[1]: ("wrong_size", ["f1@1"]),
        names[2]: ("wrong_bytes", ["f2@1"]),
    }
    assert {item["key"] for item in found["unknown_objects"]} == {stray, "of-somebody-else"}
    code, found, _ = await skerry("artifacts", "verify", "--quick")
    assert {fault["sha256"] for fault in found["faults"]} == set(names[:2]), "sizes alone are compared"

    # One file isn't there yet; the others have any names, in any folders.
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "any.name").write_bytes(modules[0])
    (tmp_path / "b").write_bytes(modules[1])
    (tmp_path / "other.wasm").write_bytes(modules[2][:-1] + b"!")
    code, found, said = await skerry("artifacts", "verify", "--repair", str(tmp_path))
    assert code == 1
    assert set(found["repaired"]) == set(names[:2])
    (tmp_path / "c").write_bytes(modules[2])
    code, found, said = await skerry("artifacts", "verify", "--repair", str(tmp_path))
    assert (code, found["repaired"]) == (0, [names[2]])
    assert (await skerry("artifacts", "verify"))[0] == 0
    assert [await bucket.get(key) for key in keys] == modules
    assert await bucket.get(stray) == b"stray", "verify deletes nothing"
    assert await bucket.get(owner_mark.KEY) == before
    entries = await control.items("/v1/audit?action=artifact.restore")
    assert {entry["target"] for entry in entries} == set(names[:3])


async def test_what_is_being_deleted_is_no_fault(control: Control, bucket: Bucket, skerry: Any) -> None:
    wasm = module("gone")
    await control.push("f", wasm)
    await bucket.delete(await bucket.key_of(wasm))
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE artifacts SET state = 'deleting', state_since = now()")
    )
    code, found, _ = await skerry("artifacts", "verify")
    assert (code, found["artifacts"], found["faults"]) == (0, 0, [])


async def test_what_is_deleted_while_it_is_looked_at_is_no_fault(
    control: Control, bucket: Bucket, skerry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm = module("gone")
    await control.push("f", wasm)
    await bucket.delete(await bucket.key_of(wasm))
    head = Store.head

    async def and_begin_its_deletion(store: Store, key: str) -> int | None:
        found = await head(store, key)
        await control.services.db.transaction(
            lambda conn: conn.execute("UPDATE artifacts SET state = 'deleting', state_since = now()")
        )
        return found

    monkeypatch.setattr(Store, "head", and_begin_its_deletion)
    code, found, _ = await skerry("artifacts", "verify")
    assert (code, found["artifacts"], found["faults"]) == (0, 1, [])


async def test_a_page_that_takes_long_ends_early_and_the_next_goes_on(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_store, "SECONDS", 0.0)
    for n in range(3):
        await control.push(f"f{n}", module(str(n)))
    looked, path = [], "/v1/artifact-store/check"
    page = await control.ok("GET", path)
    while page["next"] is not None:
        looked.append(page["looked"])
        page = await control.ok("GET", f"{path}?after={page['next']}")
    assert [*looked, page["looked"]] == [1, 1, 1]
