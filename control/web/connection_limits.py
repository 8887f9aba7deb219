"""What a connection may send before anyone has looked at its credential: bounds on bytes, counts and time.

uvicorn takes heads of any size, headers without number, pipelined requests without bound and waits for ever. This
protocol refuses them with a problem where an answer is still possible, and drops the connection where it isn't.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from control.problems import ProblemError

HEAD_BYTES = 16 * 1024
"""Request line and headers together."""
HEADERS = 64
HEAD_SECONDS = 10.0
"""From the connection, or from a head's first byte, to its end."""
BODY_SECONDS = 20.0
"""Grace for a body, on top of which each `BODY_RATE` bytes that arrive give another second."""
BODY_RATE = 16 * 1024
QUIET_BYTES = 64 * 1024
"""What a body may send without content: chunk sizes and extensions."""
PIPELINED = 2
"""Requests that may wait behind the one being answered."""
WRITE_SECONDS = 30.0
"""Without the client reading anything of an answer that waits for it."""
CONNECTIONS = 20_000

NEVER = math.inf


class Refused(ProblemError):
    """A request that breaks a bound."""


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Time is looked at by one sweep over all connections, not by a timer for each."""

    deadline = NEVER
    """When the peer must have ended what it is sending (or, idle, have begun the next request)."""
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
        self.deadline = self.loop.time() + HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # what still comes in after a refusal
            return
        body_bytes = self._body_bytes
        try:
            self.parser.feed_data(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES:
                    raise Refused("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
            elif self._in_body and body_bytes == self._body_bytes:
                self._quiet_bytes += len(data)
                if self._quiet_bytes > QUIET_BYTES:
                    raise Refused("bad_request", "chunks without content")
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else Refused("bad_request", "not a valid request"))
        except httptools.HttpParserError:
            self._refuse(Refused("bad_request", "this isn't HTTP/1.1"))
        except httptools.HttpParserUpgrade:
            pass  # there is nothing to change to: the request is answered, what came behind it in `data` is dropped

    def _refuse(self, refused: Refused) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer is under way: another one could be taken for it
        else:
            self._answer(refused)

    def _answer(self, refused: Refused) -> None:
        body = refused.body()
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[refused.status] + head % len(body) + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._size = 0
        self.deadline = self.loop.time() + HEAD_SECONDS

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        if self._size > HEAD_BYTES:
            raise Refused("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            raise Refused("bad_request", "headers after the body aren't taken")
        if len(self.headers) >= HEADERS:
            raise Refused("too_many_headers", f"a request may have {HEADERS} headers")
        self._size += len(name) + len(value)
        if self._size > HEAD_BYTES:
            raise Refused("head_too_large", f"a request's head may have {HEAD_BYTES} bytes")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_body = True
        self._body_bytes = self._quiet_bytes = 0
        self.deadline = self.loop.time() + BODY_SECONDS
        if len(self.pipeline) >= PIPELINED:
            raise Refused("bad_request", f"only {PIPELINED} requests may wait behind another")
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
            self.deadline = self.loop.time() + self.timeout_keep_alive

    def on_response_complete(self) -> None:
        # In place of uvicorn's: the sweep sees to idle connections, without a timer for each answer.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif not self._in_head and not self._in_body:
            self.deadline = self.loop.time() + self.timeout_keep_alive
        if not self.pipeline:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_deadline = self.loop.time() + WRITE_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_deadline = NEVER

    def expire(self) -> None:
        """End this connection, whose peer has let a deadline pass."""
        self.deadline = self.write_deadline = NEVER
        if self._in_head:
            self._refuse(Refused("head_too_slow", f"a request's head must be complete in {HEAD_SECONDS:.0f} s"))
        elif self._in_body and not self.pipeline and not self.cycle.response_started:
            self.cycle.disconnected = True  # the application hears that, and what it answers goes nowhere
            self.cycle.message_event.set()
            self._answer(Refused("body_timeout", f"less than {BODY_RATE} bytes a second arrived"))
        elif self._in_body or (self.flow is not None and self.flow.write_paused):
            self.transport.abort()
        else:
            self.transport.close()


def sweep(connections: Iterable[Any], now: float) -> None:
    """Ends the connections that are past a deadline; `now` is the loop's time. Cheap: call it every second."""
    for connection in list(connections):
        if connection.deadline < now or connection.write_deadline < now:
            connection.expire()
