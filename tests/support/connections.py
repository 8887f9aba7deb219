"""Connections of a node's local HTTP, with an application that a test steers."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from control.local.pki import Pki
from edge_runtime.dispatch.outcomes import Answer, Refusal
from edge_runtime.dispatch.worker_socket import BUFFER
from edge_runtime.settings import EdgeSettings
from edge_runtime.web.connection import HttpConnection
from edge_runtime.web.parser import Exchange
from edge_runtime.web.server import EdgeServer
from edge_runtime.web.tls_files import TlsFiles
from tests.support import moved_clock
from tests.support.deadlines import deadline

HEAD = b"content-type: text/plain\r\n"
LIMIT = 60.0
"""Seconds for anything that must come to be."""


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
        self.runs: list[tuple[Exchange, HttpConnection]] = []
        self.left: list[Exchange] = []
        self.at_once = True

    def admit(self, asked: Exchange, certificate: bytes | None) -> Refusal | None:
        asked.name = asked.authorization.decode() if asked.authorization else ""
        return Refusal(403, "host_refused", "No.") if asked.path == b"/refused" else None

    def run(self, asked: Exchange, connection: HttpConnection) -> None:
        self.runs.append((asked, connection))
        asked.call = connection.done  # as the call that the front makes of it knows whom to answer
        if self.at_once:
            self.answer(len(self.runs) - 1)

    def leave(self, asked: Exchange) -> None:
        self.left.append(asked)

    def answer(self, number: int) -> None:
        asked, connection = self.runs[number]
        large = {b"/large": 800_000, b"/larger": 4_000_000}.get(asked.path)
        body = b"large" * large if large else b"".join(asked.pieces)
        status = int(asked.query or 200)
        # As what comes from workers.
        pieces = [memoryview(body)[at : at + BUFFER] for at in range(0, len(body), BUFFER)]
        connection.done(Answer(status, HEAD, b"" if status != 200 else pieces if len(body) > BUFFER else body, 7))


class Site:
    """The front's HTTP server with `Echo` in the place of its functions; `site` starts and ends it."""

    def __init__(self, app: Echo, server: EdgeServer, port: int, context: ssl.SSLContext | None) -> None:
        """`context` is the clients', where the server speaks TLS."""
        self._context = context
        self.app = app
        self.server = server
        self.port = port

    @property
    def held(self) -> int:
        """Bytes of bodies that the server holds in memory."""
        return self.server.shared.memory.held

    @contextlib.asynccontextmanager
    async def client(self, *, small: bool = False) -> AsyncIterator["Client"]:
        """Connect until the block ends; `small` is a client that takes little at a time."""
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        name = "localhost" if self._context is not None else None
        reader, writer = await asyncio.open_connection(
            sock=sock, limit=4096 if small else 65_536, ssl=self._context, server_hostname=name
        )
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Client:
    """A raw HTTP connection to the front."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Read an answer's status and headers; each header's name comes once."""
        async with deadline(LIMIT):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n").split(b"\r\n")
        pairs = [line.split(b": ", 1) for line in lines]
        assert len({name.lower() for name, _ in pairs}) == len(pairs)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """Read a whole answer: status, headers, body."""
        status, headers = await self.head()
        async with deadline(LIMIT):
            return status, headers, await self.reader.readexactly(int(headers[b"content-length"]))

    async def end(self) -> bytes:
        """What comes until the node closes."""
        async with deadline(LIMIT):
            return await self.reader.read(-1)


@contextlib.asynccontextmanager
async def site(tmp_path: Path, pki: Pki | None = None, **settings: Any) -> AsyncIterator[Site]:
    """Run the front's HTTP server with `Echo` on a free port until the block ends; `settings` are the node's. With a
    `pki` it speaks TLS."""
    app = Echo()
    made = EdgeSettings(state=tmp_path, listen="127.0.0.1:0", **{"stop_limit": 2.0, **settings})
    tls_files = TlsFiles(pki.certificate, pki.key, None) if pki is not None else None
    server = EdgeServer(app, made, None, tls_files)
    port = server.bind()
    running = asyncio.ensure_future(server.run_until_stopped())
    while server._listener is None:
        await asyncio.sleep(0)
    try:
        yield Site(app, server, port, ssl.create_default_context(cafile=pki.ca) if pki is not None else None)
    finally:
        moved_clock.let_go()
        server.stop()
        async with deadline(LIMIT):
            await running
            server.close()
            while server.shared.live:
                await asyncio.sleep(0.01)


def post(path: str = "/", body: bytes = b"", more: str = "", version: str = "1.1") -> bytes:
    """Return the bytes of a POST request with this body; `more` are further header lines."""
    head = f"POST {path} HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


# Order
