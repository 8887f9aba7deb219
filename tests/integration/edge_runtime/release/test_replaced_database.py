"""Another database takes the place of a serving node's, with the release that it names."""

import asyncio
import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import msgspec
import orjson
import pytest

from control.protocol import wire
from edge_runtime import wal
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.restore_messages import PreparedDatabase, ReplacedDatabase
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import stored_release
from edge_runtime.release.manager import BACKUP_LIMIT
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until
from tests.support.moved_clock import MovedClock

pytestmark = pytest.mark.never_retry

NOTES = "CREATE TABLE notes (text TEXT)"
FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"}), "loop": (guest("loop"), {"time_limit_ms": 60_000})}
PROGRAM = """
import asyncio, sys
from pathlib import Path
import msgspec
from edge_runtime import front as fronts
from edge_runtime.ipc import frames
from edge_runtime.ipc.restore_messages import PreparedDatabase
from edge_runtime.settings import EdgeSettings

state, kept = Path(sys.argv[1]), []

async def replace(front):
    await front.ready.wait()
    stored = msgspec.json.decode((state / "stored.json").read_bytes(), type=frames.Stored)
    functions = await front.compiler.available(stored.release.functions)
    await front.manager.replace_database(PreparedDatabase(state / "db.new", stored, functions))

def begin(front):
    kept.append(asyncio.get_running_loop().create_task(replace(front)))

fronts.run(EdgeSettings(state=state, listen="127.0.0.1:0", workers=1), begin=begin)
"""


async def write(edge: Node, text: str) -> None:
    statement = {"sql": "INSERT INTO notes (text) VALUES (?)", "params": [text]}
    assert (await edge.call("sql", orjson.dumps(statement)))[0] == 200


async def texts(edge: Node) -> list[str]:
    status, _, body = await edge.call("sql", b'{"sql": "SELECT text FROM notes"}')
    assert status == 200, body
    return [row[0] for row in orjson.loads(body)["rows"]]


