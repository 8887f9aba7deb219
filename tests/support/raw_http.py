"""Local HTTP byte by byte, for what no client library would send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.deadlines import deadline
from tests.support.edge import Node


class Raw:
    """A connection that sends what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with deadline(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(lines[0].split()[1]), headers, body

    async def ended(self) -> bool:
        """The node closes the connection."""
        async with deadline(60):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass
            return True


@contextlib.asynccontextmanager
async def raw(edge: Node) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.front.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes = b"", host: str = "localhost", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body
