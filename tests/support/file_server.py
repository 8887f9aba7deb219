"""A small TLS server of files with the faults that a real store can't be made to have, and a CONNECT proxy."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from control.local.pki import Pki


@dataclass
class FileServer:
    """Answers GET of a path with its bytes, Range included. Faults are set by the test."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    """For each of the next answers, the number of body bytes after which the connection is cut."""
    ignore_range: bool = False
    refuse: dict[str, int] = field(default_factory=dict)
    """By path: the status that is answered instead."""
    redirect: dict[str, str] = field(default_factory=dict)
    answer: dict[str, Callable[[web.Request], web.Response]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers (lower case) of what was asked."""
    running: int = 0
    most: int = 0
    """The most answers at once."""
    slow: float = 0.0
    sent: int = 0
    """Bytes of the files that were sent."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs
        self.requests.append((path, {k.lower(): v for k, v in request.headers.items()}))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.slow)
            return await self._answer(request, path)
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, path: str) -> web.StreamResponse:
        if path in self.answer:
            return self.answer[path](request)
        if path in self.refuse:
            return web.Response(status=self.refuse[path], text="<Error><Code>AccessDenied</Code></Error>")
        if path in self.redirect:
            return web.Response(status=307, headers={"Location": self.redirect[path]})
        if path not in self.files:
            return web.Response(status=404, text="nothing here")
        data, status, headers = self.files[path], 200, {}
        wanted = request.headers.get("Range", "")
        if wanted and not self.ignore_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
            if start >= len(data):
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, status = data[start:end], 206
        self.sent += len(data)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(data)
        await response.prepare(request)
        if self.cut_after:
            await response.write(data[: self.cut_after.pop(0)])
            await asyncio.sleep(0.05)  # so that what was written has left before the connection is cut
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(data)
        await response.write_eof()
        return response


@asynccontextmanager
async def file_server(pki: Pki | None) -> AsyncIterator[FileServer]:
    """Run a file server on 127.0.0.1 until the block ends; with `pki`, over TLS."""
    server = FileServer()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    # An answer that is slow is given up at the end.
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    tls = None
    if pki is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pki.certificate, pki.key)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@dataclass
class Proxy:
    """An HTTP proxy that knows CONNECT alone, and leads every tunnel to `target`."""

    url: str = ""
    target: tuple[str, int] = ("127.0.0.1", 0)
    heads: list[str] = field(default_factory=list)
    status: int = 200


@asynccontextmanager
async def connect_proxy() -> AsyncIterator[Proxy]:
    """Run a CONNECT proxy on 127.0.0.1 until the block ends; the test sets where it leads."""
    proxy = Proxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            proxy.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(f"HTTP/1.1 {proxy.status} Proxy\r\n\r\n".encode())
            if proxy.status != 200:
                return
            far_reader, far_writer = await asyncio.open_connection(*proxy.target)
            with contextlib.closing(far_writer):
                await asyncio.wait(
                    [
                        asyncio.ensure_future(_copy(reader, far_writer)),
                        asyncio.ensure_future(_copy(far_reader, writer)),
                    ]
                )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield proxy


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(ConnectionError, RuntimeError):
        writer.close()
