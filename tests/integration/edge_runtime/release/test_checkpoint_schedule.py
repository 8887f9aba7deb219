"""The database's log is moved into the database file beside the calls, begins anew, and is bounded."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime import wal
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import checkpoint_schedule
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until
from tests.support.failing_calls import ALWAYS, FailingCalls
from tests.support.moved_clock import MovedClock

pytestmark = pytest.mark.never_retry

FUNCTIONS = {
    "sql": (guest("sql"), {"sql": "write", "time_limit_ms": 8000}),
    "reader": (guest("sql"), {"sql": "read", "time_limit_ms": 20_000, "concurrency": 4}),
    "plain": guest("sql"),
}
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, data BLOB)"]
also_backed_up = pytest.mark.parametrize("backed_up", [False, True], ids=["", "backed up"])
"""What holds of a node's log holds also while the database is backed up, which keeps a reader in it."""
FILE = "/db/skerry.db"
READER = """
import sqlite3, sys
reader = sqlite3.connect(sys.argv[1])
reader.execute("BEGIN")
reader.execute("SELECT count(*) FROM notes").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FailingCalls:
    made = FailingCalls(tmp_path / "failing")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(autouse=True)
def moved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is moved from 4 MiB on, backed up or not."""
    monkeypatch.setattr(checkpoint_schedule, "SHIPPED_TIMES", 1)


@contextlib.asynccontextmanager
async def notes(path: Path, *, backed_up: bool = False, **settings: Any) -> AsyncIterator[Node]:
    async with node(path / "state", workers=4, **settings) as edge:
        await edge.release(FUNCTIONS, NOTES)
        if backed_up:
            assert (await edge.front.checkpoints.ship()).whole
        yield edge


async def write(edge: Node, mib: int = 1) -> tuple[int, str]:
    """Keep another note of so many MiB: status and code ("" for an answer of the function's)."""
    statement = {"sql": "INSERT INTO notes (data) VALUES (zeroblob(?))", "params": [mib << 20]}
    status, _, body = await edge.call("sql", orjson.dumps(statement))
    return status, "" if status == 200 else orjson.loads(body)["code"]


async def count(edge: Node, sleep: int = 0) -> int:
    _, _, body = await edge.call(f"reader?sleep={sleep}", b'{"sql":"SELECT count(*) FROM notes"}')
    return int(orjson.loads(body)["rows"][0][0])


async def status(edge: Node) -> dict[str, Any]:
    async with edge.http.get("/_skerry/status") as answer:
        found: dict[str, Any] = (await answer.json())["database"]
        return found


def checkpointer(edge: Node) -> Child | None:
    return edge.front.checkpoints._child


@also_backed_up
async def test_a_slow_disk_holds_up_no_commit(tmp_path: Path, failing: FailingCalls, backed_up: bool) -> None:
    """Each page that is moved takes 20 ms here, so a checkpoint inside a COMMIT would take 20 s."""
    async with notes(tmp_path, backed_up=backed_up) as edge:
        slow = failing.delay("pwrite", FILE, 0.02)
        assert [await write(edge) for _ in range(8)] == [(200, "")] * 8
        await until(lambda: slow.concerned > 0)
        assert [await write(edge) for _ in range(8)] == [(200, "")] * 8
        assert await count(edge) == 16
        slow.end()
        await until(lambda: edge.front.checkpoints.made > 0)


@also_backed_up
async def test_the_log_begins_anew_while_calls_read_and_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backed_up: bool
) -> None:
    # Where the checkpointer gets no processor in between, calls wait for it at the limit, as long as it takes.
    monkeypatch.setattr(checkpoint_schedule, "READERS_WAIT", 60.0)
    async with notes(tmp_path, backed_up=backed_up, wal_limit=32 << 20) as edge:
        written = 0
        while edge.front.checkpoints.made < 3:
            assert (await asyncio.gather(write(edge), count(edge), write(edge)))[::2] == [(200, "")] * 2
            written += 2
            assert written < 400, "the log grows and grows"
        assert await count(edge) == written
        assert (await status(edge))["writes"] == "open"
        assert edge.front.checkpoints.made >= 3
    (found,) = rows(tmp_path / "state" / wal.FILE)
    assert found == (written,)


