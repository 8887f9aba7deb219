"""The front believes the libsql file where it says what was committed, wherever a release was cut, and nowhere else."""

import asyncio
import contextlib
import errno
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import Stored
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release import applier_process, stored_release
from edge_runtime.release.witness import FILE, Witness
from edge_runtime.sql import database
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.edge import Node, node, until

pytestmark = pytest.mark.never_retry

FIRST = ["CREATE TABLE generation (number INTEGER)", "INSERT INTO generation VALUES (1)"]
READ = {"sql": "read"}


def functions(number: int) -> dict[str, Any]:
    return {"version": (version(number), READ)}


async def number(edge: Node) -> int:
    status, _, body = await edge.call("version")
    assert status == 200, body
    found: int = msgspec.json.decode(body)["version"]
    return found


@pytest.mark.parametrize("doubt", [False, True])
async def test_what_a_commit_leads_to_is_announced_while_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: bool
) -> None:
    """Unless the last one is in doubt: the digest of what it leads to must be kept until the applier has looked."""
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        done: list[str] = []
        announce, prepare = Witness.announce, applier_process.prepare

        def announced(self: Witness, now: Stored, following: Stored) -> None:
            announce(self, now, following)
            done.append("announced")

        async def prepared(*order: Any) -> wire.Inventory:
            if not doubt:
                await until(lambda: done)
            inventory = await prepare(*order)
            done.append("prepared")
            return inventory

        monkeypatch.setattr(Witness, "announce", announced)
        monkeypatch.setattr(applier_process, "prepare", prepared)
        if doubt:
            edge.front.manager._in_doubt()
        await edge.release(functions(2))
        assert done == (["prepared", "announced"] if doubt else ["announced", "prepared"])
        assert await number(edge) == 2


async def test_a_front_that_ended_right_after_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that ended right before it: what it had announced is what the file says, or not yet."""
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release(functions(1), FIRST)
        before = (state / "db", tmp_path / "before")
        with monkeypatch.context() as patched:
            patched.setattr(Witness, "settle", lambda *_: None)
            announced = Witness.announce

            def announce(self: Witness, now: Stored, following: Stored) -> None:
                announced(self, now, following)
                with contextlib.closing(sqlite3.connect(state / database.FILE)) as opened:
                    opened.execute(f"VACUUM INTO '{before[1]}'")

            patched.setattr(Witness, "announce", announce)
            await edge.release(functions(2))
        kept = (state / FILE).read_bytes()
    async with node(state) as edge:
        assert await number(edge) == 2
        assert (state / FILE).read_bytes() != kept, "it knows now which of the two it is"
    (state / FILE).write_bytes(kept)
    for path in (state / "db").iterdir():
        path.unlink()
    before[1].rename(state / database.FILE)
    async with node(state) as edge:
        assert await number(edge) == 1


async def test_a_backup_that_was_restored_has_a_log_and_takes_releases(tmp_path: Path) -> None:
    """What VACUUM INTO makes has none."""
    state = tmp_path / "state"
    given = {"sql": (guest("sql"), {"sql": "write"}), **functions(1)}
    async with node(state) as edge:
        await edge.release(given, FIRST)
        with contextlib.closing(sqlite3.connect(state / database.FILE)) as opened:
            opened.execute(f"VACUUM INTO '{tmp_path / 'backup'}'")
    for path in (state / "db").iterdir():
        path.unlink()
    (tmp_path / "backup").rename(state / database.FILE)
    async with node(state) as edge:
        assert await number(edge) == 1
        with contextlib.closing(sqlite3.connect(state / database.FILE)) as reader:
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM generation").fetchall()
            answer = await edge.call("sql", b'{"sql": "INSERT INTO generation VALUES (1)"}')
            assert answer[0] == 200, answer
            await edge.release(functions(2))
        assert await number(edge) == 2


async def test_a_node_of_a_version_that_kept_no_witness_has_one_after_its_start(tmp_path: Path) -> None:
    kept = tmp_path / "state" / FILE
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
    before = kept.read_bytes()
    kept.unlink()
    async with node(tmp_path / "state") as edge:
        assert await number(edge) == 1
    assert kept.read_bytes() == before


async def test_what_an_applier_says_is_not_what_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        before = edge.front.manager.inventory
        told = applier_process._decode_inventory

        def lie(body: bytes) -> wire.Inventory:
            return msgspec.structs.replace(told(body), schema_version=7)

        monkeypatch.setattr(applier_process, "_decode_inventory", lie)
        with pytest.raises(SyncFailed) as failed:
            await edge.release(functions(2))
        assert failed.value.code == "database_unverified"
        assert await number(edge) == 1
        assert edge.front.manager.inventory == before


async def test_a_file_that_was_forged_when_an_applier_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is served, calls wait, and the next release takes its place."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("SKERRY_FAULTS", str(folder))
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        (folder / "edge.commit.before").write_text("kill")
        stored = stored_release.stored

        async def forged(processes: ZygoteClient, named: applier_process.Named) -> Stored:
            found = await stored(processes, named)
            assert found.release is not None
            return Stored(msgspec.structs.replace(found.release, generation=77), found.inventory)

        with monkeypatch.context() as patched:
            patched.setattr(stored_release, "stored", forged)
            with pytest.raises(SyncFailed) as failed:
                await edge.release(functions(2))
        assert failed.value.code == "database_unverified"
        assert edge.front.manager.release is None
        calling = asyncio.ensure_future(number(edge))
        await asyncio.sleep(0.1)
        assert not calling.done()
        await edge.release(functions(3))
        assert await calling == 3
    async with node(tmp_path / "state") as edge:
        assert await number(edge) == 3


async def test_a_release_that_failed_is_not_announced_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, faults = tmp_path / "state", tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv("SKERRY_FAULTS", str(faults))
    async with node(state) as edge:
        await edge.release(functions(1), FIRST)
        settled = (state / FILE).read_bytes()
        (faults / "edge.commit.before").write_text("kill")
        with pytest.raises(SyncFailed) as failed:
            await edge.release(functions(2))
        assert failed.value.code == "applier_died"
        assert (state / FILE).read_bytes() == settled


async def test_a_witness_that_cannot_be_written_leaves_the_old_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Witness, "announce", full)
            with pytest.raises(SyncFailed, match=r"witness\.json can't be written") as failed:
                await edge.release(functions(2))
        assert failed.value.code == "disk_full"
        assert await number(edge) == 1
        await edge.release(functions(3))
        assert await number(edge) == 3
