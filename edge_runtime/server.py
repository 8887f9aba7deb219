"""Local HTTP: uvicorn in a run of our own, with bounds on what a connection may cost before its request is read."""

import asyncio
import socket
from typing import Any, Final, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from control import wire

from .settings import Settings, SettingsError

HEAD_BYTES: Final = 32 * 1024
"""Of a request's line and headers."""
HEADERS: Final = 100
HEAD_WAIT: Final = 10.0
"""Seconds that a request's head may take to come, and a connection to begin."""
PIPELINED: Final = 8
"""Requests that a connection may send before the first of them is answered."""
KEEP_ALIVE: Final = 75
AT_ONCE: Final = 64 * 1024
"""Bytes of a body up to which it is copied behind its head, for one write."""
BODILESS: Final = (204, 304)
"""Statuses whose answers have no body, and no Content-Length."""
BACKLOG: Final = 2048
SWEEP: Final = 1.0


class Connection(HttpToolsProtocol):
    """A connection with bounds. Its requests' scopes have an `Exchange`, as extension "skerry"."""

    live: set["Connection"] = set()  # noqa: RUF012  (all connections of the process, for the sweep)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waits: Leaver | None = None
        """Told when the client has gone before its answer."""
        self._received = 0
        """Bytes since the head began to come."""
        self._refused = False
        self._since: float | None = self.loop.time()
        """Since when a request's head has been coming; None while none is."""
        self._idle_since: float | None = None
        """Since when the connection has been waiting for its next request; None while it isn't."""
        self.live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.live.discard(self)
        super().connection_lost(exc)
        if self.waits is not None:
            self.waits.leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._since is None:
            self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        if len(self.headers) > HEADERS or (self._received > HEAD_BYTES and self._head_size() > HEAD_BYTES):
            self._refused = True
            raise _Refused
        self._since = None
        self._received = 0
        if len(self.pipeline) >= PIPELINED:
            # No answer can be written out of turn.
            self.transport.abort()
            raise _Refused
        super().on_headers_complete()
        self.scope["extensions"] = {"skerry": Exchange(self, self.cycle)}  # type: ignore[dict-item]

    def data_received(self, data: bytes) -> None:
        if self._since is None:
            super().data_received(data)
            return
        self._received += len(data)
        super().data_received(data)
        if self._since is not None and self._received > HEAD_BYTES and not self.transport.is_closing():
            # Of a head that doesn't end; what came before its end is one piece that the loop read, at most.
            self._refused = True
            self.send_400_response("")

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_response_complete(self) -> None:
        # In place of uvicorn's: the sweep sees to idle connections, without a timer for each answer.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        if self._refused:
            text = f"A request's line and headers may have {HEAD_BYTES} bytes and {HEADERS} headers."
            problem = wire.Problem("head_too_large", "Request Header Fields Too Large", 431, text)
        else:
            problem = wire.Problem("request_invalid", "Bad Request", 400, "This is no HTTP/1.1 request.")
        body = wire.problem_bytes(problem)
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def late(self, now: float) -> bool:
        """Its request's head takes too long, or its next request does."""
        if self._since is not None:
            return now - self._since > HEAD_WAIT
        return self._idle_since is not None and now - self._idle_since > KEEP_ALIVE


class Leaver(Protocol):
    def leave(self) -> None: ...


class Exchange:
    """One request on its connection, and the answer to it."""

    __slots__ = ("connection", "cycle")

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self.connection = connection
        self.cycle = cycle

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it has come."""
        return None if self.cycle.more_body else bytes(self.cycle.body)

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Write a whole answer at once, where that is simple; False where nothing was written and ASGI must do it.

        It saves half of the writes and a quarter of the time that the cycle's `send` takes. `head` is whole header
        lines, and Content-Length isn't among them.
        """
        cycle = self.cycle
        if (
            len(body) > AT_ONCE
            or not cycle.keep_alive
            or cycle.disconnected
            or cycle.response_started
            or cycle.flow.write_paused
            or status in BODILESS
            or cycle.scope["method"] == "HEAD"
        ):
            return False
        lines = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            lines += (name, b": ", value, b"\r\n")
        lines += (head, b"content-length: %d\r\n\r\n" % len(body), body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(lines))
        cycle.message_event.set()
        cycle.on_response()
        return True


class _Refused(Exception):
    """Ends the parsing; the parser's error that follows is answered by `send_400_response`."""


class Server(uvicorn.Server):
    """uvicorn's, with neither its signals nor its loop: `run` is one task beside others."""

    def __init__(self, app: Any, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            # The node has no proxy in front of it: nobody else says who the client is.
            proxy_headers=False,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.stop_limit)),
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._settings = settings
        self._socket: socket.socket | None = None

    def bind(self) -> int:
        """Take the address; the port that it has. Error: SettingsError."""
        host, port = self._settings.address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
        except OSError as error:
            raise SettingsError(f"the node can't listen on {self._settings.listen}: {error}") from None
        self._socket.set_inheritable(False)
        return int(self._socket.getsockname()[1])

    async def run_until_stopped(self) -> None:
        """Serve until `stop`; then running calls may end, and connections are closed."""
        assert self._socket is not None  # noqa: S101
        sweep = asyncio.ensure_future(self._sweep())
        try:
            await self._serve(sockets=[self._socket])
        finally:
            sweep.cancel()

    def stop(self) -> None:
        self.should_exit = True

    def close(self) -> None:
        """Let the address go, where it wasn't served."""
        if self._socket is not None:
            self._socket.close()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            now = loop.time()
            for connection in [c for c in Connection.live if c.late(now)]:
                connection.transport.abort()
