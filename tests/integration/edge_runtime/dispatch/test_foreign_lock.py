"""Another program that holds the database is told as that, with its name, and not as slow functions or overload."""

import asyncio
import contextlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime import database_users, wal
from edge_runtime.cli import status as status_command
from edge_runtime.dispatch import foreign_lock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import progress_page
from edge_runtime.sync import identity
from edge_runtime.sync.identity import Identity
from edge_runtime.wal import Pressure
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import holder
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until

FUNCTIONS = {
    "sql": (guest("sql"), {"sql": "write", "time_limit_ms": 2500}),
    "reader": (guest("sql"), {"sql": "read"}),
}
STEPS = "-- skerry: before\nALTER TABLE notes ADD COLUMN more\n-- skerry: flip\nCREATE TABLE more (x)"
INSERT = b"""{"sql":"INSERT INTO notes (text) VALUES ('x')"}"""
COUNT = b'{"sql":"SELECT count(*) FROM notes"}'


async def held(edge: Node) -> None:
    """Wait until the node knows."""
    async with deadline(60):
        while not edge.front.pool.held_by:
            await asyncio.sleep(0.02)


async def test_a_program_that_holds_the_database_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "skerry.database")
    # It is told again after a minute, which all of this may take on a busy machine.
    monkeypatch.setattr(foreign_lock, "LOG_PERIOD", 1e6)
    async with node(tmp_path / "state", lock_wait=3.0, workers=3) as edge:
        await edge.release(FUNCTIONS, ["CREATE TABLE notes (text TEXT)"])
        deaths = edge.front.pool.deaths
        async with holder(edge.state.path / wal.FILE, "BEGIN IMMEDIATE") as pid:
            async with edge.http.post("/functions/sql", data=INSERT) as answer:
                told = await answer.json(content_type=None)
                # Longer than the function's own limit.
                assert (answer.status, told["code"], answer.headers["Retry-After"]) == (503, "database_held", "1")
            name = f"process {pid} (python"
            assert name in told["detail"]
            await held(edge)
            assert name in edge.front.pool.held_by
            # No call waits for its turn behind another one and is told something else.
            found = await asyncio.gather(*(edge.problem("sql", INSERT) for _ in range(5)))
            assert set(found) == {(503, "database_held")}
            assert (await edge.call("reader", COUNT))[0] == 200
            shown = await asyncio.to_thread(status_command.read_status, f"127.0.0.1:{edge.front.port}", "")
            assert name in shown["database"]["held_by"]
            assert name in status_command.render(shown)
            async with edge.http.get("/_skerry/metrics") as answer:
                assert "skerry_edge_database_held 1.0" in await answer.text()
            mend = ("UPDATE notes SET text = 'y'", "--write", "--reason", "a test")
            mending = asyncio.ensure_future(command("sql", "--json", "--state", str(edge.state.path), *mend))
            for change in ("CREATE TABLE more (x)", STEPS):
                with pytest.raises(SyncFailed, match=f"It is held by process {pid}") as failed:
                    await edge.release(FUNCTIONS, [change])
                assert failed.value.code == "database_held"
            # Also where there is something new, which is loaded on trial before.
            with pytest.raises(SyncFailed, match=f"It is held by process {pid}") as failed:
                await edge.release({**FUNCTIONS, "new": guest("echo")})
            assert failed.value.code == "database_held"
            code, out, _ = await mending
            error = json.loads(out)["error"]
            assert (code, error["code"], name in error["message"]) == (1, "database_held", True), error
        await until(lambda: not edge.front.pool.held_by)
        assert (await edge.call("sql", INSERT))[0] == 200
        edge.generation -= 2
        await edge.release(FUNCTIONS, ["CREATE TABLE more (x)"])
        assert edge.front.pool.functions["sql"].breaker.opened == 0
        assert edge.front.pool.deaths - deaths <= 6
    lines = [record.getMessage() for record in caplog.records if record.name == "skerry.database"]
    assert sum("another process holds the database" in line and name in line for line in lines) == 1
    assert sum("free again" in line for line in lines) == 1


