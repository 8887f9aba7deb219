"""A node's local HTTP: how much is taken, how long calls wait, and what becomes of clients that go away."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.release.compiler import Compiler
from edge_runtime.web.connection import HEAD_WAIT, KEEP_ALIVE
from edge_runtime.web.server import SWEEP
from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until
from tests.support.edge_process import front_process
from tests.support.lent_node import NodeLender
from tests.support.moved_clock import ClockOfProcess, MovedClock
from tests.support.raw_http import post, raw

FUNCTIONS = {
    "echo": guest("echo"),
    "env": guest("env"),
    "slow": (guest("sql"), {"sql": "read", "time_limit_ms": 60_000}),
    "loop": (guest("loop"), {"time_limit_ms": 60_000}),
}
SLOW = b'{"sql":"SELECT 1"}'


@contextlib.asynccontextmanager
async def serving(path: Path, **settings: Any) -> AsyncIterator[Node]:
    async with node(path / "state", **settings) as edge:
        await edge.release(FUNCTIONS)
        yield edge


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    """Has a node with one worker and little room for bodies."""
    functions = {**FUNCTIONS, "left": guest("echo")}
    made = NodeLender(tmp_path_factory.mktemp("node"), functions, workers=1, body_limit=100_000, body_memory=150_000)
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def lent(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as edge:
        yield edge


in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
"""For a test that is lent the module's node."""


# How much


