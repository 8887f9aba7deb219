"""A proxy that makes a PostgreSQL look like CockroachDB to asyncpg; in the test's own loop, or as a process.

`proxied` runs it beside a test, which can then ask what was done, and cut connections at any message. `process` is for
what outlives a test: many databases, many processes that use them.
"""

import abc
import asyncio
import contextlib
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit, urlunsplit

from tests.support import every_statement
from tests.support.cockroachdb_session import LARGEST, Errors, Session, message, start

_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102


@dataclass
class Proxy:
    """One listener. The fields may be changed while it runs."""

    host: str
    port: int
    plain: bool = False
    """Pass messages on as they are: it counts and cuts, and behaves as what is behind it."""
    errors: Errors = field(default_factory=Errors)
    statements: list[tuple[int, str]] | None = None
    """Where it is a list: number of the connection and text of each statement that was carried out."""
    note: Callable[[str], None] | None = None
    """Told the text of each statement that was carried out."""
    largest: int = LARGEST
    """Bytes of a message at most."""
    together: bool = False
    """Count messages that are sent together as one: cut among them, the database has them for nothing."""
    messages: int = 0
    """How many messages went through since this was set to 0, in either direction."""
    cut_at: int | None = None
    """At this message the connection that it came by is cut, on both sides; once."""
    cuts: int = 0
    refusing: bool = False
    """Cut every new connection at once, as a database that is away."""
    sessions: int = 0
    _open: "set[_Client]" = field(default_factory=set)

    def cut_all(self) -> None:
        """Cut all connections."""
        for client in list(self._open):
            client.cut()

    def passes(self, side: "_Side") -> bool:
        """Count a message of `side`; False where it is the one at which the connection is cut."""
        if self.together and not side.first:
            return True
        side.first = False
        self.messages += 1
        if self.cut_at is None or self.messages < self.cut_at:
            return True
        self.cut_at = None
        self.cuts += 1
        return False


class _Side(asyncio.Protocol, abc.ABC):
    """One of a session's two connections: whole messages come out of it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.peer: _Side | None = None
        self.first = True
        """Whether none of the messages that came together has been counted yet."""
        self._buffer = bytearray()
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self.first = True
        self.read()

    def read(self) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 5:
            end = at + 1 + int.from_bytes(buffer[at + 1 : at + 5])
            if len(buffer) < end:
                break
            if not self.take(bytes(buffer[at : at + 1]), bytes(buffer[at + 5 : end])):
                return
            at = end
        del buffer[:at]
        self.flush()
        if self.peer is not None:
            self.peer.flush()

    @abc.abstractmethod
    def take(self, kind: bytes, body: bytes) -> bool:
        """Handle a message; False where nothing more is to be read."""

    def send(self, data: bytes) -> None:
        """Send `data` with the next flush."""
        self._out.append(data)

    def flush(self) -> None:
        if self._out and self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self._out))
        self._out.clear()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()

    # A side whose peer reads slowly isn't read from.

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()


class _Server(_Side):
    def __init__(self, client: "_Client") -> None:
        super().__init__()
        self.peer = client
        self._client = client

    def take(self, kind: bytes, body: bytes) -> bool:
        client = self._client
        if client.authenticated:
            if not client.proxy.passes(self):
                client.cut()
                return False
        elif kind == b"Z":
            client.authenticated = True
        if client.proxy.plain:
            client.send(message(kind, body))
        else:
            client.session.from_server(kind, body)
        return True


class _Client(_Side):
    def __init__(self, proxy: Proxy, task_group: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self.proxy = proxy
        self.authenticated = False
        self._started = False
        self._tasks = task_group
        proxy.sessions += 1
        self.number = proxy.sessions
        self.session = Session(self, proxy.errors, self._note, largest=proxy.largest)

    def _note(self, text: str) -> None:
        if self.proxy.statements is not None:
            self.proxy.statements.append((self.number, text))
        if self.proxy.note is not None:
            self.proxy.note(text)

    def to_server(self, data: bytes) -> None:
        assert self.peer is not None
        self.peer.send(data)

    def to_client(self, data: bytes) -> None:
        self.send(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.proxy.refusing:
            self.transport.abort()
            return
        self.proxy._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.proxy._open.discard(self)
        super().connection_lost(error)

    def cut(self) -> None:
        """End both connections at once, whatever is under way."""
        self.transport.abort()
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.abort()

    def read(self) -> None:
        if self._started:
            if self.peer is not None:
                super().read()
            return
        if len(self._buffer) < 8:
            return
        length, code = struct.unpack("!II", self._buffer[:8])
        if len(self._buffer) < length:
            return
        body = bytes(self._buffer[4:length])
        del self._buffer[:length]
        if code == _SSL_REQUEST:
            self.transport.write(b"N")
            self.read()
            return
        self._started = True
        task = asyncio.get_running_loop().create_task(self._connect(body, cancels=code == _CANCEL_REQUEST))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, body: bytes, *, cancels: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(lambda: _Server(self), self.proxy.host, self.proxy.port)
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            server.transport.abort()
            return
        if not cancels and not self.proxy.plain:
            body, rate = start(body)
            if rate is not None:
                # Of its own, from a seed of its own: what a connection meets doesn't hang on what others do.
                self.session.errors = Errors(rate, random.Random(self.number))
        server.send(struct.pack("!I", len(body) + 4) + body)
        server.flush()
        self.peer = server
        super().read()

    def take(self, kind: bytes, body: bytes) -> bool:
        if self.authenticated and not self.proxy.passes(self):
            self.cut()
            return False
        # Before that it is the password and what belongs to it.
        if self.authenticated and not self.proxy.plain:
            self.session.from_client(kind, body)
        else:
            self.to_server(message(kind, body))
        return True


@asynccontextmanager
async def proxied(url: str, *, plain: bool = False) -> AsyncIterator[tuple[Proxy, str]]:
    """Run a proxy before the server of `url` in this loop; yield it, and the URL that leads through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    proxy = Proxy(parts.hostname, parts.port or 5432, plain)
    tasks: set[asyncio.Task[None]] = set()
    listener = await asyncio.get_running_loop().create_server(lambda: _Client(proxy, tasks), "127.0.0.1", 0)
    try:
        yield proxy, _at(url, listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        proxy.cut_all()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What was cut is closed in the loop's next turn.
        await asyncio.sleep(0)


@contextmanager
def process(url: str) -> Iterator[str]:
    """Run a proxy before the server of `url` as a process that ends with this one; yield the URL through it."""
    command = [sys.executable, "-m", "tests.support.cockroachdb", url]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            yield _at(url, int(running.stdout.readline()))
        finally:
            running.stdin.close()
            running.wait(60)


def _at(url: str, port: int) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))


async def _serve(url: str) -> None:
    async with proxied(url) as (proxy, through):
        proxy.note = every_statement.noting()
        print(urlsplit(through).port, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        # Whoever started it has ended, or wants it to end.
        await reader.read()


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(sys.argv[1]))
