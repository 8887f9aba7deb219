"""Downloads over real TLS: resumed, verified, refused, redirected, and what stays on disk."""

import hashlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from control.local.pki import Pki
from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import artifacts, control_client
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.control_client import ControlClient
from edge_runtime.sync.known_engines import HEAD, code_place
from tests.guests.build import guest
from tests.support.file_server import FileServer, file_server
from tests.support.snapshots import snapshot, with_sections

DATA = random.Random(1).randbytes(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
async def store(pki: Pki) -> AsyncIterator[FileServer]:
    async with file_server(pki) as server:
        server.files["/blob?sig=1"] = DATA
        yield server


@pytest.fixture
async def control(pki: Pki) -> AsyncIterator[FileServer]:
    """Stands for control's GET /v1/artifacts/{sha256}: only faults that the real one can't be made to have."""
    async with file_server(pki) as server:
        yield server


@pytest.fixture
async def session(control: FileServer, pki: Pki) -> AsyncIterator[ControlClient]:
    async with ControlClient(control.url, pki.ca, "skn_secret") as opened:
        yield opened


@pytest.fixture
def kept(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path, pause=0.01)


def planned(url: str, data: bytes = DATA, name: str = "hello") -> wire.PlannedFunction:
    return wire.PlannedFunction(name, 1, hashlib.sha256(data).hexdigest(), len(data), url, {}, "b" * 64)


def names(kept: Artifacts) -> list[str]:
    return sorted(file.name for file in kept.folder.iterdir())


async def test_an_artifact_is_fetched_verified_and_not_fetched_again(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    function = planned(f"{store.url}/blob?sig=1")
    await kept.fetch(session, [function, function], set())
    assert kept.path(SHA).read_bytes() == DATA
    assert names(kept) == [f"{SHA}.wasm"]
    await kept.fetch(session, [function], set())
    assert len(store.requests) == 1


async def test_a_download_goes_on_where_it_was_cut(store: FileServer, session: ControlClient, kept: Artifacts) -> None:
    store.cut_after = [200_000, 100_000, 1]
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA
    starts = [headers.get("range") for _, headers in store.requests]
    assert starts[0] is None
    assert all(s is not None and s.startswith("bytes=") for s in starts[1:])
    offsets = [int(s.removeprefix("bytes=").removesuffix("-")) for s in starts[1:] if s is not None]
    assert offsets == sorted(offsets)
    assert 0 < offsets[0] <= 200_000


async def test_a_slow_disk_loses_nothing_that_came(
    store: FileServer, session: ControlClient, kept: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is cut while the file is being opened."""
    store.cut_after = [100_000, 100_000]
    real = artifacts._begin

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(artifacts, "_begin", slow)
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA
    assert all("range" in headers for _, headers in store.requests[1:])


async def test_a_download_goes_on_after_a_kill_of_the_node(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    (kept.folder / f"{SHA}.part").write_bytes(DATA[:300_000])
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert store.requests[0][1]["range"] == "bytes=300000-"
    assert kept.path(SHA).read_bytes() == DATA


async def test_a_whole_part_that_only_lacks_its_name_is_not_fetched(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    (kept.folder / f"{SHA}.part").write_bytes(DATA)
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert not store.requests
    assert kept.path(SHA).read_bytes() == DATA


@pytest.mark.parametrize("part", [b"x" * 300_000, b"x" * len(DATA), b"x" * (len(DATA) + 5)])
async def test_a_part_with_other_bytes_is_thrown_away_and_the_whole_fetched(
    store: FileServer, session: ControlClient, kept: Artifacts, part: bytes
) -> None:
    (kept.folder / f"{SHA}.part").write_bytes(part)
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA


def with_code(draw: random.Random, code: bytes) -> bytes:
    """A snapshot with this code section."""
    module = with_sections(guest("snapshot_sum"), {10: code})
    return snapshot(module, 9, [(5000, draw.randbytes(300_000))])


CODE = random.Random(2).randbytes(200_000)
OLD, NEW = (with_code(random.Random(seed), CODE) for seed in (3, 4))
BEYOND = HEAD + 10_000
OTHER = with_code(random.Random(5), CODE[:BEYOND] + b"!" + CODE[BEYOND + 1 :])
"""Its code differs behind what is looked at."""
_, END = code_place(NEW[:HEAD]) or (0, 0)


@pytest.mark.parametrize(
    ("wasm", "trouble", "fetched"),
    [
        (NEW, "", HEAD + len(NEW) - END),
        (NEW, "no engine", len(NEW)),
        (NEW, "refused", len(NEW)),
        (NEW, "whole", None),
        (NEW, "damaged", HEAD + 2 * len(NEW) - END),
        (OTHER, "", HEAD + 2 * len(OTHER) - END),
        (with_code(random.Random(6), CODE[:-1]), "", len(NEW) - 1),
        (DATA, "", len(DATA)),
    ],
    ids=["known", "no engine", "refused", "no range", "damaged", "other code", "other size", "no module"],
)
async def test_the_code_of_an_engine_that_is_there_is_not_fetched(
    store: FileServer,
    session: ControlClient,
    kept: Artifacts,
    tmp_path: Path,
    wasm: bytes,
    trouble: str,
    fetched: int | None,
) -> None:
    code = with_sections(OLD, {11: None})
    engine = tmp_path / "aot" / f"{hashlib.sha256(code).hexdigest()}.engine"
    engine.parent.mkdir()
    engine.write_bytes(code if trouble != "damaged" else code[:-9] + bytes(9))
    if trouble == "no engine":
        engine.unlink()
    asked = []

    def once(request: web.Request) -> web.Response:
        asked.append(request)
        del store.answer["/new"]
        return web.Response(status=503)

    store.files["/new"] = wasm
    store.ignore_range = trouble == "whole"
    if trouble == "refused":
        store.answer["/new"] = once
    await kept.fetch(session, [planned(f"{store.url}/new", wasm)], set())
    assert kept.path(hashlib.sha256(wasm).hexdigest()).read_bytes() == wasm
    assert len(asked) == (trouble == "refused")
    if fetched is not None:
        assert store.sent == fetched


async def test_a_server_that_ignores_range_is_read_from_the_start(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    store.ignore_range = True
    store.cut_after = [200_000]
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA


@pytest.mark.parametrize(("status", "first"), [(206, 0), (200, 300_000)])
async def test_an_answer_that_is_not_the_part_asked_for_is_not_put_behind_what_is_there(
    store: FileServer, session: ControlClient, kept: Artifacts, status: int, first: int
) -> None:
    """Whatever such a server says, the whole is read from what it sends, or asked for, once."""
    (kept.folder / f"{SHA}.part").write_bytes(DATA[:300_000])
    told = {"Content-Range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"}
    store.answer["/blob?sig=1"] = lambda _: web.Response(body=DATA, status=status, headers=told)
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA
    assert len(store.requests) == 1


@pytest.mark.parametrize("wrong", [b"y" * len(DATA), DATA + b"z", DATA[:-1] + b"\0"])
async def test_other_bytes_are_refused_and_nothing_of_them_is_kept(
    store: FileServer, session: ControlClient, kept: Artifacts, wrong: bytes
) -> None:
    store.files["/blob?sig=1"] = wrong
    with pytest.raises(SyncFailed, match=f"not artifact {SHA}") as caught:
        await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert caught.value.code == "artifact_mismatch"
    assert names(kept) == []


async def test_too_short_an_artifact_fails_after_bounded_tries(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    store.files["/blob?sig=1"] = DATA[:-5]
    with pytest.raises(SyncFailed):
        await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert len(store.requests) <= 2 * artifacts.TRIES
    assert not kept.path(SHA).exists()


async def test_a_damaged_file_of_an_earlier_release_is_fetched_again(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    kept.path(SHA).write_bytes(DATA[:-1] + b"\0")
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
    assert kept.path(SHA).read_bytes() == DATA


async def test_a_stale_url_is_refreshed_by_control_and_the_credential_stays_with_control(
    store: FileServer, control: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    store.refuse["/blob?sig=old"] = 403
    control.redirect[f"/v1/artifacts/{SHA}"] = f"{store.url}/blob?sig=1"
    await kept.fetch(session, [planned(f"{store.url}/blob?sig=old")], set())
    assert kept.path(SHA).read_bytes() == DATA
    assert [path for path, _ in store.requests] == ["/blob?sig=old", "/blob?sig=1"]
    assert all("authorization" not in headers for _, headers in store.requests)
    assert [headers["authorization"] for _, headers in control.requests] == ["Bearer skn_secret"]


async def test_a_signature_in_a_url_arrives_byte_for_byte(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    path = "/a%20b/blob?X-Amz-Credential=key%2F20261124%2Fus-east-1&X-Amz-Signature=a%2Bb%3D&n=%7E"
    store.files[path] = DATA
    await kept.fetch(session, [planned(store.url + path)], set())
    assert [asked for asked, _ in store.requests] == [path]


async def test_bytes_through_control_come_with_the_credential(
    control: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    control.files[f"/v1/artifacts/{SHA}"] = DATA
    control.cut_after = [100_000]
    await kept.fetch(session, [planned(f"/v1/artifacts/{SHA}")], set())
    assert kept.path(SHA).read_bytes() == DATA
    assert {headers["authorization"] for _, headers in control.requests} == {"Bearer skn_secret"}


async def test_an_artifact_that_nobody_has_fails_with_what_was_answered(
    store: FileServer, control: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    with pytest.raises(SyncFailed, match=r"function hello can't be fetched: .*404") as caught:
        await kept.fetch(session, [planned(f"{store.url}/gone")], set())
    assert caught.value.code == "artifact_refused"
    assert control.requests


async def test_a_store_that_is_not_trusted_gets_no_byte_through(
    session: ControlClient, kept: Artifacts, tmp_path: Path
) -> None:
    from control.local.pki import ensure

    async with file_server(ensure(tmp_path / "other")) as stranger:
        stranger.files["/blob"] = DATA
        with pytest.raises(SyncFailed, match="not trusted") as caught:
            await kept.fetch(session, [planned(f"{stranger.url}/blob")], set())
    assert caught.value.code == "artifact_unreachable"
    assert not stranger.requests


async def test_plain_http_is_followed_on_this_machine_alone(session: ControlClient, kept: Artifacts) -> None:
    async with file_server(None) as plain:
        plain.files["/blob"] = DATA
        await kept.fetch(session, [planned(f"{plain.url}/blob")], set())
    assert kept.path(SHA).exists()
    other = b"other"
    with pytest.raises(SyncFailed, match="only https") as caught:
        await kept.fetch(session, [planned("http://store.example.org/x?X-Amz-Signature=secret", other)], set())
    assert caught.value.code == "artifact_url_refused"
    assert "secret" not in caught.value.message


async def test_several_are_fetched_at_once_and_one_failure_fails_all(
    store: FileServer, session: ControlClient, kept: Artifacts
) -> None:
    blobs = [f"blob {n}".encode() * 1000 for n in range(12)]
    for n, blob in enumerate(blobs):
        store.files[f"/{n}"] = blob
    # Long enough that the second question comes before the first answer.
    store.slow = 0.4
    functions = [planned(f"{store.url}/{n}", blob, f"f{n}") for n, blob in enumerate(blobs)]
    await kept.fetch(session, functions, set())
    assert len(names(kept)) == 12
    assert 1 < store.most <= artifacts.PARALLEL

    missing = planned(f"{store.url}/none", b"missing", "missing")
    with pytest.raises(SyncFailed, match="function missing"):
        await kept.fetch(session, [*functions, missing], set())


async def test_a_full_disk_is_seen_before_the_first_byte(
    store: FileServer, session: ControlClient, kept: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts.os, "statvfs", lambda _: SimpleNamespace(f_bavail=4096, f_frsize=4096))
    for _ in range(3):
        with pytest.raises(SyncFailed) as caught:
            await kept.fetch(session, [planned(f"{store.url}/blob?sig=1")], set())
        assert caught.value.code == "disk_full"
    assert not store.requests


async def test_what_serves_already_is_neither_read_nor_fetched(session: ControlClient, kept: Artifacts) -> None:
    kept.path(SHA).write_bytes(b"the serving process checked it")
    await kept.fetch(session, [planned("https://127.0.0.1:1/none")], {SHA})


def test_collecting_keeps_what_it_is_told_to_keep(kept: Artifacts) -> None:
    ours, old, part = "1" * 64, "2" * 64, "3" * 64
    for name in (f"{ours}.wasm", f"{old}.wasm", f"{part}.part", f"{ours}.part"):
        (kept.folder / name).write_bytes(b"x")
    kept.collect({ours})
    assert names(kept) == [f"{ours}.part", f"{ours}.wasm"]


async def test_a_name_that_does_not_resolve_is_said_to_be_that(pki: Pki) -> None:
    async with ControlClient("https://no-such-host.invalid:1", pki.ca, "x") as session:
        with pytest.raises(control_client.NoAnswer) as caught:
            await session.rotate()
    assert caught.value.code == "name_unknown"
