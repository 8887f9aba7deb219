"""Clients that don't read their answers: what waits for them is bounded, and is told."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from edge_runtime.web.connection import UNREAD_WAIT
from tests.support.connections import on_uvloop, post, site
from tests.support.edge import until
from tests.support.moved_clock import MovedClock


@on_uvloop
async def test_a_client_that_does_not_read_has_one_answer_waiting(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client(small=True) as client:
        client.send(post("/large") * 5)
        await until(lambda: bool(edge.server.shared.unread.of_connection))
        await asyncio.sleep(0.1)
        assert len(edge.app.runs) == 1
        assert 0 < sum(edge.server.shared.unread.of_connection.values()) <= 4_000_000
        for _ in range(5):
            assert (await client.answer())[2] == b"large" * 800_000
        assert len(edge.app.runs) == 5
        await until(lambda: not edge.server.shared.unread.of_connection)
        client.send(post(body=b"still"))
        assert (await client.answer())[2] == b"still"


@on_uvloop
async def test_answers_that_wait_have_a_limit_together(tmp_path: Path) -> None:
    async with site(tmp_path, answer_memory=4_000_000) as edge, contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(6):
            client = await stack.enter_async_context(edge.client(small=True))
            client.send(post("/large"))
            await until(lambda number=number: len(edge.app.runs) == number + 1)
            assert sum(edge.server.shared.unread.of_connection.values()) <= 4_000_000
            clients.append(client)
        await until(lambda: len(edge.server.shared.live) == len(edge.server.shared.unread.of_connection) < 6)
        # Those that had waited longest were given up; the last one gets its own.
        assert (await clients[-1].answer())[2] == b"large" * 800_000
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await clients[0].answer()


@on_uvloop
async def test_one_functions_answers_do_not_cost_those_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, answer_memory=80_000_000) as edge, contextlib.AsyncExitStack() as stack:
        shared = edge.server.shared
        other = await stack.enter_async_context(edge.client(small=True))
        other.send(post("/larger", more="authorization: other\r\n"))
        await until(lambda: shared.unread.of_function.keys() == {"other"})
        clients = []
        for number in range(2, 6):
            client = await stack.enter_async_context(edge.client(small=True))
            client.send(post("/larger", more="authorization: greedy\r\n"))
            await until(lambda number=number: len(edge.app.runs) == number)
            clients.append(client)
        await until(lambda: shared.unread.given_up == 2 and len(shared.live) == len(shared.unread.of_connection))
        assert 0 < shared.unread.of_function["greedy"] <= 40_000_000
        assert (
            shared.unread.bytes == sum(shared.unread.of_function.values()) == sum(shared.unread.of_connection.values())
        )
        # The one that has waited longest of all has its answer, and so has the last.
        for client in (other, clients[-1]):
            assert (await client.answer())[2] == b"large" * 4_000_000
        told = [r.getMessage() for r in caplog.records if "is given up" in r.getMessage()]
        assert len(told) == 1
        assert told[0].startswith("an answer of greedy is given up, since clients leave")
    assert (shared.unread.bytes, shared.unread.of_function) == (0, {})


@on_uvloop
async def test_a_client_that_reads_nothing_any_more_is_given_up(tmp_path: Path, clock: MovedClock) -> None:
    async with site(tmp_path) as edge, edge.client(small=True) as stuck, edge.client(small=True) as slow:
        waiting = edge.server.shared.unread.of_connection
        with clock.standing():
            stuck.send(post("/larger"))
            await until(lambda: len(waiting) == 1)
            slow.send(post("/larger"))
            await until(lambda: len(waiting) == 2)
            _, other = waiting
            assert [c.deadline for c in waiting] == [clock.monotonic() + UNREAD_WAIT] * 2
            left = int((await slow.head())[1][b"content-length"])
            # What the first one's socket takes at first may give it its time once more.
            for _ in range(4):
                assert other in edge.server.shared.live
                before = waiting[other]
                while waiting[other] >= before:
                    left -= len(await slow.reader.readexactly(100_000))
                # The one that took something has its time again.
                assert other.deadline == clock.monotonic() + UNREAD_WAIT
                await clock.move(0.75 * UNREAD_WAIT)
            await until(lambda: edge.server.shared.live == {other})
            # Also where it has taken but a part of what the socket was given.
            edge.server.shared.unread.note(other, other._left() + 1)
            other.late(now := clock.monotonic())
            assert (other.deadline, waiting[other]) == (now + UNREAD_WAIT, other._left())
            await slow.reader.readexactly(left)


# Clients that go, or half