@in_the_modules_loop
async def test_bodies_have_a_limit(lent: Node) -> None:
    assert (await lent.call("echo", b"x" * 100_000))[0] == 200
    async with raw(lent) as connection:
        # Told by the head alone, before the body.
        await connection.send(post("/functions/echo").replace(b"length: 0", b"length: 100001"))
        status, headers, body = await connection.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert orjson.loads(body)["code"] == "body_too_large"
    async with raw(lent) as connection:
        await connection.send(b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(4):
                await connection.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        status, _, body = await connection.answer()
        assert (status, orjson.loads(body)["code"]) == (413, "body_too_large")
    assert lent.front.server.shared.memory.held == 0


async def test_large_bodies_pass_whole_and_beside_small_ones(tmp_path: Path) -> None:
    body = b"".join(b"%08d" % number for number in range(900_000))
    async with serving(tmp_path) as edge, raw(edge) as connection:
        await edge.call("echo", b"the first")
        small = asyncio.ensure_future(asyncio.gather(*(edge.call("echo", b"%d" % k) for k in range(200))))
        await connection.send(post("/functions/echo").replace(b"length: 0", b"length: %d" % len(body)) + body)
        assert (await connection.answer())[2] == body
        head = b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        sizes = [1, 100_000, 7, 65_536, 3000, 250_000] * 17
        places = [0, *itertools.accumulate(sizes)]
        cut = [body[a:b] for a, b in itertools.pairwise([*places, len(body)])]
        await connection.send(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n")
        assert (await connection.answer())[2] == body
        assert [answer[2] for answer in await small] == [b"%d" % k for k in range(200)]
        assert edge.front.server.shared.memory.held == 0


@in_the_modules_loop
async def test_all_bodies_together_have_a_limit(lent: Node) -> None:
    with lent.standing():
        first = asyncio.ensure_future(lent.call("slow", SLOW + b"\n" * 90_000))
        await until(lambda: lent.front.server.shared.memory.held > 90_000)
        assert await lent.problem("echo", b"x" * 70_000) == (503, "body_memory")
    assert (await first)[0] == 200
    assert (await lent.call("echo", b"x" * 70_000))[0] == 200


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, clock: MovedClock) -> None:
    async with serving(tmp_path, body_wait=60.0) as edge:
        clock.stand()
        for part in (b"", b"half"):
            async with raw(edge) as connection:
                await connection.send(post("/functions/echo").replace(b"length: 0", b"length: 10") + part)
                live = edge.front.server.shared.live
                await until(lambda live=live: any(one.deadline == clock.monotonic() + 60.0 for one in live))
                await clock.move(60.0)
                assert live
                await clock.move(2 * SWEEP)
                status, headers, body = await connection.answer()
                assert (status, headers["connection"]) == (408, "close")
                assert orjson.loads(body)["code"] == "body_timeout"


async def test_a_body_is_waited_for_as_long_by_a_front_of_its_own_process(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass
    clock = ClockOfProcess()
    head = b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n"
    async with front_process(tmp_path / "state", clock=clock, body_wait=60.0) as front:
        await clock.stand()
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(head)
        async with deadline(60):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            answer = asyncio.ensure_future(reader.readline())
            await clock.move(60.0)
            assert await front.echo(b"others are served") == b"others are served"
            assert not answer.done()
            await clock.move(2 * SWEEP)
            assert await answer == b"HTTP/1.1 408 Request Timeout\r\n"
        writer.transport.abort()
        await clock.go()
    clock.close()


@in_the_modules_loop
async def test_heads_have_limits(lent: Node) -> None:
    async with raw(lent) as connection:
        await connection.send(post("/functions/echo", more="".join(f"x-{k}: 1\r\n" for k in range(200))))
        status, _, body = await connection.answer()
        assert (status, orjson.loads(body)["code"]) == (431, "head_too_large")
        assert await connection.ended()
    async with raw(lent) as connection:
        await connection.send(post("/functions/echo", more=f"x-long: {'y' * 40_000}\r\n"))
        assert (await connection.answer())[0] == 431
    async with raw(lent) as connection:
        # One line that doesn't end: the parser never tells of it.
        with contextlib.suppress(ConnectionError):
            await connection.send(b"POST /functions/echo HTTP/1.1\r\nx: " + b"y" * 2_000_000)
        assert await connection.ended()
    async with raw(lent) as connection:
        await connection.send(b"nonsense\r\n\r\n")
        status, headers, _ = await connection.answer()
        assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert (await lent.call("echo", b"still here"))[0] == 200


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, clock: MovedClock) -> None:
    async with serving(tmp_path) as edge:
        live = edge.front.server.shared.live
        with clock.standing():
            async with raw(edge) as silent, raw(edge) as slow:
                await slow.send(b"POST /functions/echo HTTP/1.1\r\nhost: lo")
                await until(lambda: len(live) == 2 and any(one._requests.heading for one in live))
                await clock.move(HEAD_WAIT)
                assert len(live) == 2
                await clock.move(2 * SWEEP)
                assert await silent.ended()
                assert await slow.ended()
            await until(lambda: not live)
            async with raw(edge) as kept:
                await kept.send(post("/functions/echo", b"1"))
                assert (await kept.answer())[2] == b"1"
                # Between two requests there is no hurry.
                await clock.move(KEEP_ALIVE)
                await kept.send(post("/functions/echo", b"2"))
                assert (await kept.answer())[2] == b"2"
                # But there is an end.
                await clock.move(KEEP_ALIVE + 2 * SWEEP)
                assert await kept.ended()


@in_the_modules_loop
async def test_pipelined_requests_are_answered_in_their_order_up_to_a_limit(lent: Node) -> None:
    async with raw(lent) as connection:
        await connection.send(b"".join(post("/functions/echo", b"%d" % k) for k in range(6)))
        assert [(await connection.answer())[2] for _ in range(6)] == [b"%d" % k for k in range(6)]
    async with raw(lent) as connection:
        with contextlib.suppress(ConnectionError):
            await connection.send(post("/functions/echo", b"x") * 5000)
        assert await connection.ended()
    assert (await lent.call("echo", b"still here"))[0] == 200


# How long


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, queue_limit=3) as edge:
        with edge.standing():
            running = [asyncio.ensure_future(edge.call("slow?sleep=5", SLOW)) for _ in range(4)]
            await until(lambda: edge.front.pool.waiting == 3)
            status, headers, body = await edge.call("echo")
            assert (status, headers["retry-after"], orjson.loads(body)["code"]) == (503, "1", "queue_full")
        assert [answer[0] for answer in await asyncio.gather(*running)] == [200] * 4


