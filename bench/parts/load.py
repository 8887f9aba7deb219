"""A lean HTTP/1.1 load: kept-alive connections, each request sent after the previous answer, every answer checked.

It costs 10 µs of CPU a request, half of what a call costs a compiled node. Limited in connections and time, and only to
127.0.0.1.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MOST_CONNECTIONS = 256
MOST_SECONDS = 10.0
STUCK = 10.0
"""Seconds after the end within which the last answers must arrive."""


class WrongAnswer(Exception):
    """The server's answer wasn't the one expected, so the whole run is void."""


@dataclass(frozen=True)
class Expected:
    """The status and the body that each answer must have; its head may contain any headers."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Round:
    """The result of one round of load."""

    answers: int
    seconds: float
    latencies: list[float]
    """Seconds that each answer took, sorted."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds

    @property
    def p50(self) -> float:
        return self.percentile(0.5)

    @property
    def p99(self) -> float:
        return self.percentile(0.99)

    def percentile(self, part: float) -> float:
        """Return the seconds within which `part` (0 to 1) of the answers came."""
        return percentile(self.latencies, part)


def percentile(latencies: Sequence[float], part: float) -> float:
    """Return the seconds within which `part` (0 to 1) of the answers came; `latencies` is sorted."""
    return latencies[min(len(latencies) - 1, int(part * len(latencies)))]


def request(path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Client:
    """A server's clients, one connection each; `exchanges` says what each of them sends, over and over."""

    def __init__(
        self, port: int, exchanges: Sequence[tuple[bytes, Expected]], tls: ssl.SSLContext | None = None
    ) -> None:
        assert len(exchanges) <= MOST_CONNECTIONS
        self._port = port
        self._exchanges = exchanges
        self._tls = tls
        self._connections: list[_Connection] = []

    async def __aenter__(self) -> "Client":
        loop = asyncio.get_running_loop()
        for sent, expected in self._exchanges:
            # One at a time: a single handshake fully occupies a pinned server.
            _, made = await loop.create_connection(
                lambda sent=sent, expected=expected: _Connection(sent, expected),
                "127.0.0.1",
                self._port,
                ssl=self._tls,
                server_hostname="127.0.0.1" if self._tls else None,
            )
            self._connections.append(made)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.transport.abort()

    async def run(self, seconds: float) -> Round:
        """Load the server for `seconds`. Raises: WrongAnswer, when an answer isn't the expected one."""
        assert seconds <= MOST_SECONDS
        started = time.perf_counter()
        for connection in self._connections:
            connection.begin()
        await asyncio.sleep(seconds)
        for connection in self._connections:
            connection.going = False
        answered = [connection.idle for connection in self._connections]
        async with asyncio.timeout(STUCK):
            await asyncio.gather(*answered)
        took = time.perf_counter() - started
        latencies = sorted(t for connection in self._connections for t in connection.latencies)
        return Round(len(latencies), took, latencies)


class _Connection(asyncio.Protocol):
    def __init__(self, sent: bytes, expected: Expected) -> None:
        self._sent = sent
        self._status = b"HTTP/1.1 %d" % expected.status
        self._body = expected.body
        self._pending = b""
        self._since = 0.0
        self.going = False
        self.latencies: list[float] = []
        self.transport: asyncio.Transport
        self.idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def begin(self) -> None:
        self.latencies = []
        self.idle = asyncio.get_running_loop().create_future()
        self.going = True
        self._since = time.perf_counter()
        self.transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) - end - 4 < len(self._body):
            self._pending = data
            # A wrong answer may be shorter than the right one: its status shows that at once.
            if end >= 0 and not data.startswith(self._status):
                self._fail(data)
            return
        if not data.startswith(self._status) or data[end + 4 :] != self._body:
            self._fail(data)
            return
        self._pending = b""
        now = time.perf_counter()
        self.latencies.append(now - self._since)
        if self.going:
            self._since = now
            self.transport.write(self._sent)
        elif not self.idle.done():
            self.idle.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(b"the connection was closed: %r" % error)

    def _fail(self, data: bytes) -> None:
        self.going = False
        if not self.idle.done():
            self.idle.set_exception(WrongAnswer(data[:500].decode(errors="replace")))


def rates(rounds: Sequence[Round]) -> float:
    """Return the median of the rounds' answers a second."""
    return median(r.rate for r in rounds)