@also_backed_up
async def test_a_checkpointer_that_was_killed_comes_back(
    tmp_path: Path, failing: FailingCalls, backed_up: bool
) -> None:
    async with notes(tmp_path, backed_up=backed_up) as edge:
        slow = failing.delay("pwrite", FILE, 0.02)
        for _ in range(6):
            assert await write(edge) == (200, "")
        await until(lambda: slow.concerned > 0)
        first = checkpointer(edge)
        assert first is not None
        first.kill()
        await until(lambda: checkpointer(edge) not in (None, first))
        slow.end()
        await until(lambda: edge.front.checkpoints.made > 0)
        assert await write(edge) == (200, "")
        assert await count(edge) == 7


@also_backed_up
async def test_a_disk_that_fails_the_checkpointer_fails_no_call(
    tmp_path: Path, failing: FailingCalls, backed_up: bool
) -> None:
    async with notes(tmp_path, backed_up=backed_up) as edge:
        rules = [failing.fail(call, FILE, errno.EIO, times=ALWAYS) for call in ("fsync", "fdatasync")]
        for _ in range(6):
            assert await write(edge) == (200, "")
        await until(lambda: edge.front.checkpoints.error)
        shown = await status(edge)
        assert "I/O" in shown["checkpoint_error"]
        assert shown["writes"] == "open"
        assert await write(edge) == (200, "")
        for rule in rules:
            rule.end()
        await until(lambda: edge.front.checkpoints.made > 0)
        await until(lambda: not edge.front.checkpoints.error)
        assert await count(edge) == 7


@pytest.mark.parametrize("read", [0, 1, 5, 200])
async def test_a_read_of_the_log_that_fails_is_not_taken_for_zeros(
    tmp_path: Path, failing: FailingCalls, read: int
) -> None:
    """At an orderly end, when the log is moved into the file."""
    text = "printf('%.*c', 1000000, 'x')"
    async with notes(tmp_path) as edge:
        for _ in range(3):
            kept = await edge.call("sql", orjson.dumps({"sql": f"INSERT INTO notes (data) VALUES ({text})"}))
            assert kept[0] == 200
        rule = failing.fail("read", f"{FILE}-wal", errno.EIO, first=read, times=3)
    assert rule.concerned
    failing.clear()
    async with notes(tmp_path) as edge:
        _, _, body = await edge.call("reader", orjson.dumps({"sql": f"SELECT count(*) FROM notes WHERE data = {text}"}))
        assert orjson.loads(body)["rows"] == [[3]]


async def test_one_that_has_nothing_to_do_is_ended(tmp_path: Path, clock: MovedClock) -> None:
    async with notes(tmp_path) as edge:
        for _ in range(6):
            await write(edge)
        await until(lambda: edge.front.checkpoints.made > 0)
        with clock.standing():
            await clock.move(checkpoint_schedule.IDLE / 2)
            assert checkpointer(edge) is not None
            await clock.until(lambda: checkpointer(edge) is None, checkpoint_schedule.IDLE)


@also_backed_up
async def test_readers_cannot_have_the_log_grow_without_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, backed_up: bool
) -> None:
    """At the limit readers wait a moment, then writes are refused, until the log is short again."""
    async with notes(tmp_path, backed_up=backed_up, wal_limit=16 << 20) as edge:
        reading = True

        async def read() -> None:
            while reading:
                await count(edge, 300)

        async with standing_reader(tmp_path):
            readers = [asyncio.ensure_future(read()) for _ in range(2)]
            found = (200, "")
            async with deadline(60):
                while found == (200, ""):
                    found = await write(edge)
            assert found == (503, "wal_full")
            shown = await status(edge)
            assert shown["writes"] == "refused"
            assert shown["wal_bytes"] >= 16 << 20
            assert "are refused until it has less" in caplog.text
            # Others go on.
            assert (await edge.call("plain", b"{}"))[0] == 200
        # Though calls that read overlap all the time, as nobody writes now.
        async with deadline(60):
            while await write(edge) != (200, ""):
                await asyncio.sleep(0.05)
        assert (await status(edge))["writes"] == "open"
        reading = False
        await asyncio.gather(*readers)


