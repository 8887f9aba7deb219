"""Clients of a node's local HTTP that do nothing for it: what fails, fails. They keep their connections, or don't."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.deadlines import scaled
from tests.support.programs import until

SILENT = 0.3
"""Seconds without a request after which a node that is stopped may end a connection: less than it waits."""


@dataclass
class CallsMade:
    """What became of calls."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the slowest call."""
    told_to_move: int = 0
    """Answers with `Connection: close` on connections that were to be kept."""
    ended_idle: int = 0
    """Such connections that were ended after they had been idle for a while, since this process stood still."""


class PlainClient:
    """Sends one request after the other, each once. A library would send some again when a connection is lost."""

    def __init__(self, port: int, path: str, made: CallsMade, tls: ssl.SSLContext | None, *, keep: bool) -> None:
        self._port = port
        self._path = path
        self._made = made
        self._tls = tls
        self._keep = keep
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._sent_at = 0.0
        """When the connection was begun, or its last request was sent (monotonic clock, seconds)."""

    async def call(self) -> None:
        """Make one call, and note how it ended."""
        began = time.monotonic()
        try:
            status, closes = await self._ask()
        except (OSError, EOFError) as error:
            self._made.failed.append(repr(error))
            self.close()
            return
        self._made.longest = max(self._made.longest, time.monotonic() - began)
        if status != 200:
            self._made.failed.append(f"status {status}")
        else:
            self._made.answered += 1
        self._made.told_to_move += closes and self._keep
        if closes or not self._keep:
            self.close()

    async def _ask(self) -> tuple[int, bool]:
        """Return the answer's status, and whether the connection ends with it."""
        streams = self._streams or await self._open()
        silent = time.monotonic() - self._sent_at > SILENT
        try:
            return await self._exchange(*streams)
        except (OSError, EOFError):
            if not silent:
                raise
        # This process has stood still, and a connection that is idle for so long may be ended.
        self._made.ended_idle += self._keep
        self.close()
        return await self._exchange(*await self._open())

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bool]:
        kept = "" if self._keep else "connection: close\r\n"
        self._sent_at = time.monotonic()
        writer.write(f"POST {self._path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n{kept}\r\nbody".encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        await reader.readexactly(int(fields["content-length"]))
        return int(head[0].split()[1]), fields.get("connection") == "close"

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name, self._sent_at = "localhost" if self._tls is not None else None, time.monotonic()
        self._streams = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls, server_hostname=name)
        return self._streams

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@asynccontextmanager
async def calling(
    port: int, path: str, *, tls: ssl.SSLContext | None = None, keeping: int = 4, others: int = 2, pause: float = 0.005
) -> AsyncIterator[CallsMade]:
    """Have `keeping` clients that keep their connections, and `others` with a new one for each call, call with POST
    until the block ends; `pause`: seconds between two calls of a client."""
    made, ending = CallsMade(), asyncio.Event()

    async def go_on(client: PlainClient) -> None:
        while not ending.is_set():
            await client.call()
            await asyncio.sleep(pause)
        client.close()

    clients = [PlainClient(port, path, made, tls, keep=number < keeping) for number in range(keeping + others)]
    tasks = [asyncio.create_task(go_on(client)) for client in clients]
    try:
        yield made
    finally:
        ending.set()
        await asyncio.wait(tasks, timeout=scaled(60))
        for task in tasks:
            task.cancel()


async def answered(made: CallsMade, more: int) -> None:
    """Wait for so many more answers, or for a failure."""
    wanted = made.answered + more

    async def there() -> bool:
        return made.answered >= wanted or bool(made.failed)

    await until(there, f"{more} more calls were answered")
