"""A node that is lent: what a test leaves behind is found, and the next test gets another one."""

import asyncio
import os
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from edge_runtime import wal
from tests.guests.build import guest
from tests.support import returned
from tests.support.edge import Node, until
from tests.support.lent_node import NodeLender

FUNCTIONS = {
    "echo": guest("echo"),
    "loop": (guest("loop"), {"time_limit_ms": 100}),
    "sql": (guest("sql"), {"sql": "write", "time_limit_ms": 60_000}),
}
TABLES = ["CREATE TABLE kept (text TEXT)", "INSERT INTO kept VALUES ('here')", "CREATE TABLE written (text TEXT)"]


@pytest.fixture
async def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeLender]:
    monkeypatch.setattr(returned, "RETURN_LIMIT", 0.3)
    made = NodeLender(tmp_path, FUNCTIONS, TABLES, written={"written"})
    yield made
    await made.end()


Leaves = Callable[[Node, AsyncExitStack], Awaitable[object]]


async def sql(edge: Node, statement: str) -> None:
    assert (await edge.call("sql", b'{"sql":"%b"}' % statement.encode()))[0] == 200


async def a_row(edge: Node, _: AsyncExitStack) -> object:
    return await sql(edge, "INSERT INTO kept VALUES ('left')")


async def no_row(edge: Node, _: AsyncExitStack) -> object:
    return await sql(edge, "DELETE FROM kept")


async def a_release(edge: Node, _: AsyncExitStack) -> object:
    return await edge.release(FUNCTIONS)


async def a_call(edge: Node, stack: AsyncExitStack) -> object:
    calling = asyncio.ensure_future(asyncio.to_thread(_slow, edge.front.port))
    stack.push_async_callback(asyncio.wait_for, calling, 60)
    await until(edge.busy)
    # It runs until then, however long a busy machine looks for it.
    return stack.callback(os.kill, edge.busy()[0].child.pid, signal.SIGKILL)


def _slow(port: int) -> None:
    where = f"http://127.0.0.1:{port}/functions/sql?sleep=50000"
    subprocess.run(["curl", "-s", "-o", "/dev/null", "--data", '{"sql":"SELECT 1"}', where], check=True)


async def held_calls(edge: Node, stack: AsyncExitStack) -> object:
    edge.front.pool.hold_all()
    return stack.callback(edge.front.pool.let_go)


async def a_connection(edge: Node, stack: AsyncExitStack) -> object:
    _, writer = await asyncio.open_connection("127.0.0.1", edge.front.port)
    return stack.callback(writer.close)


async def a_descriptor(edge: Node, stack: AsyncExitStack) -> object:
    return stack.enter_context((edge.state.path.parent / "open").open("w"))


async def a_process(_: Node, stack: AsyncExitStack) -> object:
    process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
    return stack.callback(process.kill)


async def a_file(edge: Node, _: AsyncExitStack) -> object:
    return (edge.state.path / "left").write_text("x")


async def a_lock(edge: Node, stack: AsyncExitStack) -> object:
    holding = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
    )
    file = str(edge.state.path / wal.FILE)
    process = subprocess.Popen(
        ["python3", "-c", holding, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    stack.enter_context(process)
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


async def no_zygote(edge: Node, _: AsyncExitStack) -> object:
    pid = edge.front.processes.pid
    os.kill(pid, signal.SIGKILL)
    return await until(lambda: edge.front.processes.pid != pid)


@pytest.mark.parametrize(
    ("leaves", "told"),
    [
        (a_row, "row of kept: ('left',)"),
        (no_row, "no more row of kept: ('here',)"),
        (a_release, "no more serving generation: 1"),
        (a_call, "call that runs: "),
        (held_calls, "calls that are held: "),
        (a_connection, "connection: "),
        (a_descriptor, "descriptor "),
        (a_process, "process: "),
        (a_file, "file: "),
        (a_lock, "lock of the database: "),
        (no_zygote, "no more serving zygote: "),
    ],
)
async def test_what_is_left_behind_is_told(lender: NodeLender, leaves: Leaves, told: str) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        async with lender.lent() as edge:
            await leaves(edge, lender.stack)
    assert f"\n{told}" in str(failed.value)
    assert lender.node is None


async def test_one_node_is_lent_until_something_is_left(lender: NodeLender, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    with monkeypatch.context() as patient:
        # A worker that was ended has a follower, as soon as the machine has time for it.
        patient.setattr(returned, "RETURN_LIMIT", 60.0)
        for _ in range(2):
            async with lender.lent() as edge:
                assert (await edge.call("echo", b"x"))[2] == b"x"
                assert await edge.problem("loop") == (504, "time_limit")
                await sql(edge, "INSERT INTO written VALUES ('one more')")
                ports.append(edge.front.port)
    assert ports[0] == ports[1]
    with pytest.raises(pytest.fail.Exception):
        async with lender.lent() as edge:
            (edge.state.path / "left").write_text("x")
    async with lender.lent() as edge:
        assert not (edge.state.path / "left").exists()
        with closing(sqlite3.connect(edge.state.path / wal.FILE)) as opened:
            assert opened.execute("SELECT * FROM written").fetchall() == []