@also_backed_up
async def test_a_release_may_write_more_than_the_limit(tmp_path: Path, backed_up: bool) -> None:
    many = (
        "INSERT INTO notes (data) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 24) "
        "SELECT zeroblob(1048576) FROM n"
    )
    async with notes(tmp_path, backed_up=backed_up, wal_limit=16 << 20) as edge:
        # The reader needs the log as it is.
        async with standing_reader(tmp_path):
            await edge.release(FUNCTIONS, [many])
            edge.front.checkpoints.look()
            assert edge.front.checkpoints.size > 24 << 20
            assert await write(edge) == (200, "")
        await until(lambda: edge.front.checkpoints.size < 1 << 20)
        assert await count(edge) == 25


@also_backed_up
async def test_a_change_in_batches_leaves_half_of_the_log_to_calls(tmp_path: Path, backed_up: bool) -> None:
    """It waits there, and goes on once the log is short."""
    fill = [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, data BLOB, done INTEGER DEFAULT 0)",
        "INSERT INTO items (data) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
        "SELECT zeroblob(8000) FROM n",
    ]
    change = (
        "-- skerry: batch items by id\n"
        "UPDATE items SET done = done + 1, data = zeroblob(8001) WHERE id > :after AND id <= :upto"
    )
    async with notes(tmp_path, backed_up=backed_up, wal_limit=16 << 20) as edge:
        await edge.release(FUNCTIONS, fill)
        await until(lambda: edge.front.checkpoints.size < 1 << 20)
        plan, _ = edge.plan(FUNCTIONS, [change])

        async def advance() -> None:
            while True:
                try:
                    return await edge.front.manager.advance(plan, told.append)
                except SyncFailed as failed:
                    # On a machine that is so busy that the reader below stays for half a minute.
                    if failed.code != "wal_full":
                        raise

        told: list[str] = []
        async with standing_reader(tmp_path):
            advancing = asyncio.ensure_future(advance())
            await until(lambda: advancing.done() or any("waits" in text for text in told))
            edge.front.checkpoints.look()
            # With the batch that has crossed the line.
            assert edge.front.checkpoints.size < 12 << 20
            assert edge.front.pool.pressure is wal.Pressure.NONE
            assert await write(edge) == (200, "")
            assert not advancing.done()
        await advancing
        _, _, body = await edge.call("reader", b'{"sql":"SELECT count(*), sum(done) FROM items"}')
        assert orjson.loads(body)["rows"] == [[3000, 3000]]


async def test_what_the_command_sql_writes_counts_for_the_limit(tmp_path: Path) -> None:
    insert = "INSERT INTO notes (data) VALUES (zeroblob(17 << 20))"
    async with notes(tmp_path, wal_limit=16 << 20) as edge:
        path = str(edge.state.path)
        mend = ("sql", insert, "--write", "--reason", "a test", "--json", "--state", path)
        async with standing_reader(tmp_path):
            assert (await command(*mend, SKERRY_EDGE_WAL_LIMIT=str(16 << 20)))[0] == 0
            # The reader needs the log as it is.
            async with deadline(60):
                while (found := await write(edge)) != (503, "wal_full"):
                    assert found == (200, "")
            code, out, _ = await command(*mend, SKERRY_EDGE_WAL_LIMIT=str(16 << 20))
            assert (code, orjson.loads(out)["error"]["code"]) == (1, "wal_full"), out
            reads = ("sql", "SELECT count(*) FROM notes", "--json", "--state", path)
            assert (await command(*reads, SKERRY_EDGE_WAL_LIMIT=str(16 << 20)))[0] == 0
        async with deadline(60):
            while await write(edge) != (200, ""):
                await asyncio.sleep(0.05)
        assert (await command(*mend, SKERRY_EDGE_WAL_LIMIT=str(16 << 20)))[0] == 0


