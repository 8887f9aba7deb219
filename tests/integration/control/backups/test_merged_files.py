"""What control merges and sweeps at a real store: after each kill, and by Litestream's judgement."""

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.block
import pytest

from control.backups import merging, objects, retention
from control.backups.builder import Builder
from control.backups.chain import restorable
from control.backups.merging import Merger
from control.backups.objects import MERGED, BackupFile
from control.problems import ProblemError
from control.protocol import ltx
from control.storage.object_store import Store
from tests.support.backup_files import BEGUN_MS, EVERY_MS, history, states
from tests.support.control import Control

LITESTREAM = Path(sys.executable).with_name("litestream")
NODE, LINEAGE = "01234567-89ab-4def-8123-456789abcdef", "0123456789abcdef" * 2
MOST = 64 * 1024 * 1024
COUNT = 12
CUTS = {4, 9}


class Killed(Exception):
    """Control ends here."""


class Kills:
    """Has the store end control before or after its steps, each of which puts or deletes a file."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch) -> None:
        self.left = -1
        """Steps until it ends control; less than 0 for never."""
        for name in ("put_new", "delete"):
            patch.setattr(store, name, self._counted(getattr(store, name)))

    def _counted(self, real: Any) -> Any:
        async def step(*given: Any) -> None:
            if self.left == 0:
                raise Killed
            self.left -= 1
            await real(*given)

        return step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return states(tmp_path_factory.mktemp("source"), COUNT)


@pytest.fixture
def store(control: Control) -> Store:
    return control.services.store


@pytest.fixture
def builder(store: Store, tmp_path: Path) -> Iterator[Builder]:
    (tmp_path / "spool").mkdir()
    yield Builder(store, tmp_path / "spool", MOST, 300.0)
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.fixture
async def merger(control: Control, store: Store, builder: Builder, tmp_path: Path) -> Merger:
    await control.services.ownership.confirm()
    return Merger(store, builder, control.services.ownership, tmp_path / "spool")


async def ship(store: Store, files: dict[BackupFile, bytes]) -> None:
    for file, data in files.items():
        await store.put_new(objects.key(NODE, LINEAGE, file), io.BytesIO(data))


async def replace(store: Store, files: dict[BackupFile, bytes]) -> None:
    """Have the store have these files, and no others."""
    async for page in store.under(objects.prefix(NODE, LINEAGE)):
        for item in page:
            await store.delete(item.key)
    await ship(store, files)


def shipments(files: Any) -> list[BackupFile]:
    return sorted(file for file in files if file.level == 0)


async def restored(store: Store, folder: Path, to: int) -> bytes:
    """What Litestream makes of what the store has, of a transaction."""
    replica = folder / "replica"
    async for page in store.under(objects.prefix(NODE, LINEAGE)):
        for item in page:
            path = replica / item.key.partition(f"{LINEAGE}/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            _answer, pieces = await store.open(item.key)
            path.write_bytes(b"".join([piece async for piece in pieces]))
    out = folder / f"{to}.db"
    out.unlink(missing_ok=True)
    asked: list[str | Path] = [LITESTREAM, "restore", "-txid", f"{to:016x}", "-o", out, f"file://{replica}"]
    ran = await asyncio.to_thread(lambda: subprocess.run(asked, capture_output=True, text=True))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    subprocess.run(["rm", "-r", replica], check=True)
    return out.read_bytes()


def recompressed(data: bytes) -> bytes:
    """The same file, as another version of the compression makes it: without compressing anything."""
    reader = ltx.Reader(io.BytesIO(data))
    pages, out = list(reader.pages()), io.BytesIO()
    plain = lz4.block.compress
    lz4.block.compress = lambda page, store_size: plain(page, mode="fast", acceleration=65_000, store_size=False)
    try:
        ltx.write(out, reader.header, pages)
    finally:
        lz4.block.compress = plain
    assert out.getvalue() != data
    return out.getvalue()


async def read(store: Store, file: BackupFile) -> bytes:
    found = await store.read(objects.key(NODE, LINEAGE, file), MOST)
    assert found is not None
    return found.data


async def test_litestream_restores_each_boundary_and_minute_of_what_was_merged_and_swept(
    store: Store, merger: Merger, builder: Builder, made: list[bytes], tmp_path: Path
) -> None:
    files = history(made)
    await ship(store, files)
    count = await merger.merge(NODE, LINEAGE, shipments(files), CUTS)
    minutes = [(BEGUN_MS + number * EVERY_MS) // 60_000 for number in range(COUNT + 1)]
    ends = {at for at in range(2, COUNT + 1) if at in CUTS or at == COUNT or minutes[at] != minutes[at + 1]}
    after = await builder.files(NODE, LINEAGE)
    assert {file.last for file in restorable(after)} == {1, *ends}
    assert count == sum(file.level == MERGED for file in after) >= 4
    for to in sorted(ends):
        assert await restored(store, tmp_path, to) == made[to - 1], to
    async with builder.built(NODE, LINEAGE, 9) as built:
        assert (built.at_ms, built.findings) == (BEGUN_MS + 9 * EVERY_MS, [])
        snapshot = await merger.snapshot(NODE, LINEAGE, built.path.parent, 9)
    assert snapshot is not None
    after = await builder.files(NODE, LINEAGE)
    assert snapshot in after
    old = retention.unneeded(after, snapshot)
    await merger.sweep(NODE, LINEAGE, snapshot, old)
    left = await builder.files(NODE, LINEAGE)
    assert {file.last for file in restorable(left)} == {at for at in ends if at >= 9}
    for to in sorted(at for at in ends if at >= 9):
        assert await restored(store, tmp_path, to) == made[to - 1], to
        async with builder.built(NODE, LINEAGE, to) as built:
            assert built.path.read_bytes() == made[to - 1]


async def test_a_file_that_was_put_alone_and_with_those_after_it_breaks_no_chain(
    store: Store, merger: Merger, builder: Builder, made: list[bytes], tmp_path: Path
) -> None:
    """A node whose upload had no answer merges it with what it writes until the store is there again."""
    files = history(made)
    alone = next(file for file in files if file.first == 4)
    together = [data for file, data in files.items() if 4 <= file.first <= 7]
    out = io.BytesIO()
    size = ltx.merge([ltx.Reader(io.BytesIO(data)) for data in together], out)
    kept = {file: data for file, data in files.items() if not 5 <= file.first <= 7}
    await replace(store, {file: data for file, data in kept.items() if file.first <= 4})
    # While the node was away, that file was the last one: it became a part of a minute, and was proven.
    await merger.merge(NODE, LINEAGE, shipments(file for file in kept if file.first <= 4), ())
    assert alone not in await builder.files(NODE, LINEAGE)
    async with builder.built(NODE, LINEAGE) as built:
        assert await merger.snapshot(NODE, LINEAGE, built.path.parent, 4) is not None
    await ship(store, {BackupFile(0, 4, 7, size): out.getvalue()})
    await ship(store, {file: data for file, data in kept.items() if file.first > 7})
    for _ in range(2):
        there = await builder.files(NODE, LINEAGE)
        for to in (4, 7, COUNT):
            async with builder.built(NODE, LINEAGE, to) as built:
                assert built.path.read_bytes() == made[to - 1], to
            assert await restored(store, tmp_path, to) == made[to - 1], to
        await merger.merge(NODE, LINEAGE, shipments(there), {4, 7})
    await store.delete(objects.key(NODE, LINEAGE, BackupFile(9, 1, 4)))
    async with builder.built(NODE, LINEAGE) as built:
        assert built.path.read_bytes() == made[-1]
    assert await restored(store, tmp_path, COUNT) == made[-1]


async def test_no_kill_loses_a_state(
    store: Store, merger: Merger, builder: Builder, made: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each step; and what the next pass makes of it is what would have come without the kill."""
    files = history(made)
    await replace(store, files)
    await merger.merge(NODE, LINEAGE, shipments(files), CUTS)
    merged = await builder.files(NODE, LINEAGE)
    expected, ends = {file.name for file in merged}, {file.last for file in restorable(merged)}
    steps = sum(file.level == MERGED for file in merged) + len(shipments(files)) - len(shipments(merged))
    assert steps > 10
    kills = Kills(store, monkeypatch)
    for at in range(0, steps, 2):
        await replace(store, files)
        kills.left = at
        with pytest.raises((Killed, ExceptionGroup)):
            await merger.merge(NODE, LINEAGE, shipments(files), CUTS)
        kills.left = -1
        there = await builder.files(NODE, LINEAGE)
        assert ends <= {file.last for file in restorable(there)}, at
        await merger.finish(NODE, LINEAGE, merging.covered(there, CUTS))
        there = await builder.files(NODE, LINEAGE)
        assert ends <= {file.last for file in restorable(there)}, at
        await merger.merge(NODE, LINEAGE, shipments(there), CUTS)
        assert {file.name for file in await builder.files(NODE, LINEAGE)} == expected, at


