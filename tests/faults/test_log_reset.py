"""SQLite's WAL-reset bug on a whole node (docs/adr/0071): a COMMIT begins the log anew in the middle of a checkpoint.

The checkpointer is held between the two reads of the log's index where the bug lies, readers that keep the log from
beginning anew end, and a row is written and acknowledged. Behind one of the two walls no row may be lost. How many
instructions lie before that place belongs to a build of SQLite: they are searched for, with two processes.
"""

import asyncio
import contextlib
import itertools
import os
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from edge_runtime import wal
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, ZygoteClient
from edge_runtime.release import checkpoint_schedule
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from tests.guests.build import guest
from tests.integration.edge_runtime.release.test_checkpoint_schedule import standing_reader
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until
from tests.support.held_checkpoints import holder

pytestmark = pytest.mark.never_retry

OLD = sqlite3.sqlite_version_info < (3, 51, 3)
"""Whether Python's SQLite has the bug."""
STEP = 20
"""Instructions between two places in a checkpoint at which it is held."""
TRIES = int(os.environ.get("SKERRY_TEST_DELAYS", "1"))
"""Places at which a node's checkpoint by the current SQLite is held."""
ROOT = Path(__file__).parents[2]
FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"})}
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, data BLOB)"]
WRITER = """
import sqlite3, sys
opened = sqlite3.connect(sys.argv[1], isolation_level=None)
opened.execute("PRAGMA journal_mode = WAL")
opened.execute("PRAGMA synchronous = OFF")
opened.execute("PRAGMA wal_autocheckpoint = 0")
print("opened", flush=True)
for line in sys.stdin:
    opened.execute(line).fetchall()
    print("done", flush=True)
"""
CHECKPOINTER = """
import sys
from pathlib import Path
from {module} import {name}
opened = {name}(Path(sys.argv[1]), 5.0)
opened.look()
print("opened", flush=True)
for line in sys.stdin:
    opened.checkpoint("passive")
    print("done", flush=True)
"""
ENGINES = {
    "old": CHECKPOINTER.format(module="tests.support.old_sqlite_zygotes", name="OldFileAndLog"),
    "current": CHECKPOINTER.format(module="edge_runtime.sql.current_sqlite", name="FileAndLog"),
}


class Connection:
    """A process with a connection, which does what a line says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid, self._in, self._out = process.pid, process.stdin, process.stdout

    def begin(self, line: str = "") -> None:
        self._in.write(line.encode() + b"\n")

    async def done(self) -> None:
        assert await self._out.readline() == b"done\n"

    async def do(self, line: str = "") -> None:
        self.begin(line)
        await self.done()


@contextlib.asynccontextmanager
async def connection(program: str, path: Path) -> AsyncIterator[Connection]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"opened\n"
        yield Connection(process)
    finally:
        process.kill()
        await process.wait()


async def tried(path: Path, engine: str) -> tuple[list[int], list[int]]:
    """Have a COMMIT come after so and so many instructions of a checkpoint; return those of which a checkpoint has
    more, and those of them after which it takes frames for moved that aren't: the first such one is the last."""
    within: list[int] = []
    async with (
        connection(WRITER, path) as writer,
        connection(ENGINES[engine], path) as checkpointer,
        holder() as held,
    ):
        await writer.do("CREATE TABLE notes (data)")
        for delay in itertools.count(step=STEP):
            await writer.do("INSERT INTO notes VALUES (zeroblob(30000))")
            await checkpointer.do()
            await held.attach(checkpointer.pid, path, delay)
            checkpointer.begin()
            if not await held.held():
                await held.let_go()
                return within, []
            within.append(delay)
            await writer.do("INSERT INTO notes VALUES (1)")
            await held.let_go()
            await checkpointer.done()
            index = wal.read(path)
            assert index is not None
            if index.backfilled > index.frames:
                return within, [delay]
    raise AssertionError


