"""The agent and a restore: the database is brought back while the node serves, once, and control is told of it."""

import asyncio
import contextlib
import io
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from control.backups.objects import BackupFile
from control.protocol import wire
from edge_runtime import disk_space, files, wal
from edge_runtime.cli.status import render
from edge_runtime.state import REHEARSAL
from edge_runtime.sync.restores import FOLDER
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.agents import Control, Edge, edge, joined
from tests.support.backup_files import history
from tests.support.deadlines import deadline
from tests.support.node_process import NodeProcess
from tests.support.programs import Faults
from tests.support.restoring import LINEAGE, RestoringControl, restoring_control

pytestmark = pytest.mark.never_retry

NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"
SQL = {"sql": "write"}


@pytest.fixture
async def stand(control: Control) -> AsyncIterator[RestoringControl]:
    async with restoring_control(control) as running:
        yield running


@pytest.fixture
async def state(control: Control, stand: RestoringControl, tmp_path: Path) -> Path:
    """The state directory of a node that has joined; `stand` is its control, which has a release for it."""
    await joined(control, tmp_path / "state")
    stand.lead(tmp_path / "state")
    await control.call("POST", "schema-changes", {"name": "notes", "sql": NOTES})
    await control.release(functions={"sql": await control.push("sql", guest("sql"), SQL)}, now=True)
    return tmp_path / "state"


async def sql(http: Any, statement: str, *params: str) -> list[Any]:
    body = orjson.dumps({"sql": statement, "params": params})
    async with http.post("/functions/sql", data=io.BytesIO(body)) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json(content_type=None)).get("rows", []))


async def write(http: Any, *texts: str) -> None:
    for text in texts:
        await sql(http, "INSERT INTO notes (text) VALUES (?)", text)


async def texts(http: Any) -> list[str]:
    return [row[0] for row in await sql(http, "SELECT text FROM notes ORDER BY id")]


