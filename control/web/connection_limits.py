"""Limits of a connection before its credential is checked: bytes, counts and times.

uvicorn accepts heads of any size, any number of headers and pipelined requests, and waits forever. This protocol
answers with a problem when a limit is exceeded, and drops the connection if an answer isn't possible any more.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from control.clock import Clock
from control.problems import ProblemError

HEAD_BYTES = 16 * 1024
"""The most bytes of the request line and the headers together."""
HEADERS = 64
"""The most headers of a request."""
HEAD_SECONDS = 10.0
"""Seconds from the connection, or from the first byte of a head, to the end of the head."""
BODY_SECONDS = 20.0
"""Seconds for a body; each `BODY_RATE` bytes that arrive add one more."""
BODY_RATE = 16 * 1024
QUIET_BYTES = 64 * 1024
"""The most bytes of a body besides its content: chunk sizes and extensions."""
PIPELINED = 2
"""Requests that may wait behind the one being answered."""
WRITE_SECONDS = 30.0
"""Seconds for which the client may read nothing of an answer."""
CONNECTIONS = 30_000
"""The most connections at once; further ones are dropped."""
CROWDED = CONNECTIONS * 4 // 5
"""With more connections than this, idle ones are closed after `CROWDED_SECONDS`, so that all nodes can poll."""
CROWDED_SECONDS = 2.0

NEVER = math.inf


class LimitExceeded(ProblemError):
    """A request that exceeds a limit, or isn't valid HTTP."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits. One `sweep` over all connections checks times, not a timer for each."""

    clock: Clock
    """Set by the creator."""
    deadline = NEVER
    """The clock's `monotonic` by which the client must have sent the head or the body, or begun the next request."""
    write_deadline = NEVER
    _in_head = False
    _in_body = False
    _head_bytes = 0
    _size = 0
    _quiet_bytes = 0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= CONNECTIONS:
            transport.abort()
        super().connection_made(transport)
        self.deadline = self.clock.monotonic() + HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # these bytes arrived after a refusal
            return
        body_bytes = self._body_bytes
        try:
            self.parser.feed_data(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES:
                    raise LimitExceeded("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
            elif self._in_body and body_bytes == self._body_bytes:
                self._quiet_bytes += len(data)
                if self._quiet_bytes > QUIET_BYTES:
                    raise LimitExceeded(
                        "bad_request",
                        f"a body may have {QUIET_BYTES} bytes of chunk sizes and extensions without content",
                    )
        except LimitExceeded as refused:
            self._refuse(refused)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(
                cause if isinstance(cause, LimitExceeded) else LimitExceeded("bad_request", "not a valid request")
            )
        except httptools.HttpParserError:
            self._refuse(LimitExceeded("bad_request", "this isn't HTTP/1.1"))
        except httptools.HttpParserUpgrade:
            pass  # the request is answered without an upgrade; bytes after it in `data` are dropped

    def _refuse(self, refused: LimitExceeded) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer was begun: the problem could be mistaken for a part of it
        else:
            self._answer(refused)

    def _answer(self, refused: LimitExceeded) -> None:
        body = refused.body()
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[refused.status] + head % len(body) + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._size = 0
        self.deadline = self.clock.monotonic() + HEAD_SECONDS

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        if self._size > HEAD_BYTES:
            raise LimitExceeded("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            raise LimitExceeded("bad_request", "headers after the body (trailers) aren't accepted")
        if len(self.headers) >= HEADERS:
            raise LimitExceeded("too_many_headers", f"a request may have {HEADERS} headers")
        self._size += len(name) + len(value)
        if self._size > HEAD_BYTES:
            raise LimitExceeded("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_body = True
        self._body_bytes = self._quiet_bytes = 0
        self.deadline = self.clock.monotonic() + BODY_SECONDS
        if len(self.pipeline) >= PIPELINED:
            raise LimitExceeded("bad_request", f"only {PIPELINED} requests may wait behind another")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self.deadline += len(body) / BODY_RATE
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self.deadline = NEVER
        super().on_message_complete()
        if self.cycle.response_complete:
            crowded = len(self.connections) > CROWDED
            self.deadline = self.clock.monotonic() + (CROWDED_SECONDS if crowded else self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        # Replaces uvicorn's method, which sets a timer after each answer: the sweep closes idle connections.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif not self._in_head and not self._in_body:
            crowded = len(self.connections) > CROWDED
            self.deadline = self.clock.monotonic() + (CROWDED_SECONDS if crowded else self.timeout_keep_alive)
        if not self.pipeline:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_deadline = self.clock.monotonic() + WRITE_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_deadline = NEVER

    def expire(self) -> None:
        """Close this connection, whose client missed a deadline."""
        self.deadline = self.write_deadline = NEVER
        if self._in_head:
            self._refuse(LimitExceeded("head_too_slow", f"a request's head must be complete in {HEAD_SECONDS:.0f} s"))
        elif self._in_body and not self.pipeline and not self.cycle.response_started:
            self.cycle.disconnected = True  # the application sees this, and its answer is dropped
            self.cycle.message_event.set()
            self._answer(LimitExceeded("body_timeout", f"less than {BODY_RATE} bytes a second arrived"))
        elif self._in_body or (self.flow is not None and self.flow.write_paused):
            self.transport.abort()
        else:
            self.transport.close()


def sweep(connections: Iterable[Any], now: float) -> None:
    """Close the connections that are past a deadline; `now` is the clock's `monotonic`. Called every second."""
    for connection in list(connections):
        if connection.deadline < now or connection.write_deadline < now:
            connection.expire()