class Asked(list[str]):
    """The modes of the checkpoints that the schedule has asked for."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    seen = Asked()
    ask = CheckpointSchedule._ask

    async def noted(self: CheckpointSchedule, child: Child, order: frames.Checkpoint) -> frames.Checkpointed:
        done = await ask(self, child, order)
        seen.append(order.mode)
        return done

    monkeypatch.setattr(CheckpointSchedule, "_ask", noted)
    return seen


class Rows:
    """Rows that a node was given, and those that it has acknowledged."""

    def __init__(self, edge: Node) -> None:
        self._edge = edge
        self._next = 0
        self.acknowledged: set[int] = set()

    async def write(self, size: int = 600) -> None:
        self._next += 1
        statement = {"sql": "INSERT INTO notes VALUES (?, zeroblob(?))", "params": [self._next, size]}
        status, _, body = await self._edge.call("sql", orjson.dumps(statement))
        if status == 200 and "error" not in orjson.loads(body):
            self.acknowledged.add(self._next)

    def lost(self, file: Path) -> set[int]:
        """Those that a new connection doesn't find in the node's file; all of them where that is damaged."""
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as opened:
            try:
                assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                there = {row[0] for row in opened.execute("SELECT id FROM notes NOT INDEXED")}
            except (sqlite3.Error, AssertionError):
                return self.acknowledged
        return self.acknowledged - there


async def lost(folder: Path, asked: Asked, delay: int, *, caught: bool) -> set[int]:
    """The rows that a node loses where a row is written in the middle of a checkpoint that is held after `delay`
    instructions; `caught` tells whether a checkpoint is to be held at all."""
    async with node(folder / "state") as edge, holder() as held, contextlib.AsyncExitStack() as stack:
        await edge.release(FUNCTIONS, NOTES)
        file, rows = folder / "state" / wal.FILE, Rows(edge)
        async with standing_reader(folder):
            # The log can't be moved as a whole, until there is a reader of all of it.
            await rows.write(checkpoint_schedule.START + (1 << 20))
            await stack.enter_async_context(standing_reader(folder))
        await until(lambda: (index := wal.read(file)) is not None and 0 < index.frames == index.backfilled)
        child = edge.front.checkpoints._child
        assert child is not None
        await held.attach(child.pid, file, delay)
        holding, before = asyncio.ensure_future(held.held()), len(asked)
        async with deadline(60):
            while not holding.done() and len(asked) < before + 3:
                await asyncio.sleep(0.01)
        assert holding.done() is caught, asked
        # The reader ends, so that a COMMIT begins the log anew.
        await stack.aclose()
        await rows.write()
        if caught:
            # What is written before the checkpoint's end may be moved by it.
            ended = len(asked)
            await held.let_go()
            await until(lambda: len(asked) > ended)
        holding.cancel()
        for _ in range(30):
            await rows.write()
        assert len(rows.acknowledged) > 30
        # Where all workers have ended before the last checkpointer comes, that one recovers the log, and finds all.
        missed = rows.lost(file)
    return missed | rows.lost(file)


@pytest.mark.skipif(not OLD, reason="Python's SQLite doesn't have the bug")
class TestOldSqlite:
    """With Python's own SQLite as the checkpointer's engine."""

    @pytest.fixture(autouse=True)
    def _old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.old_sqlite_zygotes")

    async def test_without_both_walls_rows_are_lost(
        self, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the tests below would say nothing."""
        monkeypatch.setattr(checkpoint_schedule, "may_move", lambda _: True)
        _, (first,) = await tried(tmp_path / "log.db", "old")
        # It is the first of several places; a node's checkpoint may take some instructions more or less to come there.
        for more in (STEP, 2 * STEP, 0, 3 * STEP):
            (folder := tmp_path / str(more)).mkdir()
            if await lost(folder, asked, first + more, caught=True):
                return
        pytest.fail("no place was found at which a COMMIT has a node lose rows")

    async def test_what_the_schedule_asks_for_loses_no_row(self, tmp_path: Path, asked: Asked) -> None:
        assert await lost(tmp_path, asked, 0, caught=False) == set()
        first = asked.index("restart")
        assert asked[first : first + 3] == ["restart"] * 3


async def test_a_current_sqlite_loses_no_row(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is held, though the schedule asks for what it no longer does."""
    monkeypatch.setattr(checkpoint_schedule, "may_move", lambda _: True)
    within, losing = await tried(tmp_path / "log.db", "current")
    assert not losing
    for number in range(TRIES):
        delay = within[len(within) * (2 * number + 1) // (2 * TRIES)]
        (folder := tmp_path / str(delay)).mkdir()
        assert await lost(folder, asked, delay, caught=True) == set(), delay