def rows(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as opened:
        return [row[0] for row in opened.execute("SELECT text FROM notes ORDER BY id")]


async def copy(state: Path) -> bytes:
    """The node's database as it is now."""
    target = state.parent / "copy.db"
    target.unlink(missing_ok=True)
    status, _, errors = await command("backup", str(target), "--state", str(state))
    assert status == 0, errors
    return target.read_bytes()


def torn_at(data: bytes, at: int) -> bytes:
    """The bytes of a file, one of them wrong."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@contextlib.asynccontextmanager
async def written(state: Path, *more: str) -> AsyncIterator[tuple[Edge, dict[BackupFile, bytes]]]:
    """The running node, with the rows `early` and `more`; and the files of a backup that was made at `early`."""
    async with edge(state) as node:
        await node.until(lambda s: s["at_target"])
        empty = await copy(state)
        await write(node.http, "early")
        files = history([empty, await copy(state)])
        await write(node.http, *more)
        yield node, files


async def test_the_database_is_brought_back_while_the_node_serves(
    control: Control, stand: RestoringControl, state: Path
) -> None:
    async with written(state, "late") as (node, files):
        # Another release, so that functions and schema go back with the data.
        await control.call("POST", "schema-changes", {"name": "more", "sql": "ALTER TABLE notes ADD COLUMN more TEXT"})
        pushed = await control.push("version", guest("env"))
        await control.release(functions={"version": pushed}, now=True)
        await node.until(lambda s: s["at_target"] and s["schema_version"] == 2)
        position = wire.BackupPosition("cd" * 16, 77)

        async def finish() -> wire.BackupPosition:
            return position

        node.front.manager.finish_backup = finish
        stand.gate.clear()
        id = stand.order(files)
        own = await node.until(lambda s: (s["restore"] or {}).get("step") == "fetch")
        assert "restore    the database of 20" in render(own)
        assert ", step fetch, 0 of 0 MiB fetched, since " in render(own)
        # Polls and calls go on, and no poll asks again and again.
        polls = stand.polls
        await control.call("POST", "nodes/edge-1/retry", {})
        async with deadline(60):
            while stand.polls == polls:
                await asyncio.sleep(0.02)
        assert (await texts(node.http)) == ["early", "late"]
        stand.gate.set()
        told = await stand.result(id)
        assert (told.outcome, told.code, told.release, told.before) == ("done", "", 1, position)
        assert await texts(node.http) == ["early"]
        assert rows(Path(told.kept)) == ["early", "late"]
        own = await node.until(lambda s: s["restore"]["step"] is None)
        assert (own["release"]["number"], own["schema_version"]) == (1, 1)
        assert own["restore"]["kept"] == told.kept
        at = stand.orders[id].at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert f"restored   to the database of {at}, with release 1, at " in render(own)
        assert f"; the one of before is kept as {told.kept}\n" in render(own)
        assert not (state / FOLDER).exists()
        await write(node.http, "after")
    async with edge(state) as node:
        # It serves that without control, too, and still says so.
        assert await texts(node.http) == ["early", "after"]
        assert (await node.status())["restore"]["outcome"] == "done"


async def test_the_result_is_told_until_control_has_it_also_after_a_restart(
    stand: RestoringControl, state: Path
) -> None:
    async with written(state, "late") as (node, files):
        stand.refuse["PUT /v1/nodes/self/restores/"] = 503
        id = stand.order(files)
        await node.until(lambda s: (s["restore"] or {}).get("outcome") == "done")
        await write(node.http, "after")
        inode = (state / wal.FILE).stat().st_ino
    stand.refuse.clear()
    assert not stand.results
    async with edge(state) as node:
        assert (await stand.result(id)).outcome == "done"
        # It isn't done twice: what was written since stays.
        assert await texts(node.http) == ["early", "after"]
        assert (state / wal.FILE).stat().st_ino == inode
    # A node that is held at it says so after each start, and goes on polling.
    async with edge(state) as node:
        await stand.result(id, 2)
        await node.until(lambda s: s["at_target"])
        assert len(list(state.glob("db.before-*"))) == 1


POINTS = (
    *("edge.restoring.fetched", "edge.restoring.assembled", "edge.replace.held", "edge.replace.announced"),
    *("edge.replace.exchanged", "edge.restoring.replaced"),
)


@pytest.mark.parametrize("point", POINTS)
async def test_a_node_that_is_killed_goes_on_and_restores_once(
    control: Control, stand: RestoringControl, state: Path, tmp_path: Path, point: str
) -> None:
    faults = Faults(tmp_path / "faults")
    async with written(state, "late") as (_, files):
        pass
    made = NodeProcess(control, tmp_path, {"SKERRY_FAULTS": str(faults.folder)})
    made.state = state
    faults.arm(point, "kill")
    id = stand.order(files)
    if await made.start():
        async with deadline(60):
            while made.ended is None:
                await asyncio.sleep(0.02)
        await made.end()
    assert not stand.results
    asked = len(stand.asked)
    assert await made.start()
    try:
        assert (told := await stand.result(id)).outcome == "done"
        assert await texts(made.http) == ["early"]
        assert rows(Path(told.kept)) == ["early", "late"]
        assert [Path(told.kept).parent] == list(state.glob("db.before-*"))
        if point != "edge.restoring.fetched":
            assert len(stand.asked) == asked, "files that are whole aren't fetched again"
        await write(made.http, "after")
    finally:
        await made.end()


async def test_what_cant_be_brought_back_changes_nothing(
    stand: RestoringControl, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with written(state, "late") as (node, whole):
        inode = (state / wal.FILE).stat().st_ino
        _, shipment = whole
        torn = {**whole, shipment: torn_at(whole[shipment], 120)}
        headless = {shipment: whole[shipment]}
        for wrong, change, code in (
            (torn, {}, "backup_damaged"),
            (headless, {}, "backup_damaged"),
            (whole, {"position": wire.BackupPosition(LINEAGE, 3)}, "backup_damaged"),
            (whole, {"files": [wire.RestoreFile("../../witness.json", 1, "/files/x")]}, "answer_unknown"),
        ):
            told = await stand.result(stand.order(wrong, **change))
            assert (told.outcome, told.code) == ("failed", code), told
            assert not list((state / FOLDER).glob("*"))
        stand.refuse["GET /v1/nodes/self/restores/"] = 409
        told = await stand.result(stand.order(whole))
        assert (told.outcome, told.code) == ("failed", "refused")
        stand.refuse.clear()
        own = await node.until(lambda s: s["restore"]["step"] is None)
        assert own["restore"]["outcome"] == "failed"
        assert f"restore    failed at {own['restore']['ended_at']}, and nothing was changed, " in render(own)
        monkeypatch.setattr(files, "free_bytes", lambda _: disk_space.DISK_RESERVE)
        asked = len(stand.asked)
        told = await stand.result(stand.order(whole))
        assert (told.outcome, told.code) == ("failed", "disk_full")
        assert "db.before-" in told.message
        assert len(stand.asked) == asked, "room is looked for first"
        monkeypatch.undo()
        assert await texts(node.http) == ["early", "late"]
        assert (state / wal.FILE).stat().st_ino == inode
        assert not list(state.glob("db.before-*"))


async def test_a_download_that_breaks_off_goes_on_where_it_was(stand: RestoringControl, state: Path) -> None:
    async with written(state, "late") as (_, files):
        stand.cut = [1000, 500, 200]
        id = stand.order(files)
        assert (await stand.result(id)).outcome == "done"
        starts = [int(line.rpartition(" ")[2]) for line in stand.asked]
        assert len(starts) > len(files)
        assert any(starts), "a part of a file that is here isn't asked for again"


async def test_one_that_is_called_off_is_given_up(stand: RestoringControl, state: Path) -> None:
    async with written(state, "late") as (node, files):
        stand.gate.clear()
        id = stand.order(files)
        await node.until(lambda s: (s["restore"] or {}).get("step") == "fetch")
        del stand.orders[id]
        stand.wanted = ""
        stand.gate.set()
        own = await node.until(lambda s: s["restore"] is None)
        assert own["error"] is None
        assert await texts(node.http) == ["early", "late"]
        assert not list((state / FOLDER).glob("*"))
    assert not stand.results


async def test_what_an_earlier_process_left_of_one_that_was_called_off_is_removed(
    stand: RestoringControl, state: Path
) -> None:
    async with written(state, "late") as (node, files):
        stand.gate.clear()
        stand.order(files)
        await node.until(lambda s: (s["restore"] or {}).get("step") == "fetch")
        async with deadline(60):
            while not list((state / FOLDER).glob("*")):
                await asyncio.sleep(0.02)
    stand.wanted = ""
    async with edge(state) as node:
        await node.until(lambda s: s["at_target"])
        async with deadline(60):
            while (state / FOLDER).exists():
                await asyncio.sleep(0.02)


async def test_functions_that_the_node_lost_are_fetched(control: Control, stand: RestoringControl, state: Path) -> None:
    async with written(state, "late") as (node, files):
        pushed = await control.push("version", guest("env"))
        await control.release(functions={"version": pushed}, now=True)
        await node.until(lambda s: s["at_target"] and s["release"]["number"] == 2)
        node.agent._artifacts.collect(set())
        node.front.compiler.collect(set())
        id = stand.order(files)
        assert (await stand.result(id)).outcome == "done"
        assert await texts(node.http) == ["early"]
        # Those of the release that it had before stay, as after a flip.
        await node.until(lambda s: s["restore"]["step"] is None)


async def test_functions_that_control_doesnt_give_fail_it(
    control: Control, stand: RestoringControl, state: Path
) -> None:
    async with written(state, "late") as (node, files):
        node.agent._artifacts.collect(set())
        stand.refuse["GET /v1/artifacts/"] = 404
        told = await stand.result(stand.order(files))
        assert (told.outcome, told.code) == ("failed", "artifact_refused")
        assert "function sql" in told.message
        assert await texts(node.http) == ["early", "late"]


async def test_a_rehearsal_that_runs_is_ended_and_begins_anew(
    faults: Faults, control: Control, stand: RestoringControl, state: Path
) -> None:
    faults.arm("edge.rehearsal.copying", "hold")
    async with written(state, "late") as (node, files):
        pushed = await control.push("env", guest("env"))
        await control.release(functions={"env": pushed}, rehearsal_only=True)
        await faults.reached("edge.rehearsal.copying")
        held = int((faults.folder / "edge.rehearsal.copying.held").read_text())
        id = stand.order(files)
        assert (await stand.result(id)).outcome == "done"
        assert await texts(node.http) == ["early"]
        async with deadline(60):
            while (status := Path(f"/proc/{held}/stat")).exists() and b" Z " not in status.read_bytes():
                await asyncio.sleep(0.02)
        own = await node.until(lambda s: (s["rehearsal"] or {}).get("outcome"))
        assert own["rehearsal"]["outcome"] == "passed"
        assert not (state / REHEARSAL).exists()
