"""The write-ahead log after an end that was not in order: a failed read costs no row, and nothing is served before."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from control.local.pki import Pki
from edge_runtime import wal
from edge_runtime.children import checkpointer
from edge_runtime.children.zygote import Zygote
from edge_runtime.dispatch import supervisor
from edge_runtime.ipc import births, frames
from edge_runtime.release import checkpoint_schedule, stored_release
from tests.guests.build import guest
from tests.support import edge
from tests.support.agents import running_control
from tests.support.deadlines import deadline, scaled
from tests.support.edge import until
from tests.support.failing_calls import ALWAYS, FailingCalls
from tests.support.forked_programs import may_be_forked
from tests.support.node_process import LIMIT, NodeProcess
from tests.support.services import ServerUrls, drop_bucket, fresh_bucket

pytestmark = pytest.mark.never_retry

WAL = "edge/db/skerry.db-wal"
INSERT = b'{"sql": "INSERT INTO written VALUES (randomblob(500))"}'
COUNT = b'{"sql": "SELECT count(*) FROM written"}'
LEFT = may_be_forked("""
import os, sys
from pathlib import Path
from edge_runtime.sql import database
opened = database.connect_until_exit(Path(sys.argv[1]))
opened.rows("CREATE TABLE written (x)")
opened.rows("INSERT INTO written VALUES (zeroblob(5000000))")
os._exit(0)
""")
"""Leaves a log for which a checkpointer is asked at once."""


@pytest.fixture
def failing(tmp_path: Path) -> FailingCalls:
    return FailingCalls(tmp_path / "rules")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def killed(
    services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NodeProcess]:
    """A node that was killed after it had acknowledged 50 rows, and whose control has ended since."""
    folder = tmp_path_factory.mktemp("killed")
    database_url, bucket_url = await services.fresh_database(), await fresh_bucket(services.artifacts_url)
    async with running_control(database_url, bucket_url, pki) as control:
        made = NodeProcess(control, folder / "node", {})
        await made.join()
        made.functions["sql"] = await control.push("sql", guest("sql"), {"sql": "write"})
        assert await made.start(), made.log.read_text()
        try:
            await made.at_release(await made.release())
            await insert(made, 50)
        finally:
            await made.end(kill=True)
    await drop_bucket(bucket_url)
    await services.give_back(database_url)
    yield made


@pytest.fixture
async def node(killed: NodeProcess, tmp_path: Path, failing: FailingCalls) -> AsyncIterator[NodeProcess]:
    """A copy of the node that was killed, with all that it left behind. It serves its release without control."""
    made = NodeProcess(killed.control, tmp_path / "node", failing.environment)
    made.state.parent.mkdir()
    subprocess.run(["cp", "--archive", killed.state, made.state], check=True)
    try:
        yield made
    finally:
        failing.clear()
        await made.end(kill=True)


async def call(node: NodeProcess, body: bytes) -> str:
    """What the function answers; asked again where no worker could take the call in its time."""
    async with deadline(LIMIT):
        while True:
            async with node.http.post("/functions/sql", data=body) as answer:
                said = await answer.text()
            if answer.status != 503:
                assert answer.status == 200, (said, node.log.read_text())
                return said
            await asyncio.sleep(0.1)


async def workers(node: NodeProcess) -> dict[str, Any]:
    async with node.http.get("/_skerry/status") as answer:
        return (await answer.json())["workers"]


async def insert(node: NodeProcess, rows: int) -> None:
    for _ in range(rows):
        assert "error" not in await call(node, INSERT)


async def test_a_read_that_fails_once_costs_no_row(node: NodeProcess, failing: FailingCalls) -> None:
    for number, read in enumerate((0, 1, 20), 1):
        rule = failing.fail("read", WAL, errno.EIO, first=read)
        assert await node.start(), node.log.read_text()
        assert f"[[{50 * number}]]" in await call(node, COUNT)
        assert rule.concerned == 1, read
        failing.clear()
        # A log for the next start.
        await insert(node, 50)
        await node.end(kill=True)


async def test_nothing_is_served_while_the_log_cannot_be_read(node: NodeProcess, failing: FailingCalls) -> None:
    rule = failing.fail("read", WAL, errno.EIO, times=ALWAYS)
    # The front is there, and waits.
    assert await node.start(), node.log.read_text()
    async with deadline(LIMIT):
        while rule.concerned < 2:
            await asyncio.sleep(0.02)
        async with node.http.get("/_skerry/status") as answer:
            assert (await answer.json())["release"] is None
    failing.clear()
    assert "[[50]]" in await call(node, COUNT)


async def test_all_processes_that_are_killed_at_once_cost_no_row(node: NodeProcess, failing: FailingCalls) -> None:
    """The next one would recover the log, under the same zygote."""
    assert await node.start(), node.log.read_text()
    zygote = (await workers(node))["zygote"]
    for number, read in enumerate((0, 1, 5), 1):
        await insert(node, 20)
        there = f"[[{50 + 20 * number}]]"
        rule = failing.fail("read", WAL, errno.EIO, first=read)
        async with deadline(LIMIT):
            # How often the log is read before a call is answered depends on who is born first.
            while not rule.concerned:
                processes = await workers(node)
                for pid in (*processes["pids"], *processes["spares"]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                status, said = 0, ""
                while status != 200 or "error" in said:
                    async with node.http.post("/functions/sql", data=COUNT) as answer:
                        status, said = answer.status, await answer.text()
                assert there in said
        assert rule.concerned == 1
        failing.clear()
        assert there in await call(node, COUNT)
    assert (await workers(node))["zygote"] == zygote


async def test_a_log_takes_longer_to_read_than_a_child_has_to_be_ready(
    tmp_path: Path, failing: FailingCalls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a child of the zygote's own reads the log for, before any other child has come to it."""
    database = tmp_path / "edge" / wal.FILE
    database.parent.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", LEFT, str(database)], check=True)
    left = wal.read(database)
    assert left is not None
    assert left.bytes >= checkpoint_schedule.START
    limit = scaled(2.0)
    for module, name in ((supervisor, "READY_LIMIT"), (stored_release, "LIMIT"), (checkpoint_schedule, "BEGIN_LIMIT")):
        monkeypatch.setattr(module, name, limit)
    for name, value in failing.environment.items():
        monkeypatch.setenv(name, value)
    rule = failing.delay("read", WAL, limit + 1, times=1)
    async with edge.node(tmp_path / "edge") as node:
        assert node.front.pool.deaths == 0
        assert node.front.checkpoints.error == ""
    assert rule.concerned == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_left_log_is_read_before_the_first_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That may be for a checkpointer, which would read the log within its own limit while workers wait."""
    database = tmp_path / wal.FILE
    database.parent.mkdir()
    subprocess.run([sys.executable, "-c", LEFT, str(database)], check=True)
    recovered: list[frames.ChildSettings] = []
    monkeypatch.setattr(checkpointer, "recover", recovered.append)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(scaled(10.0))
        settings = frames.ChildSettings(str(tmp_path), "FULL")
        ours.shutdown(socket.SHUT_WR)
        Zygote(theirs, births.Arguments(theirs.fileno(), 0, os.getpid(), settings), {}).run()
        assert births.decode_news(ours.recv(births.MESSAGE_BYTES)) == births.Recovering()
    assert recovered == [settings]


async def test_a_file_that_cannot_be_written_is_served_for_reading(node: NodeProcess, failing: FailingCalls) -> None:
    """The log was read, and stays."""
    for error in (errno.EIO, errno.EDQUOT):
        for which in ("pwrite", "write"):
            failing.fail(which, "edge/db/skerry.db", error, times=ALWAYS)
        told = len(node.log.read_text()) if node.log.exists() else 0
        assert await node.start(), node.log.read_text()
        assert "[[50]]" in await call(node, COUNT)
        await until(lambda told=told: "its log stays as it is: disk I/O error" in node.log.read_text()[told:])
        await node.end(kill=True)
        failing.clear()
