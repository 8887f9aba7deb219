"""Connections of a node's local HTTP: one answer after the other, clients that don't read, go away, or half do."""

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from edge_runtime.calls import Answer, Refusal
from edge_runtime.connection import UNREAD_WAIT, Connection
from edge_runtime.requests import Exchange
from edge_runtime.server import Server
from edge_runtime.settings import Settings
from tests.support.edge import until

HEAD = b"content-type: text/plain\r\n"


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the front's own loop: others write and wait in another way."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(**fixtures))

    return run


class Echo:
    """Answers with the body when it is let go, or at once; /large with 4 MB, /larger with 20, /refused not at all."""

    def __init__(self) -> None:
        self.runs: list[tuple[Exchange, Connection]] = []
        self.left: list[Exchange] = []
        self.at_once = True

    def admit(self, asked: Exchange) -> Refusal | None:
        return Refusal(403, "host_refused", "No.") if asked.path == b"/refused" else None

    def run(self, asked: Exchange, connection: Connection) -> None:
        self.runs.append((asked, connection))
        if self.at_once:
            self.answer(len(self.runs) - 1)

    def leave(self, asked: Exchange) -> None:
        self.left.append(asked)

    def answer(self, number: int) -> None:
        asked, connection = self.runs[number]
        large = {b"/large": 800_000, b"/larger": 4_000_000}.get(asked.path)
        body = b"large" * large if large else b"".join(asked.pieces)
        status = int(asked.query or 200)
        connection.done(Answer(status, HEAD, body if status == 200 else b"", 7))


class Site:
    def __init__(self, app: Echo, server: Server, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port

    @property
    def held(self) -> int:
        return self.server.shared.memory.held

    @contextlib.asynccontextmanager
    async def client(self, *, small: bool = False) -> AsyncIterator["Client"]:
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if small else 65_536)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        async with asyncio.timeout(10):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n").split(b"\r\n")
        pairs = [line.split(b": ", 1) for line in lines]
        assert len({name.lower() for name, _ in pairs}) == len(pairs)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        status, headers = await self.head()
        async with asyncio.timeout(10):
            return status, headers, await self.reader.readexactly(int(headers[b"content-length"]))

    async def end(self) -> bytes:
        """What comes until the node closes."""
        async with asyncio.timeout(10):
            return await self.reader.read(-1)


@contextlib.asynccontextmanager
async def site(tmp_path: Path, **settings: Any) -> AsyncIterator[Site]:
    app = Echo()
    server = Server(app, Settings(state=tmp_path, listen="127.0.0.1:0", **{"stop_limit": 2.0, **settings}))
    port = server.bind()
    running = asyncio.ensure_future(server.run_until_stopped())
    try:
        yield Site(app, server, port)
    finally:
        server.stop()
        async with asyncio.timeout(10):
            await running
            server.close()
            while server.shared.live:
                await asyncio.sleep(0.01)


def post(path: str = "/", body: bytes = b"", more: str = "", version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


# Order


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
async def test_a_client_that_does_not_read_has_one_answer_waiting(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client(small=True) as client:
        client.send(post("/large") * 5)
        await until(lambda: bool(edge.server.shared.slow))
        await asyncio.sleep(0.1)
        assert len(edge.app.runs) == 1
        assert 0 < sum(edge.server.shared.slow.values()) <= 4_000_000
        for _ in range(5):
            assert (await client.answer())[2] == b"large" * 800_000
        assert len(edge.app.runs) == 5
        await until(lambda: not edge.server.shared.slow)
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
            assert sum(edge.server.shared.slow.values()) <= 4_000_000
            clients.append(client)
        await until(lambda: len(edge.server.shared.live) == len(edge.server.shared.slow) < 6)
        # Those that had waited longest were given up; the last one gets its own.
        assert (await clients[-1].answer())[2] == b"large" * 800_000
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await clients[0].answer()


@on_uvloop
async def test_a_client_that_reads_nothing_any_more_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time passes here, however busy the machine is: the waits are said to be over."""
    monkeypatch.setattr("edge_runtime.server.SWEEP", 0.05)
    async with site(tmp_path) as edge, edge.client(small=True) as stuck, edge.client(small=True) as slow:
        waiting = edge.server.shared.slow
        stuck.send(post("/larger"))
        await until(lambda: len(waiting) == 1)
        slow.send(post("/larger"))
        await until(lambda: len(waiting) == 2)
        one, other = waiting
        assert all(0 < c.deadline - asyncio.get_running_loop().time() <= UNREAD_WAIT for c in waiting)

        def given_up() -> bool:
            one.deadline = 0.0  # what its socket took at first is all that it takes
            return edge.server.shared.live == {other}

        left = int((await slow.head())[1][b"content-length"])
        for _ in range(2):
            before = waiting[other]
            while other._transport.get_write_buffer_size() >= before:
                left -= len(await slow.reader.readexactly(100_000))
            # The one that took something has its time again.
            other.deadline = 0.0
            await until(lambda before=before: waiting[other] < before and given_up())
        await slow.reader.readexactly(left)


# Clients that go, or half


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
async def test_a_server_that_stops_answers_what_runs_and_cuts_what_does_not_end(tmp_path: Path) -> None:
    async with site(tmp_path, stop_limit=3.0) as edge, contextlib.AsyncExitStack() as stack:
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
    with contextlib.suppress(ConnectionResetError):
        assert await hangs.end() == b""


@on_uvloop
async def test_the_last_answer_arrives_though_more_had_been_sent(tmp_path: Path) -> None:
    async with site(tmp_path) as edge, edge.client(small=True) as client:
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