def rows(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as opened:
        return [row[0] for row in opened.execute("SELECT text FROM notes")]


async def prepared(edge: Node) -> PreparedDatabase:
    """A copy of the node's database as it is now."""
    folder = edge.state.path / "db.new"
    folder.mkdir()
    status, _, errors = await command("backup", str(folder / wal.FILE.name), "--state", str(edge.state.path))
    assert status == 0, errors
    stored = await stored_release.stored(edge.front.processes, edge.front.pool.named)
    functions = [] if stored.release is None else stored.release.functions
    return PreparedDatabase(folder, stored, await edge.front.compiler.available(functions))


async def test_a_node_serves_the_database_and_release_of_before(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        await write(edge, "early")
        copy = await prepared(edge)
        await edge.release({"sql": FUNCTIONS["sql"]}, ["ALTER TABLE notes ADD COLUMN more TEXT"])
        await write(edge, "late")
        old = edge.workers() | edge.spares()
        async with deadline(60):
            kept, position = await edge.front.manager.replace_database(copy)
        assert await texts(edge) == ["early"]
        await write(edge, "after")
        assert await texts(edge) == ["early", "after"]
        release = edge.front.manager.release
        assert release is not None
        assert (release.number, edge.front.manager.inventory.schema_version) == (1, 1)
        assert "loop" in edge.front.pool.functions
        assert not old & (edge.workers() | edge.spares())
        assert position is None
        assert rows(kept / wal.FILE.name) == ["early", "late"]
        assert not copy.folder.exists()
    # What it serves is what it was told to: the witness believes it at the next start.
    async with node(tmp_path / "state") as edge:
        assert edge.front.manager.error() is None
        assert await texts(edge) == ["early", "after"]


async def test_calls_wait_and_one_that_runs_too_long_is_ended(tmp_path: Path) -> None:
    async with node(tmp_path / "state", flip_limit=0.5) as edge:
        await edge.release(FUNCTIONS, [NOTES])
        await write(edge, "early")
        copy = await prepared(edge)
        await write(edge, "late")
        running = asyncio.ensure_future(edge.problem("loop"))
        await until(lambda: edge.busy())
        replacing = asyncio.ensure_future(edge.front.manager.replace_database(copy))
        await until(lambda: edge.front.pool.hold.name == "ALL")
        # On the other database, however early it came.
        waiting = asyncio.ensure_future(texts(edge))
        assert await running == (503, "release_changing")
        await replacing
        assert await waiting == ["early"]


async def test_calls_under_load_all_end_and_none_is_on_both(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        copy = await prepared(edge)
        acknowledged: list[str] = []
        stopped = False

        async def client(number: int) -> None:
            turn = 0
            while not stopped:
                turn += 1
                await write(edge, f"{number}-{turn}")
                acknowledged.append(f"{number}-{turn}")

        clients = [asyncio.ensure_future(client(number)) for number in range(6)]
        await until(lambda: len(acknowledged) > 50)
        kept, _ = await edge.front.manager.replace_database(copy)
        so_far = len(acknowledged)
        await until(lambda: len(acknowledged) > so_far + 50)
        stopped = True
        await asyncio.gather(*clients)
        before, after = rows(kept / wal.FILE.name), await texts(edge)
        assert not set(before) & set(after)
        assert sorted(before + after) == sorted(acknowledged)


async def test_another_program_that_has_the_file_open_is_named(tmp_path: Path) -> None:
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM notes').fetchall();"
    script += "print('open', flush=True); sys.stdin.read()"
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        copy = await prepared(edge)
        await write(edge, "late")
        pipe = asyncio.subprocess.PIPE
        database = str(edge.state.path / wal.FILE)
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, database, stdin=pipe, stdout=pipe)
        assert other.stdin is not None
        assert other.stdout is not None
        await other.stdout.readline()
        replacing = asyncio.ensure_future(edge.front.manager.replace_database(copy))
        # Calls needn't wait for a program that may go on for hours.
        assert await texts(edge) == ["late"]
        with pytest.raises(SyncFailed, match=f"process {other.pid}") as failed:
            await replacing
        assert failed.value.code == "database_in_use"
        assert await texts(edge) == ["late"]
        other.stdin.close()
        await other.wait()
        await edge.front.manager.replace_database(copy)
        assert await texts(edge) == []


async def test_a_node_goes_back_to_when_it_had_no_release(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        empty = await prepared(edge)
        await edge.release(FUNCTIONS, [NOTES])
        await write(edge, "late")
        assert empty.stored.release is None
        await edge.front.manager.replace_database(empty)
        assert await edge.problem("sql") == (404, "function_unknown")
        assert edge.front.manager.release is None
        edge.changes.clear()
        await edge.release(FUNCTIONS, [NOTES])
        assert await texts(edge) == []


async def test_the_backup_is_finished_once_nobody_writes(tmp_path: Path) -> None:
    position = wire.BackupPosition("ab" * 16, 7)
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        copy = await prepared(edge)
        await write(edge, "late")
        seen: list[list[str]] = []
        appliers: list[asyncio.Future[Child]] = []

        async def finish() -> wire.BackupPosition | None:
            if edge.front.pool.hold.name == "NOTHING":
                # First while calls go on, so that they needn't wait for much.
                await write(edge, "meanwhile")
                return None
            # No call writes, and no step of a schema change; the checkpointer can ship what they wrote.
            appliers.append(asyncio.ensure_future(edge.front.processes.birth("applier")))
            await asyncio.sleep(0)  # so that it is asked for first
            (await edge.front.processes.birth("checkpointer")).close()
            assert not appliers[0].done()
            assert not edge.workers() | edge.spares()
            assert edge.front.pool.hold.name == "ALL"
            seen.append(rows(edge.state.path / wal.FILE))
            return position

        edge.front.manager.finish_backup = finish
        assert (await edge.front.manager.replace_database(copy)).position == position
        assert seen == [["late", "meanwhile"]]
        (await appliers[0]).close()


async def test_a_backup_that_cant_be_finished_is_left_behind(tmp_path: Path, clock: MovedClock) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        copy = await prepared(edge)

        begun = asyncio.Event()

        async def never() -> None:
            begun.set()
            await asyncio.Event().wait()

        edge.front.manager.finish_backup = never
        replacing = asyncio.ensure_future(edge.front.manager.replace_database(copy))
        for _ in range(2):
            await until(begun.is_set)
            begun.clear()
            await clock.move(BACKUP_LIMIT)
            clock.go()
        assert (await replacing).position is None
        assert await texts(edge) == []


async def test_what_cant_be_noted_changes_nothing(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [NOTES])
        copy = await prepared(edge)
        await write(edge, "late")

        def note(_: ReplacedDatabase) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(SyncFailed, match="nothing was changed") as failed:
            await edge.front.manager.replace_database(copy, note)
        assert failed.value.code == "restore_failed"
        assert await texts(edge) == ["late"]
        await write(edge, "later")
        assert not list(edge.state.path.glob("db.before-*"))
    async with node(tmp_path / "state") as edge:
        assert await texts(edge) == ["late", "later"]


@pytest.mark.parametrize(("point", "found"), [("held", "late"), ("announced", "late"), ("exchanged", "early")])
async def test_a_node_that_is_killed_has_the_one_or_the_other(tmp_path: Path, point: str, found: str) -> None:
    state, faults = tmp_path / "state", tmp_path / "faults"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, [NOTES])
        await write(edge, "early")
        copy = await prepared(edge)
        (state / "stored.json").write_bytes(msgspec.json.encode(copy.stored))
        await edge.release({"sql": FUNCTIONS["sql"]}, ["UPDATE notes SET text = 'late'"])
    faults.mkdir()
    (faults / f"edge.replace.{point}").write_text("kill")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(state), env={**os.environ, "SKERRY_FAULTS": str(faults)}
    )
    async with deadline(60):
        assert await process.wait() == -9
    async with node(state) as edge:
        assert edge.front.manager.error() is None
        assert await texts(edge) == [found]
        release = edge.front.manager.release
        assert isinstance(release, frames.LocalRelease)
        assert release.number == (1 if found == "early" else 2)