async def test_nothing_is_deleted_for_a_file_that_is_another_one(
    store: Store, merger: Merger, builder: Builder, made: list[bytes]
) -> None:
    files = history(made[:6])
    await ship(store, files)
    await merger.merge(NODE, LINEAGE, shipments(files), ())
    merged = {file for file in await builder.files(NODE, LINEAGE) if file.level == MERGED}
    one = next(iter(merged))
    # The same pages in other bytes, as another version of the compression would make them, are as good.
    for wrong, fine in ((b"nothing at all", False), (recompressed(await read(store, one)), True)):
        await replace(store, files)
        await store.put_new(objects.key(NODE, LINEAGE, one), io.BytesIO(wrong))
        if fine:
            await merger.merge(NODE, LINEAGE, shipments(files), ())
            assert {file.name for file in await builder.files(NODE, LINEAGE)} >= {one.name}
            continue
        with pytest.raises(ProblemError) as caught:
            await merger.merge(NODE, LINEAGE, shipments(files), ())
        assert caught.value.code == "backup_damaged"
        there = await builder.files(NODE, LINEAGE)
        assert {file for file in files if one.first <= file.first <= one.last} <= set(there)
        with pytest.raises(ProblemError):
            await merger.finish(NODE, LINEAGE, merging.covered(there, ()))
        assert set(there) == set(await builder.files(NODE, LINEAGE))
        with pytest.raises(ProblemError):
            await merger.sweep(NODE, LINEAGE, one, list(files))
        assert set(there) == set(await builder.files(NODE, LINEAGE))


async def test_nothing_is_deleted_while_deletions_are_held(
    control: Control, store: Store, merger: Merger, builder: Builder, made: list[bytes]
) -> None:
    files = history(made[:6])
    await ship(store, files)
    held = control.services.ownership
    held.held = held.held or type("Hold", (), {"reason": "the metadata were restored"})()
    try:
        for work in (
            merger.merge(NODE, LINEAGE, shipments(files), ()),
            merger.delete(NODE, LINEAGE, files),
            merger.sweep(NODE, LINEAGE, None, list(files)),
        ):
            with pytest.raises(ProblemError) as caught:
                await work
            assert caught.value.code == "deletions_held"
    finally:
        held.held = None
    assert set(await builder.files(NODE, LINEAGE)) == set(files)
