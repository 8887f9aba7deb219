"""Raw connections to an HTTPS server, for what no well-behaved client sends."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.deadlines import deadline


class Tap:
    """One connection; `send` and `answer` work on bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> bool:
        """Send all of `data`; False when the server has closed the connection."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    async def answer(self, seconds: float | None = None) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body; status 0 when the connection was closed instead."""
        async with deadline(20, seconds):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                return 0, {}, b""
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(first.split()[1]), headers, body

    async def closed(self, seconds: float | None = None) -> bool:
        """Whether the server closes the connection in time; what it still sends is thrown away."""
        try:
            async with deadline(20, seconds):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            pass
        return True


@asynccontextmanager
async def tap(url: str, ca: Path) -> AsyncIterator[Tap]:
    """A verified TLS connection to the server at `url`."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=str(ca))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        yield Tap(reader, writer)
    finally:
        writer.transport.abort()