async def test_a_call_waits_only_so_long(tmp_path: Path, clock: MovedClock) -> None:
    async with serving(tmp_path, workers=1, queue_wait=60.0) as edge:
        clock.stand()
        with edge.standing():
            running = asyncio.ensure_future(edge.call("slow", SLOW))
            await until(edge.busy)
            waiting = asyncio.ensure_future(edge.problem("echo"))
            await until(lambda: edge.front.pool.waiting == 1)
            await clock.move(59.0)
            assert edge.front.pool.waiting == 1
            await clock.move(2.0)
            assert await waiting == (503, "queue_timeout")
        assert (await running)[0] == 200


async def test_a_call_waits_only_so_long_for_a_release(tmp_path: Path, clock: MovedClock) -> None:
    async with serving(tmp_path, workers=1, queue_wait=60.0) as edge:
        clock.stand()
        edge.front.pool.hold_all()
        waiting = asyncio.ensure_future(edge.problem("echo"))
        await until(lambda: edge.front.pool.waiting == 1)
        await clock.move(61.0)
        assert await waiting == (503, "release_changing")
        edge.front.pool.let_go()
        assert (await edge.call("echo"))[0] == 200


@in_the_modules_loop
async def test_first_come_first_served(lent: Node) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await lent.call("slow?sleep=5", SLOW)
        order.append(number)

    with lent.standing():
        first = asyncio.ensure_future(lent.call("slow", SLOW))
        await until(lent.busy)
        tasks = []
        for number in range(10):
            tasks.append(asyncio.ensure_future(one(number)))
            await until(lambda number=number: lent.front.pool.waiting == number + 1)
    await asyncio.gather(first, *tasks)
    assert order == list(range(10))


# Clients that go away


@in_the_modules_loop
async def test_a_client_that_goes_leaves_the_queue(lent: Node) -> None:
    with lent.standing():
        running = asyncio.ensure_future(lent.call("slow", SLOW))
        await until(lent.busy)
        async with raw(lent) as leaving:
            await leaving.send(post("/functions/left", b"x"))
            await until(lambda: lent.front.pool.waiting == 1)
        await until(lambda: lent.front.pool.waiting == 0)
        assert not running.done()
    assert (await running)[0] == 200
    assert lent.front.pool.tallies["left"].outcomes == {"client_gone": 1}
    assert lent.front.server.shared.memory.held == 0


async def test_an_abandoned_call_is_ended_only_where_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stay(_self: Compiler, release: LocalRelease) -> list[LocalFunction]:
        return release.functions

    # Loading better code is something that waits, too.
    monkeypatch.setattr(Compiler, "improve", stay)
    async with serving(tmp_path, workers=1) as edge:
        (pid,) = edge.workers()
        async with raw(edge) as leaving:
            await leaving.send(post("/functions/loop"))
            await until(edge.busy)
        await asyncio.sleep(0.3)
        assert edge.workers() == {pid}
        # Someone else needs the worker now.
        async with asyncio.timeout(30):
            assert (await edge.call("echo", b"mine"))[2] == b"mine"
        assert edge.workers() != {pid}
        assert edge.front.pool.tallies["loop"].outcomes == {"client_gone": 1}


# The end


async def test_a_node_that_stops_answers_what_runs(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, stop_limit=60.0) as edge:
        # However slow the machine is, none has ended when all have come.
        edge.front.pool.hold_all()
        running = [asyncio.ensure_future(edge.call("slow?sleep=500", SLOW)) for _ in range(3)]
        await until(lambda: edge.front.pool.waiting == 3)
        edge.front.pool.let_go()
        assert edge.front.pool.waiting == 2
        edge.front.stop()
        assert [answer[0] for answer in await asyncio.gather(*running)] == [200] * 3