async def test_a_call_whose_worker_is_ended_as_it_waits_is_told_the_name(tmp_path: Path) -> None:
    async with node(tmp_path / "state", lock_wait=0.3) as edge:
        await edge.release(FUNCTIONS, ["CREATE TABLE notes (text TEXT)"])
        async with holder(edge.state.path / wal.FILE, "BEGIN IMMEDIATE") as pid:
            async with edge.http.post("/functions/sql", data=INSERT) as answer:
                told = await answer.json(content_type=None)
            assert (told["code"], f"process {pid} (python" in told["detail"]) == ("database_held", True), told


async def test_one_that_has_the_file_exclusively_at_the_start_is_named(tmp_path: Path) -> None:
    """Nothing can be read then, neither by the node nor by the commands."""
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, ["CREATE TABLE notes (text TEXT)"])
    identity.write(state, Identity("1", "edge-1", "default", "https://127.0.0.1:1", "secret", datetime.now(UTC)))
    async with holder(state / wal.FILE, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE") as pid:
        name = f"process {pid} (python"
        code, _, err = await command("run", "--state", str(state), "--listen", "127.0.0.1:0", "--workers", "1")
        *_, last = err.splitlines()
        assert (code, "holds the database" in last, name in last) == (1, True, True), err
        copy = str(tmp_path / "copy.db")
        verbs = (("sql", "SELECT 1"), ("check-database",), ("backup", copy))
        ended = await asyncio.gather(*(command(*verb, "--json", "--state", str(state)) for verb in verbs))
        for code, out, _ in ended:
            error = json.loads(out)["error"]
            assert (code, error["code"], name in error["message"]) == (1, "database_held", True), error
    async with node(state) as edge:
        assert (await edge.call("sql", INSERT))[0] == 200


async def test_one_that_excludes_readers_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "skerry.db"
    async with holder(path, "PRAGMA user_version"):
        assert database_users.lock_holder(path) is None
    async with holder(path, "BEGIN EXCLUSIVE") as pid:
        found = database_users.lock_holder(path)
        assert found is not None
        assert found.pid == pid


async def test_quick_writes_of_others_do_no_harm(tmp_path: Path) -> None:
    """A call begins as soon as the other one has ended, and its own limit doesn't run meanwhile."""
    async with node(tmp_path / "state") as edge:
        limited = (guest("sql"), {"sql": "write", "time_limit_ms": 1000})
        await edge.release({"sql": limited}, ["CREATE TABLE notes (text TEXT)"])
        status = 0
        while status != 200:
            async with holder(edge.state.path / wal.FILE, "BEGIN IMMEDIATE"):
                writing = asyncio.ensure_future(edge.call("sql?sleep=300", INSERT))
                began = time.monotonic()
                while time.monotonic() - began < 0.8:
                    await asyncio.sleep(0.05)
                    assert not writing.done() or time.monotonic() - began > 1.5
            status, _, body = await writing
            # On a busy machine the other one may be none of the quick ones, and the call itself may take long.
            assert status == 200 or time.monotonic() - began > 1.5, body


LOCKS = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
time.sleep(600)
"""


class Waiting:
    """A worker that waits for the lock."""

    child = SimpleNamespace(pid=1)
    seen = staticmethod(lambda: SimpleNamespace(state=progress_page.WAITING))


@pytest.mark.parametrize("zygote", [0, 4242])
async def test_a_program_that_came_from_outside_of_the_nodes_container_is_none_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zygote: int
) -> None:
    """As by `docker exec`: no process here is its parent. Nor is one its own where a zygote is just started anew."""
    (outside, *_) = (int(pid) for pid in os.listdir("/proc") if pid.isdigit() and database_users.parent(int(pid)) == 0)
    processes: Any = SimpleNamespace(pid=zygote, knows=lambda _: False)
    waiting = Waiting()
    waiting.child = SimpleNamespace(pid=2**22)
    pool: Any = SimpleNamespace(links={waiting}, held_by="", pressure=Pressure.NONE)
    killed: list[int] = []
    monkeypatch.setattr(foreign_lock.os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(database_users, "flock_holder", lambda *_: outside)
    monkeypatch.setattr(database_users, "lock_holder", lambda _: database_users.DatabaseUser(outside, "sqlite3"))
    looks = foreign_lock.ForeignLock(pool, processes, tmp_path / "skerry.db")
    looks.look(0.0)
    looks.look(foreign_lock.LONG)
    assert pool.held_by == f"process {outside} (sqlite3)"
    assert not killed
    # One that has ended meanwhile holds nothing.
    monkeypatch.setattr(database_users, "lock_holder", lambda _: database_users.DatabaseUser(2**22 + 1, "sqlite3"))
    looks.look(2 * foreign_lock.LONG)
    looks.look(4 * foreign_lock.LONG)
    assert not pool.held_by


class Holding:
    """A worker that has a lock and no call."""

    child = SimpleNamespace(pid=2**22)
    seen = staticmethod(lambda: SimpleNamespace(state=progress_page.RUNNING))
    jobs = ()
    killed = ""
    rests = False

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.end = self.ended.append
        self.ready = asyncio.get_running_loop().create_future()


async def test_a_worker_that_has_a_lock_and_no_call_gets_none_until_it_is_looked_again(tmp_path: Path) -> None:
    """No other function's call is to end with it."""
    link, placed = Holding(), list[bool]()
    pool: Any = SimpleNamespace(
        links={link},
        held_by="",
        pressure=Pressure.NONE,
        place=lambda link: placed.append(link.rests),
        feed=lambda: None,
    )
    processes: Any = SimpleNamespace(pid=os.getpid(), knows=lambda _: True)
    looks = foreign_lock.ForeignLock(pool, processes, tmp_path / "skerry.db")
    # It makes the file, perhaps on a slow disk.
    for _ in range(3):
        looks._judge(link.child.pid)
    assert (link.ended, placed) == ([], [])
    link.ready.set_result(None)
    for pid, rests in ((link.child.pid, True), (0, False), (link.child.pid, True)):
        looks._judge(pid)
        assert link.rests is rests
    assert not link.ended
    looks._judge(link.child.pid)
    assert link.ended == ["it has the database locked, and has no call that may"]
    assert placed == [True, False, True]


async def test_a_child_of_the_node_that_it_has_lost_is_ended_where_others_wait_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This process is in the zygote's place."""
    path = tmp_path / foreign_lock.WRITER_LOCK
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", LOCKS, str(path), stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        async with deadline(60):
            await child.stdout.readline()
        known = {child.pid}
        processes: Any = SimpleNamespace(pid=os.getpid(), knows=known.__contains__)
        pool: Any = SimpleNamespace(links=set(), held_by="", pressure=Pressure.NONE)
        looks = foreign_lock.ForeignLock(pool, processes, tmp_path / "skerry.db")
        locks = database_users.file_locks()
        assert database_users.flock_holder(path, locks) == child.pid
        assert {database_users.flock_holder(other, locks) for other in (tmp_path, tmp_path / "none")} == {0}
        # It is known; then nobody waits for it.
        pool.links = {Waiting()}
        looks.look(0.0)
        known.clear()
        pool.links = set()
        looks.look(0.0)
        # One that has SQLite's lock alone recovers the log.
        looks._judge(child.pid)
        assert not caplog.text
        pool.links = {Waiting()}
        looks.look(0.0)
        async with deadline(60):
            await child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    assert f"process {child.pid}, which this node has lost, holds the writer lock: it is ended" in caplog.text