@also_backed_up
async def test_a_node_that_was_stopped_has_all_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backed_up: bool
) -> None:
    monkeypatch.setattr(checkpoint_schedule, "REMOVE_LIMIT", 30.0)
    async with notes(tmp_path, backed_up=backed_up) as edge:
        for _ in range(3):
            assert await write(edge) == (200, "")
    folder = tmp_path / "state" / "db"
    assert sorted(path.name for path in folder.iterdir()) == ["skerry.db", "writer.lock"]
    (tmp_path / "copy.db").write_bytes((folder / "skerry.db").read_bytes())
    assert list(rows(tmp_path / "copy.db")) == [(3,)]


async def kill_in_commit(edge: Node, failing: FailingCalls) -> None:
    """Kill a worker in the sync of its COMMIT."""
    late = failing.delay("fsync", f"{FILE}-wal", 60.0, times=1)
    writing = asyncio.ensure_future(write(edge))
    await until(lambda: late.concerned > 0)
    (busy,) = edge.busy()
    os.kill(busy.child.pid, signal.SIGKILL)
    assert await writing == (502, "commit_unknown")


@also_backed_up
async def test_a_commit_whose_worker_was_killed_in_it_does_not_come_back(
    tmp_path: Path, failing: FailingCalls, clock: MovedClock, backed_up: bool
) -> None:
    """Its frames are in the log, its end isn't in the index: a recovery would take it for committed."""
    async with notes(tmp_path, backed_up=backed_up) as edge:
        # The client is kept waiting as long as it takes.
        clock.stand()
        await kill_in_commit(edge, failing)
        assert await count(edge) == 0
        assert list(recovered(tmp_path)) == [(0,)]


async def test_what_a_killed_commit_left_is_settled_later_where_that_takes_long(
    tmp_path: Path, failing: FailingCalls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller isn't kept waiting."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(checkpoint_schedule, "SETTLE_LIMIT", 0.0)
    async with notes(tmp_path) as edge:
        await kill_in_commit(edge, failing)
        assert "isn't settled yet: it takes long" in caplog.text
        await until(lambda: "the write-ahead log is settled" in caplog.text)
        assert list(recovered(tmp_path)) == [(0,)]


async def test_a_release_whose_applier_was_killed_in_its_commit_does_not_come_back(
    tmp_path: Path, failing: FailingCalls, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notes(tmp_path) as edge:
        # The client is kept waiting as long as it takes.
        clock.stand()
        # The first one is of the log as it was before.
        late = failing.delay("fsync", f"{FILE}-wal", 60.0, first=1, times=1)
        born: list[tuple[str, Child]] = []
        birth = edge.front.processes.birth

        async def seen(kind: Any, **more: Any) -> Child:
            born.append((kind, await birth(kind, **more)))
            return born[-1][1]

        monkeypatch.setattr(edge.front.processes, "birth", seen)
        releasing = asyncio.ensure_future(edge.release(FUNCTIONS, ["INSERT INTO notes (data) VALUES ('x')"]))
        await until(lambda: late.concerned > 0)
        # Others may be born at that time, as a spare worker.
        (applier,) = [child for kind, child in born if kind == "applier"]
        applier.kill()
        with pytest.raises(Exception, match="nothing was changed"):
            await releasing
        assert await count(edge) == 0
        assert list(recovered(tmp_path)) == [(0,)]


@contextlib.asynccontextmanager
async def standing_reader(path: Path) -> AsyncIterator[None]:
    """A reader that needs the log as it is now, until the block ends.

    In a process of its own: this one's locks on a file end when any of its descriptors is closed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, str(path / "state" / wal.FILE), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"reading\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()


def recovered(path: Path) -> Iterator[tuple[Any, ...]]:
    """What a start would find that has the log without its index, as after a loss of power."""
    copy = path / "copy"
    copy.mkdir()
    for name in ("skerry.db", "skerry.db-wal"):
        (copy / name).write_bytes((path / "state" / "db" / name).read_bytes())
    return rows(copy / "skerry.db")


def rows(path: Path) -> Iterator[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        yield from opened.execute("SELECT count(*) FROM notes")
