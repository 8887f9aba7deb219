"""Connections of a node's local HTTP: one answer after the other, clients that don't read, go away, or half do."""

import asyncio
import contextlib
import gc
import socket
import struct
from pathlib import Path

import pytest

from edge_runtime.dispatch.worker_socket import BUFFER
from edge_runtime.web.connection import HttpConnection
from tests.support.connections import Client, on_uvloop, post, site
from tests.support.edge import until
from tests.support.moved_clock import MovedClock


@on_uvloop
async def test_a_connections_requests_are_run_one_after_the_other(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        edge.app.at_once = False
        client.send(b"".join(post(body=b"%d" % k) for k in range(3)) + post("/refused") + post(body=b"last"))
        for number in range(4):
            await until(lambda number=number: len(edge.app.runs) == number + 1)
            edge.app.answer(number)
        answers = [await client.answer() for _ in range(5)]
        assert [status for status, _, _ in answers] == [200, 200, 200, 403, 200]
        assert [body for status, _, body in answers if status == 200] == [b"0", b"1", b"2", b"last"]
        assert answers[0][1][b"skerry-release"] == b"7"
        assert answers[0][1][b"date"].endswith(b" GMT")
        assert edge.held == 0


@on_uvloop
async def test_what_comes_behind_waits_in_the_clients_socket(tmp_path: Path) -> None:
    async with site(tmp_path, body_memory=4_000_000) as edge, edge.client() as client:
        edge.app.at_once = False
        client.send(post(body=b"1") + post(body=b"2"))
        await until(lambda: len(edge.app.runs) == 1)
        # More than the node would hold, of which it takes none meanwhile.
        client.send(post(body=b"3" * 3_000_000) * 4)
        await asyncio.sleep(0.2)
        assert edge.held < 600_000
        edge.app.at_once = True
        edge.app.answer(0)
        assert [len((await client.answer())[2]) for _ in range(6)] == [1, 1, *[3_000_000] * 4]
        assert edge.held == 0


@on_uvloop
async def test_what_cannot_be_read_is_refused_in_its_turn(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        edge.app.at_once = False
        client.send(post(body=b"1") + b"nonsense\r\n\r\n")
        await until(lambda: len(edge.app.runs) == 1)
        edge.app.answer(0)
        assert (await client.answer())[2] == b"1"
        status, headers, _ = await client.answer()
        assert (status, headers[b"connection"]) == (400, b"close")
        assert await client.end() == b""


# Clients that don't read


@on_uvloop
async def test_a_client_that_has_said_all_is_answered(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        edge.app.at_once = False
        client.send(post(body=b"1") + post(body=b"2"))
        client.writer.write_eof()
        await until(lambda: len(edge.app.left) == 1)
        edge.app.answer(0)
        await until(lambda: len(edge.app.left) == 2)
        assert [asked for asked, _ in edge.app.runs] == edge.app.left
        edge.app.answer(1)
        assert [(await client.answer())[2] for _ in range(2)] == [b"1", b"2"]
        assert await client.end() == b""


@on_uvloop
async def test_a_client_that_goes_is_told_of_and_its_answer_is_nobodys(tmp_path: Path) -> None:
    async with site(tmp_path) as edge:
        edge.app.at_once = False
        async with edge.client() as client:
            client.send(post(body=b"x" * 1000) + post(body=b"y"))
            await until(lambda: len(edge.app.runs) == 1)
            # It is closed by a reset, not by an end that it could still read after.
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: len(edge.app.left) == 1 and not edge.server.shared.live)
        assert edge.held == 1000
        edge.app.answer(0)
        assert edge.held == 0
        assert len(edge.app.runs) == 1


@on_uvloop
async def test_half_a_request_is_none(tmp_path: Path) -> None:
    async with site(tmp_path) as edge:
        for half in (b"POST / HT", post(body=b"whole")[:-1], post().replace(b"h: 0", b"h: 99")):
            async with edge.client() as client:
                client.send(half)
                client.writer.write_eof()
                assert await client.end() == b""
        assert edge.app.runs == []
        assert edge.held == 0


# Answers


@on_uvloop
async def test_a_client_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        edge.app.at_once = False
        head = post(more="expect: 100-continue\r\n").replace(b"length: 0", b"length: 4")
        client.send(post(body=b"first") + head)
        await until(lambda: len(edge.app.runs) == 1)
        edge.app.at_once = True
        edge.app.answer(0)
        assert (await client.answer())[2] == b"first"
        assert await client.head() == (100, {})
        client.send(b"data")
        assert (await client.answer())[2] == b"data"
        # Where the answer is known, it is told that at once.
        client.send(head.replace(b"POST / ", b"POST /refused "))
        status, headers, _ = await client.answer()
        assert (status, headers[b"connection"]) == (403, b"close")


@on_uvloop
async def test_who_still_sends_a_body_can_read_why_it_was_refused(tmp_path: Path) -> None:
    async with site(tmp_path, body_limit=100_000) as edge, edge.client() as client:
        client.send(post("/refused").replace(b"length: 0", b"length: 9000000"))
        for _ in range(90):
            client.send(b"x" * 100_000)
            await client.writer.drain()
        assert (await client.answer())[0] == 403
        assert await client.end() == b""


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 304)])
@on_uvloop
async def test_answers_without_a_body(tmp_path: Path, method: str, status: int) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        client.send(f"{method} /large?{status} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode() + post(body=b"next"))
        answered, headers = await client.head()
        assert answered == status
        assert headers.get(b"content-length") == (b"4000000" if status == 200 else None)
        assert (await client.answer())[2] == b"next"


@pytest.mark.parametrize(
    ("version", "more", "kept"),
    [
        ("1.1", "", None),
        ("1.1", "connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "connection: keep-alive\r\n", True),
    ],
)
@on_uvloop
async def test_a_connection_is_kept_or_not(tmp_path: Path, version: str, more: str, kept: bool | None) -> None:
    async with site(tmp_path) as edge, edge.client() as client:
        client.send(post(body=b"1", more=more, version=version))
        _, headers, body = await client.answer()
        assert body == b"1"
        assert headers.get(b"connection") == {None: None, True: b"keep-alive", False: b"close"}[kept]
        if kept is False:
            assert await client.end() == b""
        else:
            client.send(post(body=b"2"))
            assert (await client.answer())[2] == b"2"


# The end


@on_uvloop
async def test_a_server_that_stops_answers_what_runs_and_cuts_what_does_not_end(
    tmp_path: Path, clock: MovedClock
) -> None:
    async with site(tmp_path, stop_limit=60.0) as edge, contextlib.AsyncExitStack() as stack:
        idle, runs, hangs = [await stack.enter_async_context(edge.client()) for _ in range(3)]
        edge.app.at_once = False
        for client in (runs, hangs):
            client.send(post(body=b"1"))
        await until(lambda: len(edge.app.runs) == 2 and len(edge.server.shared.live) == 3)
        edge.server.stop()
        assert await idle.end() == b""
        edge.app.answer(0)
        status, headers, _ = await runs.answer()
        assert (status, headers[b"connection"]) == (200, b"close")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", edge.port)
        await until(lambda: len(edge.server.shared.live) == 1)
        await clock.move(60.0)
    with contextlib.suppress(ConnectionResetError):
        assert await hangs.end() == b""


@on_uvloop
async def test_a_server_that_stops_answers_once_more_on_connections_in_use(tmp_path: Path, clock: MovedClock) -> None:
    """A client that is about to send its next request is told by the answer to come again on another connection."""
    async with site(tmp_path) as edge, edge.client() as used, edge.client() as new:
        clock.stand()
        used.send(post(body=b"1"))
        assert b"connection" not in (await used.answer())[1]
        await until(lambda: len(edge.server.shared.live) == 2)
        edge.server.stop()
        await until(lambda: edge.server.shared.stopping)
        for client in (used, new):
            client.send(post(body=b"2"))
            status, headers, _ = await client.answer()
            assert (status, headers[b"connection"]) == (200, b"close")
            assert await client.end() == b""


@on_uvloop
async def test_a_connection_that_was_accepted_just_before_the_stop_is_answered(
    tmp_path: Path, clock: MovedClock
) -> None:
    async with site(tmp_path) as edge:
        clock.stand()
        # The loop gets no turn between these.
        sock = socket.create_connection(("127.0.0.1", edge.port))
        listener = edge.server._listener
        assert listener is not None
        listener._accept()
        assert (listener.coming, len(edge.server.shared.live)) == (1, 0)
        edge.server.stop()
        await until(lambda: edge.server.shared.stopping)
        assert not edge.server.shared.empty.is_set(), "what is left at the end of the stop would be cut off"
        reader, writer = await asyncio.open_connection(sock=sock)
        client = Client(reader, writer)
        client.send(post(body=b"1"))
        status, headers, body = await client.answer()
        assert (status, headers[b"connection"], body) == (200, b"close", b"1")
        assert await client.end() == b""
        writer.close()


@on_uvloop
async def test_the_last_answer_arrives_though_more_had_been_sent(tmp_path: Path, clock: MovedClock) -> None:
    async with site(tmp_path) as edge, edge.client(small=True) as client:
        # However long it takes to read so much in small pieces.
        clock.stand()
        edge.app.at_once = False
        client.send(post("/large") + post(body=b"2") + post(body=b"x" * 100_000) * 40)
        await until(lambda: len(edge.app.runs) == 1)
        edge.server.stop()
        await until(lambda: edge.server.shared.stopping)
        edge.app.answer(0)
        # What it hasn't read of the client's would have the system drop what the client hasn't read of the answer.
        await asyncio.sleep(0.3)
        _, headers, body = await client.answer()
        assert (headers[b"connection"], len(body)) == (b"close", 4_000_000)
        assert len(edge.app.runs) == 1


def connections() -> list[HttpConnection]:
    """Those that are in memory. (Compiled classes have no weak references.)"""
    return [one for one in gc.get_objects() if isinstance(one, HttpConnection)]


@on_uvloop
async def test_nothing_holds_an_ended_connection_or_its_bodies(tmp_path: Path) -> None:
    """No cycle, which only the collector would find, and seldom does."""
    gc.collect()
    # Those of tests before, which stay while they are held: one that went meanwhile would hide a new one, or be missed.
    before = connections()
    gc.disable()
    try:
        async with site(tmp_path) as edge:
            for leaves in (False, True):
                edge.app.at_once = not leaves
                async with edge.client() as client:
                    body = b"x" * 300_000
                    client.send(post(body=body)[:200_000])
                    await until(lambda: edge.held > 0)
                    assert len(connections()) == len(before) + 1
                    client.send(post(body=body)[200_000:])
                    if leaves:
                        await until(lambda: len(edge.app.runs) == 1)
                    else:
                        assert (await client.answer())[2] == body
                if leaves:
                    await until(lambda: len(edge.app.left) == 1)
                    edge.app.answer(0)
                edge.app.runs.clear()
                edge.app.left.clear()
                await until(lambda: len(connections()) == len(before))
    finally:
        gc.enable()


@on_uvloop
@pytest.mark.parametrize(
    ("more", "goes"), [("", False), ("connection: close\r\n", False), ("", True)], ids=["kept", "last", "half closed"]
)
async def test_a_large_answer_is_given_to_the_system_piece_by_piece(tmp_path: Path, more: str, goes: bool) -> None:
    """So that the calls of others go on in between; all of it comes, and what was sent behind it is answered then."""
    async with site(tmp_path) as edge, edge.client() as client:
        edge.app.at_once = False
        client.send(post("/larger", more=more))
        await until(lambda: len(edge.app.runs) == 1)
        edge.app.answer(0)
        # Nothing was awaited, so that no other piece could go out.
        connection = edge.app.runs[0][1]
        assert connection._transport.get_write_buffer_size() < BUFFER
        assert connection._left() > 20_000_000 - 2 * BUFFER
        assert edge.server.shared.unread.bytes == connection._left()
        if goes:
            client.writer.write_eof()
        elif not more:
            client.send(post(body=b"next"))
        assert (await client.answer())[2] == b"large" * 4_000_000
        if not (goes or more):
            await until(lambda: len(edge.app.runs) == 2)
            edge.app.answer(1)
            assert (await client.answer())[2] == b"next"
        else:
            assert await client.end() == b""
        await until(lambda: edge.server.shared.unread.bytes == 0)
