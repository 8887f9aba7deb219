"""`skerry logs` and `skerry calls` in processes of their own, with a real node, and a replica that is killed."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from control.cli import logs
from control.local.pki import Pki
from edge_runtime.telemetry import records
from tests.support import agents
from tests.support.agents import Control, Edge
from tests.support.deadlines import deadline
from tests.support.environment import without_settings
from tests.support.ports import free_port
from tests.support.releases import answers, first_release

SOON = 40.0
"""Seconds in which what a command prints must come."""


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    async with agents.running_control(database_url, bucket_url, pki) as running:
        yield running


@pytest.fixture
async def edge(control: Control, tmp_path: Path) -> AsyncIterator[Edge]:
    await agents.joined(control, tmp_path / "edge")
    async with agents.edge(tmp_path / "edge") as running:
        await control.until(lambda node: node["protocol"] >= 2)
        yield running


def log(message: str, level: str = "info", call: str = "c-1", **more: Any) -> bytes:
    told = {"t": records.time_text(time.time()), "kind": "log", "level": level, "function": "orders", "version": 3}
    return records.encode({**told, "release": 1, "call": call, "message": message, **more})


async def written(edge: Edge, text: bytes, times: int = 1) -> None:
    """Wait until the node's disk has a text so many times: its ring writes what has come a little later."""
    async with deadline(SOON):
        while sum(path.read_bytes().count(text) for path in edge.front.ring.folder.glob("*.ndjson")) < times:
            await asyncio.sleep(0.02)


