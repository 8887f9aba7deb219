"""A node that was stopped for a while, alone or with all its processes, as by a machine that sleeps."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import node
from tests.support.edge_process import FrontProcess, front_process

LIMIT = 6.0
"""Seconds of all limits here, far above what is done within them; the pause is longer."""


async def three_under_way(
    front: FrontProcess,
) -> tuple[list[asyncio.Task[tuple[int, bytes]]], asyncio.StreamReader, asyncio.StreamWriter]:
    """Two calls of a function that has one worker at a time: one of them is running now, and the other waits. And the
    connection of a third one, of which a half of the body has been sent."""
    async with deadline(60):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhello")
            await writer.drain()
            calls = [asyncio.create_task(front.call("slow?ms=1500")) for _ in range(2)]
            while not calls[0].done() and not calls[1].done():
                counted = (await front.status())["calls"]
                if (counted["running"], counted["waiting"]) == (1, 1):
                    return calls, reader, writer
                await asyncio.sleep(0.01)
            # This process had no turn while they were so.
            await asyncio.gather(*calls)
            writer.transport.abort()


@pytest.mark.parametrize("alone", [True, False])
async def test_a_pause_is_counted_by_no_limit(tmp_path: Path, alone: bool) -> None:
    async with node(tmp_path / "state") as edge:
        manifest = {"sql": "read", "time_limit_ms": int(LIMIT * 1000), "concurrency": 1}
        change = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1)"
        await edge.release({"slow": (guest("slow"), manifest), "echo": guest("echo")}, [change])
    async with front_process(tmp_path / "state", queue_wait=LIMIT, body_wait=LIMIT) as front:
        workers = (await front.status())["workers"]
        calls, reader, writer = await three_under_way(front)
        pids = [front.pid] if alone else [front.pid, workers["zygote"], *workers["pids"], *workers["spares"]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(LIMIT + 1)
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
        writer.write(b"world")
        for call in calls:
            assert await call == (200, b'{"first":1,"second":1}\n')
        async with deadline(60):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.transport.abort()
        after = await front.status()
        assert after["workers"]["deaths"] == 0
    assert front.logged(b"this process didn't run for")
