"""Databases that control makes of what a real store has of a lineage."""

import asyncio
import io
from pathlib import Path

import pytest

from control.backups import objects
from control.backups.builder import Builder
from control.backups.objects import BackupFile
from control.problems import ProblemError
from control.storage.object_store import Store
from tests.support.backup_files import BEGUN_MS, EVERY_MS, history, states
from tests.support.control import Control

NODE, LINEAGE = "01234567-89ab-4def-8123-456789abcdef", "0123456789abcdef" * 2
MOST = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return states(tmp_path_factory.mktemp("source"), 12)


async def ship(store: Store, files: dict[BackupFile, bytes]) -> None:
    for file, data in files.items():
        await store.put_new(objects.key(NODE, LINEAGE, file), io.BytesIO(data))


async def test_each_state_is_made_again(control: Control, made: list[bytes], tmp_path: Path) -> None:
    store, files = control.services.store, history(made)
    await ship(store, files)
    builder = Builder(store, tmp_path, MOST, 120.0)
    assert sorted(await builder.files(NODE, LINEAGE)) == sorted(files)
    for to in (None, 1, 7):
        async with builder.built(NODE, LINEAGE, to) as built:
            number = to or len(made)
            assert built.path.read_bytes() == made[number - 1]
            assert (built.transaction, built.at_ms) == (number, BEGUN_MS + number * EVERY_MS)
            assert (built.size, built.findings) == (len(made[number - 1]), [])
            assert built.read == sum(file.size for file in files if file.last <= number)
            assert built.path.parent.stat().st_mode & 0o777 == 0o700
        assert list(tmp_path.iterdir()) == []


async def test_what_cannot_be_made_is_said_and_leaves_nothing(
    control: Control, made: list[bytes], tmp_path: Path
) -> None:
    store, files = control.services.store, history(made[:5])
    listed = list(files)
    files[listed[4]] = files[listed[4]][:-1]
    await ship(store, {file: data for file, data in files.items() if file.first != 3})
    cases: list[tuple[int, int | None, str, str]] = [
        (MOST, 4, "backup_incomplete", "of transactions 3 to 3 no file"),
        (len(made[0]) - 1, 1, "spool_full", "control takes"),
    ]
    for most, to, code, text in cases:
        with pytest.raises(ProblemError) as caught:
            async with Builder(store, tmp_path, most, 120.0).built(NODE, LINEAGE, to):
                pass
        assert caught.value.code == code
        assert text in caught.value.detail
    await ship(store, {listed[2]: files[listed[2]]})
    with pytest.raises(ProblemError, match="ends too early") as caught:
        async with Builder(store, tmp_path, MOST, 120.0).built(NODE, LINEAGE):
            pass
    assert caught.value.code == "backup_damaged"
    assert list(tmp_path.iterdir()) == []


async def test_files_that_are_merged_away_meanwhile_are_no_failure(
    control: Control, made: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, files = control.services.store, history(made[:3])
    await ship(store, files)
    gone = objects.key(NODE, LINEAGE, next(file for file in files if file.first == 2))
    opened = store.open

    async def merged_first(key: str, range_header: str | None = None) -> object:
        monkeypatch.undo()
        await ship(store, {file._replace(level=1): data for file, data in files.items() if file.first == 2})
        await store.delete(gone)
        return await opened(gone, range_header)

    monkeypatch.setattr(store, "open", merged_first)
    async with asyncio.timeout(120), Builder(store, tmp_path, MOST, 120.0).built(NODE, LINEAGE) as built:
        assert built.path.read_bytes() == made[2]