class Command:
    """A running `skerry`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = self.err = ""
        self._reading = [
            asyncio.ensure_future(self._read("out", process.stdout)),
            asyncio.ensure_future(self._read("err", process.stderr)),
        ]

    async def _read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while piece := await stream.read(65_536):
            setattr(self, name, getattr(self, name) + piece.decode())

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with deadline(SOON):
                while not condition():
                    assert self.process.returncode is None, (self.out, self.err)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError((self.out, self.err)) from None

    async def ends(self) -> int:
        async with deadline(SOON):
            status = await self.process.wait()
            await asyncio.gather(*self._reading)
        return status


@asynccontextmanager
async def skerry(control: Control, *arguments: str, url: str = "") -> AsyncIterator[Command]:
    environment = without_settings()
    environment |= {"SKERRY_URL": url or control.url, "SKERRY_TOKEN": control.token, "SKERRY_CA": str(control.pki.ca)}
    pipe = asyncio.subprocess.PIPE
    words = (sys.executable, "-m", "control.cli", *arguments)
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=pipe, stderr=pipe)
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_log_is_followed_and_left_by_ctrl_c(control: Control, edge: Edge) -> None:
    await agents.joined(control, edge.front.settings.state.parent / "other", name="far-away")
    await control.server.app.services.databases.background.transaction(
        lambda conn: conn.execute("UPDATE nodes SET state = 'offline' WHERE name = 'far-away'")
    )
    ring = edge.front.ring
    async with skerry(control, "logs", "-f", "--level", "info") as command:
        await command.until(lambda: bool(ring.taps))
        ring.put(log("hidden", "debug"))
        ring.put(log("\x1b[31mred\nnext\u202e line", "warning"))
        away = "1 node is offline or revoked and was not asked: far-away"
        await command.until(lambda: "line" in command.out and away in command.err)
        assert "warning edge-1 orders@3 [c-1] \\x1b[31mred\\nnext\\u202e line\n" in command.out
        assert "hidden" not in command.out
        command.process.send_signal(signal.SIGINT)
        assert await command.ends() == 130
        assert command.err.strip().endswith("interrupted")
        assert "Traceback" not in command.err
    async with asyncio.timeout(30):
        while ring.taps:
            await asyncio.sleep(0.02)


async def test_what_was_logged_comes_in_order_and_ends(control: Control, edge: Edge) -> None:
    for number in range(30):
        edge.front.ring.put(log(f"line {number}", call=f"c-{number % 2}"))
    await written(edge, b'"line 29"')
    async with skerry(control, "logs", "--since", "10m", "--call", "c-1", "--limit", "5", "--json") as command:
        assert await command.ends() == 0, command.err
    shown = [json.loads(line) for line in command.out.splitlines()]
    assert [line["message"] for line in shown] == [f"line {number}" for number in range(21, 30, 2)]
    assert {line["node"] for line in shown} == {"edge-1"}
    assert "1 node has older records that aren't shown" in command.err


async def test_calls_show_where_their_time_went_and_what_they_logged(control: Control, edge: Edge) -> None:
    for number in range(3):
        call = f"c-{number}"
        edge.front.ring.put(log(f"in {call}", call=call))
        told = {"t": records.time_text(time.time()), "kind": "call", "function": "orders", "version": 3, "call": call}
        told |= {"method": "POST", "path": "/functions/orders", "outcome": "ok", "status": 200, "seconds": 0.5 + number}
        if number == 1:
            told |= {"outcome": "time_limit", "status": 504}
        told |= {"times": {"guest": 0.4, "queue": 0.001}, "http": [{"host": "bank.example", "seconds": 0.2}]}
        told["sql"] = [{"statement": "SELECT *\nFROM orders", "count": 2, "seconds": 0.1}]
        edge.front.ring.put(records.encode(told))
    said = {"kind": "node", "level": "warning", "function": "orders", "call": "c-1", "message": "it trapped"}
    edge.front.ring.put(records.encode({"t": records.time_text(time.time()), **said}))
    await written(edge, b'"it trapped"')
    async with skerry(control, "calls", "--slowest", "--limit", "2") as command:
        assert await command.ends() == 0, command.err
    rows = command.out.splitlines()
    assert len(rows) == 11
    assert rows[0].endswith(" edge-1 orders@3 POST /functions/orders 200 2.500 s [c-2]")
    assert rows[1:4] == [
        "    queue 1.0 ms, guest 0.400 s",
        "    0.100 s for SELECT * FROM orders (2 times)",
        "    0.200 s for bank.example",
    ]
    assert rows[4].endswith(" info    in c-2")
    assert rows[5].endswith(" 504 time_limit 1.500 s [c-1]")
    async with skerry(control, "calls", "--failed", "--json") as command:
        assert await command.ends() == 0, command.err
    (shown,) = [json.loads(line) for line in command.out.splitlines()]
    assert (shown["call"], [line["message"] for line in shown["log"]]) == ("c-1", ["in c-1", "it trapped"])


async def test_a_view_outlives_its_replica(control: Control, edge: Edge, tmp_path: Path) -> None:
    """The node polls the one replica, the operator watches through another one, which is killed and started again."""
    settings, port, ring = control.settings, free_port(), edge.front.ring
    environment = os.environ | {
        "SKERRY_METADATA_URL": settings.metadata_url,
        "SKERRY_ARTIFACTS_URL": settings.artifacts_url,
        "SKERRY_TLS_CERT": str(settings.tls_cert),
        "SKERRY_TLS_KEY": str(settings.tls_key),
        "SKERRY_PORT": str(port),
    }

    async def serve() -> asyncio.subprocess.Process:
        words = (sys.executable, "-m", "control.cli", "serve")
        with (tmp_path / "replica.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=output, stderr=output)
        async with deadline(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return process
                except OSError:
                    await asyncio.sleep(0.05)

    numbers = iter(range(1_000_000))
    replica = await serve()
    try:
        async with skerry(control, "logs", "-f", url=f"https://127.0.0.1:{port}") as command:
            await command.until(lambda: bool(ring.taps))

            async def write(count: int) -> str:
                last = ""
                for number in (next(numbers) for _ in range(count)):
                    last = f"line {number};"
                    ring.put(log(last))
                    await asyncio.sleep(0.01)
                return last

            last = await write(50)
            await command.until(lambda: last in command.out)
            replica.kill()
            await replica.wait()
            await write(50)
            replica = await serve()
            last = await write(50)
            await command.until(lambda: last in command.out)
            shown = [int(line.rpartition("line ")[2][:-1]) for line in command.out.splitlines() if "orders@3" in line]
            assert shown == sorted(set(shown))
            assert len(shown) == next(numbers)
            await command.until(lambda: "going on from there" in command.err)
        # The killed replica's watch has ended by its lease, the other one with its operator.
        async with deadline(60):
            while ring.taps:
                await asyncio.sleep(0.05)
    finally:
        if replica.returncode is None:
            replica.kill()
        await replica.wait()


async def test_refusals_and_mistakes_have_their_codes(control: Control) -> None:
    for arguments, status, text in (
        (("logs", "--node", "nobody"), 3, "there is no node nobody"),
        (("logs", "--node", "a", "--group", "b"), 2, "--node is of one group"),
        (("logs", "--call", "not an id"), 3, "invalid_parameter"),
    ):
        async with skerry(control, *arguments) as command:
            assert await command.ends() == status, (command.out, command.err)
        assert text in command.err


def test_text_of_nodes_cannot_steer_a_terminal() -> None:
    assert logs.escaped("a\x1b[2J\r\n\t\x9b\u2028\u2066é") == "a\\x1b[2J\\r\\n\\t\\x9b\\u2028\\u2066é"


async def test_a_node_shows_the_calls_of_its_functions_where_they_are_asked_for(control: Control, edge: Edge) -> None:
    await first_release(control)
    await answers(edge, 1)
    await control.until(lambda node: "functions" in node["capabilities"]["questions"])
    async with skerry(control, "node", "show", "edge-1", "--calls") as command:
        assert await command.ends() == 0, command.err
    assert re.search(r"hello +1 +1 +[1-9][0-9]* +0 +[0-9.]+ ms +[0-9.]+ ms", command.out), command.out
    assert "counted since the node started" in command.err
    async with skerry(control, "node", "show", "edge-1", "--calls", "--json") as command:
        assert await command.ends() == 0, command.err
    (told,) = json.loads(command.out)["calls"]
    assert (told["function"], told["version"], told["release"]) == ("hello", 1, 1)
