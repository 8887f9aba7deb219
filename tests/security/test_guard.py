"""The attacks on a connection that need no credential: each is cut off, and memory stays bounded."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from control.access.certificates import server_context
from control.local.pki import Pki
from control.web import connection_limits
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.wire_tap import Tap, tap

MEGABYTE = 1024 * 1024
BOUND = 40 * MEGABYTE
"""How much an attack may grow this process, which holds its client too; unbounded, each takes hundreds."""


@dataclass
class Site:
    url: str
    ca: Path
    state: ServerState
    clock: SetClock = field(default_factory=lambda: SetClock(timers="stand"))
    sweeps: int = 0
    """How often all connections were looked at."""
    served: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    """Lets the requests to /held be answered."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client of /held has gone."""

    def tap(self) -> contextlib.AbstractAsyncContextManager[Tap]:
        return tap(self.url, self.ca)


@pytest.fixture
async def site(pki: Pki) -> AsyncIterator[Site]:
    """Limited connections in front of an application that reads its bodies; its sweep is ten times quicker, and goes by
    a clock that stands until the test moves it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.served.append(scope["path"])
        size = 0
        if scope["path"] == "/held":
            await receive()
            released = asyncio.ensure_future(found.release.wait())
            going = asyncio.ensure_future(receive())
            await asyncio.wait([released, going], return_when=asyncio.FIRST_COMPLETED)
            if going.done():
                found.gone.set()
            going.cancel()
            released.cancel()
        elif scope["path"] != "/unread":
            while True:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect":
                    return
                if not message.get("more_body"):
                    break
        # The kernel's own buffers may take some 10 MB that nobody reads.
        pieces = [str(size).encode()] if scope["path"] != "/large" else [bytes(MEGABYTE)] * 64
        headers = [(b"content-length", str(sum(map(len, pieces))).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(
        app,
        http=connection_limits.LimitedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        interface="asgi3",
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    context = server_context(pki.certificate, pki.key)

    def protocol() -> connection_limits.LimitedProtocol:
        made = connection_limits.LimitedProtocol(config=config, server_state=state, app_state={})
        made.clock = found.clock
        return made

    server = await loop.create_server(
        protocol,
        "127.0.0.1",
        0,
        ssl=context,
    )
    found = Site(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", pki.ca, state)

    async def sweeps() -> None:
        while True:
            found.sweeps += 1
            connection_limits.sweep(state.connections, found.clock.monotonic())
            await asyncio.sleep(0.05)

    sweeper = asyncio.create_task(sweeps())
    yield found
    sweeper.cancel()
    server.close()
    for connection in list(state.connections):
        connection.transport.abort()
    for task in list(state.tasks):
        task.cancel()
    await asyncio.gather(sweeper, *state.tasks, return_exceptions=True)


def memory() -> int:
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss


async def until(holds: Callable[[], object]) -> None:
    async with deadline(30):
        while not holds():
            await asyncio.sleep(0.01)


async def until_connected(site: Site) -> list[Any]:
    """The connections, once there is one."""
    await until(lambda: site.state.connections)
    return list(site.state.connections)


async def until_gone(site: Site) -> None:
    await until(lambda: not site.state.connections)


async def swept(site: Site) -> None:
    """Wait until the sweep has looked by the time that the clock says now."""
    before = site.sweeps
    await until(lambda: site.sweeps > before + 1)


async def drips(site: Site, client: Tap) -> None:
    """Send a body byte by byte until its time is up, which each byte puts off by hardly anything."""
    [connection] = await until_connected(site)
    for number in range(10):
        assert await client.send(b"x")
        await until(lambda number=number: connection._body_bytes > number)  # type: ignore[misc]
        site.clock.advance(0.95 * connection_limits.BODY_SECONDS / 10)
    await swept(site)
    assert site.state.connections
    site.clock.advance(0.1 * connection_limits.BODY_SECONDS)


async def flood(client: Tap, piece: bytes, total: int) -> int:
    """Send `piece` again and again; how much went out before the server closed."""
    sent = 0
    while sent < total and await client.send(piece):
        sent += len(piece)
    return sent


def refused(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/problem+json"
    assert answer[1]["connection"] == "close"
    assert orjson.loads(answer[2])["code"] == code


async def test_ordinary_requests_on_one_connection(site: Site) -> None:
    async with site.tap() as client:
        for size in (0, 1, 300_000):
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
            assert (await client.answer())[::2] == (200, str(size).encode())
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(50):
            await client.send(b"3\r\nabc\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.answer())[::2] == (200, b"150")


async def test_a_head_of_100_megabytes(site: Site) -> None:
    before = memory()
    async with site.tap() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\na: ")
        sent = await flood(client, bytes(b"x" * 65536), 100 * MEGABYTE)
        assert sent < 50 * MEGABYTE
        assert memory() - before < BOUND
    await until_gone(site)
    assert site.served == []


async def test_the_refusal_of_a_large_head_says_so(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * connection_limits.HEAD_BYTES)
        refused(await client.answer(), 431, "head_too_large")
        assert await client.closed()
    async with site.tap() as client:
        await client.send(b"GET /" + b"x" * connection_limits.HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        refused(await client.answer(), 431, "head_too_large")
    assert site.served == []


async def test_200_000_headers(site: Site) -> None:
    before = memory()
    async with site.tap() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
        await flood(client, b"".join(b"h%d: 1\r\n" % n for n in range(1000)), 200 * 8000)
        assert memory() - before < BOUND
        refused(await client.answer(), 431, "too_many_headers")
    await until_gone(site)
    assert site.served == []


async def test_a_head_that_never_ends(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
        [connection] = await until_connected(site)
        # What goes on coming moves no deadline.
        for number in range(10):
            assert await client.send(b"h%d: 1\r\n" % number)
            await until(lambda number=number: len(connection.headers) > number)  # type: ignore[misc]
            site.clock.advance(0.95 * connection_limits.HEAD_SECONDS / 10)
        await swept(site)
        assert not client.reader.at_eof()
        site.clock.advance(0.1 * connection_limits.HEAD_SECONDS)
        refused(await client.answer(), 408, "head_too_slow")
    await until_gone(site)


async def test_a_connection_that_says_nothing(site: Site) -> None:
    async with site.tap() as client:
        await until_connected(site)
        site.clock.advance(connection_limits.HEAD_SECONDS - 0.1)
        await swept(site)
        assert len(site.state.connections) == 1
        site.clock.advance(0.2)
        assert await client.closed(30)
    await until_gone(site)


async def test_a_connection_that_is_idle_after_an_answer(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer())[0] == 200
        (connection,) = site.state.connections
        site.clock.advance(connection.timeout_keep_alive - 0.1)
        await client.send(b"\r\n\r\n")  # line breaks aren't a request
        await swept(site)
        assert len(site.state.connections) == 1
        site.clock.advance(0.2)
        assert await client.closed(30)


async def test_a_body_that_drips(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        await drips(site, client)
        refused(await client.answer(), 408, "body_timeout")
    await until_gone(site)
    async with deadline(30):
        while site.state.tasks:  # the application has heard of it
            await asyncio.sleep(0.01)


async def test_a_body_that_drips_after_the_answer(site: Site) -> None:
    """The application answered without reading; the rest of the body must not hold the connection for ever."""
    async with site.tap() as client:
        await client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert (await client.answer())[0] == 200
        await drips(site, client)
    await until_gone(site)


async def test_a_steady_body_may_take_longer_than_the_grace(site: Site) -> None:
    pieces, size = 40, connection_limits.BODY_RATE
    async with site.tap() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (pieces * size))
        [connection] = await until_connected(site)
        for number in range(pieces):
            assert await client.send(bytes(size))
            await until(lambda number=number: connection._body_bytes >= (number + 1) * size)  # type: ignore[misc]
            site.clock.advance(1.0)
            await swept(site)
        assert (await client.answer())[::2] == (200, str(pieces * size).encode())


async def test_pipelined_requests_without_bound(site: Site) -> None:
    before = memory()
    async with site.tap() as client:
        await client.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        sent = await flood(client, b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * 2000, 100 * MEGABYTE)
        assert sent < 50 * MEGABYTE
        assert memory() - before < BOUND
        assert await client.closed()
    await until_gone(site)
    assert site.served == ["/held"]


async def test_one_more_than_may_wait_behind_another(site: Site) -> None:
    async with site.tap() as client:
        requests = b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * (
            1 + connection_limits.PIPELINED
        )
        await client.send(requests)
        # All are whole: no deadline ends it.
        assert await client.closed(30)
    assert site.served == ["/held"]


async def test_pipelined_large_bodies(site: Site) -> None:
    before = memory()
    async with site.tap() as client:
        await client.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await client.send(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (100 * MEGABYTE))
        flooding = asyncio.create_task(flood(client, bytes(65536), 100 * MEGABYTE))
        await asyncio.wait([flooding], timeout=1.5)
        assert memory() - before < BOUND
        assert not flooding.done() or flooding.result() < 50 * MEGABYTE
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_a_few_pipelined_requests_are_answered_in_order(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"".join(b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (n, n) + bytes(n)
                                   for n in range(1 + connection_limits.PIPELINED)))  # fmt: skip
        for number in range(1 + connection_limits.PIPELINED):
            assert (await client.answer())[::2] == (200, str(number).encode())
    assert site.served == ["/0", "/1", "/2"]


@pytest.mark.parametrize("what", ["extensions", "trailers", "one trailer"])
async def test_a_chunked_body_without_content(site: Site, what: str) -> None:
    before = memory()
    async with site.tap() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        if what == "extensions":
            await client.send(b"1;")
        elif what == "trailers":
            await client.send(b"0\r\n")
        else:
            await client.send(b"0\r\na: ")
        piece = b"a: b\r\n" * 8192 if what == "trailers" else b"x" * 65536
        assert await flood(client, piece, 100 * MEGABYTE) < 50 * MEGABYTE
        assert memory() - before < BOUND
    await until_gone(site)


async def test_an_answer_that_nobody_reads(site: Site) -> None:
    async with site.tap() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        [connection] = await until_connected(site)
        await until(lambda: connection.write_deadline < connection_limits.NEVER)
        assert connection.write_deadline == site.clock.monotonic() + connection_limits.WRITE_SECONDS
        # The kernel's buffers may have taken some more meanwhile, which puts it off.
        while site.state.connections:
            site.clock.advance(connection_limits.WRITE_SECONDS + 0.1)
            await swept(site)


async def test_more_connections_than_allowed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "CONNECTIONS", 2)
    async with site.tap() as first, site.tap() as second:
        for client in (first, second):
            await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer())[0] == 200
        async with site.tap() as third:
            assert await third.closed()
        await first.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await first.answer())[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request(site: Site, request_: bytes) -> None:
    async with site.tap() as client:
        await client.send(request_)
        refused(await client.answer(), 400, "bad_request")
        assert await client.closed()
    assert site.served == []


async def test_an_upgrade_is_ignored(site: Site) -> None:
    async with site.tap() as client:
        for _ in range(2):
            await client.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            assert (await client.answer())[0] == 200


async def test_a_client_that_goes_away_is_seen(site: Site) -> None:
    async with site.tap() as client:
        await client.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        async with deadline(30):
            while not site.served:
                await asyncio.sleep(0.01)
    async with deadline(30):
        await site.gone.wait()
