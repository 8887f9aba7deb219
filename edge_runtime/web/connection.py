"""One connection of the local HTTP. Its requests are answered in turn, each in one write.

What a connection may cost in time and memory is limited, whatever its client sends or doesn't read.
"""

import asyncio
import http
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.dispatch.outcomes import Answer, AnswerBody, Outcome, Refusal, refused
from edge_runtime.errors import title_of
from edge_runtime.ipc.request_head import PLAIN, SECURE
from edge_runtime.settings import EdgeSettings
from edge_runtime.web.connection_memory import Allocator, BodyMemory, UnreadAnswers
from edge_runtime.web.parser import PIECE, Exchange, Requests, new_request_id
from edge_runtime.web.site_policy import merged

CROWD: Final = 8
"""Requests that may wait for their turn while more is read from the connection."""
NEVER: Final = float("inf")

# Timeouts in seconds. Not `Final`, whose value is built into compiled modules: tests change them.
HEAD_WAIT = 10.0
"""Seconds that a request's head may take to arrive; the first one counts from the connection's start."""
KEEP_ALIVE = 75.0
"""Seconds that a connection may be idle between two requests."""
UNREAD_WAIT = 30.0
"""Seconds within which a client must read part of an answer that waits for it."""
IDLE = 1.0
"""Seconds without a request after which a connection may be closed because others need its place."""
MOVE_WAIT = 0.5
"""Seconds without a request after which a stopping node closes a connection. A client that was active more recently may
be about to send a request, whose answer then tells it to use another connection."""
FIRST_WAIT = 2.0
"""The same if no request has come yet: the client is about to send one, maybe after its TLS handshake."""
LINGER = 2.0
"""Seconds for which a connection, after its last answer, accepts what the client still sends: closing it at once would
reset it, and the client might not see the answer."""

# The start of an answer.
BODILESS: Final = (204, 304)
"""Statuses of answers without a body and without Content-Length."""
LAST: Final = (400, 401, 408, 413, 431)
"""Statuses of refusals after which nothing more is read from the connection."""
KEEPS: Final = b"connection: keep-alive\r\n\r\n"
CLOSES: Final = b"connection: close\r\n\r\n"
"""The last lines of a head: whether the connection may have another request."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES: Final = {status.value: status.phrase for status in http.HTTPStatus} | {499: "Client Closed Request"}
STATUS_LINES: Final = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(600)]


class RequestHandler(Protocol):
    """Answers requests."""

    def admit(self, exchange: Exchange, certificate: bytes | None) -> Refusal | None:
        """Return why a request whose head has come is refused; None if it isn't. `certificate` is the sha256 of the
        client's, empty if it has presented none, None in plain HTTP."""

    def run(self, exchange: Exchange, connection: "HttpConnection") -> None:
        """Answer a whole request whose turn it is: once, now or later, through `done` or `answer`."""

    def leave(self, exchange: Exchange) -> None:
        """Note that the client of a running request has gone."""


class Shared:
    """What all connections of the server share: limits, counts, and the set of connections."""

    def __init__(self, app: RequestHandler, settings: EdgeSettings) -> None:
        self.app = app
        self.memory = BodyMemory(settings.body_memory, settings.body_limit)
        self.body_wait = settings.body_wait
        self.live: set[HttpConnection] = set()
        """All open connections."""
        self.removed: Callable[[], None] = lambda: None
        """Called when a connection has closed."""
        self.unread = UnreadAnswers(settings.answer_memory)
        self.allocator = Allocator()
        self.date = b""
        """The Date header line."""
        self.stopping = False
        self.empty = asyncio.Event()
        """Set when the server is stopping and has no connections left."""

    def stop(self) -> None:
        """Close the connections that have no request and don't get one soon, and the others after their requests."""
        self.stopping = True
        for connection in list(self.live):
            connection.stop()
        if not self.live:
            self.empty.set()

    def remove(self, connection: "HttpConnection") -> None:
        """Note that a connection has closed."""
        self.live.discard(connection)
        self.unread.note(connection, 0)
        self.removed()
        if self.stopping and not self.live:
            self.empty.set()

    def end_idle(self, count: int, now: float) -> int:
        """Close up to `count` connections that have been idle for a second, the longest idle first; return how many."""
        idle = sorted((c for c in self.live if c.idle(now) >= IDLE), key=lambda c: c.deadline)[:count]
        for connection in idle:
            connection.abort()
        return len(idle)


def head_of_refusal(refusal: Refusal, request_id: bytes, release: int) -> tuple[bytes, bytes]:
    """Return the header lines and the body of a refusal; `release` is the number of the release that the request was
    for, 0 for none."""
    status = refusal.status
    title, call = title_of(refusal.code), request_id.decode()
    body = msgspec.json.encode(wire.Problem(refusal.code, title, status, refusal.message, call=call))
    head = b"content-type: application/problem+json\r\n"
    if release:
        head += b"skerry-release: %d\r\n" % release
    if refusal.retry_after:
        head += b"retry-after: %d\r\n" % refusal.retry_after
    if refusal.allow:
        head += b"allow: %b\r\n" % refusal.allow.encode()
    if status == 401:
        head += b"www-authenticate: Bearer\r\n"
    return head, body


class HttpConnection(asyncio.Protocol):
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._app = shared.app
        self.name = ""
        """Name of the function whose answer is, or was last, unread."""
        self._answered = ""
        """Name of the function whose answer was written last."""
        self._requests = Requests(shared.memory, shared.app.admit)
        self._exchanges = self._requests.exchanges
        self._transport: asyncio.Transport
        self.client = ""
        """The client's address."""
        self.via = PLAIN
        """How its requests come to the node; the caller isn't known here."""
        self.deadline = clock.monotonic() + HEAD_WAIT
        """The deadline for what the connection is waiting for (`clock.monotonic`)."""
        self._running = False
        """The first request is running."""
        self._held = False
        """Reading from the client is paused."""
        self._unread = False
        """The client hasn't read all of an answer yet."""
        self._paused = False
        """The transport has data that it couldn't send yet."""
        self._rest: deque[memoryview] = deque()
        """Pieces of the answer that the transport hasn't got yet."""
        self._last: Exchange | None = None
        """The request whose answer ends the connection, while `_rest` isn't fully written."""
        self._ended = False
        """The client has closed its side: it sends nothing more."""
        self._over = False
        """The last answer is written, or there is nobody left to read one."""

    # The transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if peer else ""
        # What the system doesn't accept at once counts as unread.
        self._transport.set_write_buffer_limits(0)
        self._shared.live.add(self)

    def secure(self, certificate: bytes) -> None:
        """Note that the TLS handshake is done; `certificate` is the sha256 of the client's, empty if it has none."""
        self.via, self._requests.certificate = SECURE, certificate

    def data_received(self, data: bytes) -> None:
        if not self._reads():
            return
        requests, began = self._requests, self._requests.heading
        requests.feed(data)
        if not self._running and (self._exchanges or requests.broken is not None):
            self._advance()
        elif requests.heading and not began and not self._running:
            self.deadline = clock.monotonic() + HEAD_WAIT
        if len(self._exchanges) > 1 and self._crowded():
            self._hold()

    def eof_received(self) -> bool:
        self._ended = True
        exchanges = self._exchanges
        if exchanges and not exchanges[-1].whole:
            self._requests.drop(exchanges.pop())
        if self._running:
            # There is no telling whether the client still reads: it gets an answer, but others may come first.
            self._app.leave(exchanges[0])
        return bool(exchanges or self._rest) and not self._over

    def connection_lost(self, error: Exception | None) -> None:
        self._over = True
        self._drop_rest()
        self._shared.remove(self)
        running = self._exchanges.popleft() if self._running else None
        self._forget()
        self._requests.close()
        if running is not None:
            # The body is kept until the call's outcome has come.
            self._exchanges.append(running)
            self._app.leave(running)

    def pause_writing(self) -> None:
        self._paused = True
        self._note_unread()

    def resume_writing(self) -> None:
        self._paused = False
        if self._rest:
            self._write_more()
        else:
            self._note_read()

    def _note_unread(self) -> None:
        """Stop reading from the client until it has read the rest of the answer."""
        if not self._unread:
            self._unread = True
            self.name = self._answered
            self._hold()
        self.deadline = clock.monotonic() + UNREAD_WAIT
        self._shared.unread.note(self, self._left())

    def _note_read(self) -> None:
        """Go on with the next request: the answer has been sent completely."""
        self._unread = False
        self._shared.unread.note(self, 0)
        self.deadline = clock.monotonic() + (LINGER if self._over else KEEP_ALIVE)
        self._advance()

    def _left(self) -> int:
        """Return how many bytes of the answer haven't been sent."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._rest))

    # For use where calls may change the answer: mypy, and so compiled code, assumes that they change no attribute.

    def _is_over(self) -> bool:
        return self._over

    def _reads(self) -> bool:
        return not self._over and self._requests.broken is None

    # The server calls these

    def late(self, now: float) -> None:
        """Handle a deadline that has passed."""
        if self._unread:
            left = self._left()
            if 0 < left < self._shared.unread.of_connection.get(self, 0):
                self._shared.unread.note(self, left)
                self.deadline = now + UNREAD_WAIT
                return
        elif self._exchanges and not self._over:
            text = f"The request's body took longer than {self._shared.body_wait:g} s to come (body_wait)."
            self._refuse(refused("body_timeout", text))
            return
        self.abort()

    def idle(self, now: float) -> float:
        """Return the least number of seconds that the connection has been idle; 0 if it has a request or part of
        one."""
        if self._exchanges or self._requests.heading or self._unread or self._over:
            return 0.0
        left = self.deadline - now
        return (HEAD_WAIT if left <= HEAD_WAIT else KEEP_ALIVE) - left

    def stop(self) -> None:
        """Close the connection once it has had no request for a moment, or with its next answer."""
        if self._exchanges or self._rest or self._over:
            return
        now = clock.monotonic()
        wait = (FIRST_WAIT if self.deadline - now <= HEAD_WAIT else MOVE_WAIT) - self.idle(now)
        if wait > 0:
            clock.call_later(wait, self.stop)
        else:
            self._over = True
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._over = True
        self._drop_rest()
        self._shared.unread.note(self, 0)
        self._transport.abort()

    # Answers

    def _advance(self) -> None:
        """Run the next request, if it has come and its answer can be written."""
        exchanges = self._exchanges
        while exchanges and not (self._running or self._unread or self._over):
            exchange = exchanges[0]
            if exchange.refusal is not None:
                self._refuse(exchange.refusal)
            elif exchange.whole:
                self._running = True
                self.deadline = NEVER
                self._app.run(exchange, self)
                if self._ended and self._running:
                    self._app.leave(exchange)
            elif self._requests.broken is not None:
                self._refuse(self._requests.broken)
            else:
                self._await(exchange)
                break
        if not (exchanges or self._unread or self._over) and self._requests.broken is not None:
            exchanges.append(Exchange("", b"", b"", []))
            self._refuse(self._requests.broken)
        if self._held and not self._unread and not self._crowded():
            self._held = False
            self._transport.resume_reading()

    def _await(self, exchange: Exchange) -> None:
        """Wait for the rest of a request's body."""
        if exchange.awaited:
            return
        exchange.awaited = True
        self.deadline = clock.monotonic() + self._shared.body_wait
        if exchange.expects and not exchange.size:
            self._transport.write(CONTINUE)

    def _crowded(self) -> bool:
        """Return whether so many requests wait that more may stay in the socket. (A client that closes then goes
        unnoticed.)"""
        return len(self._exchanges) > CROWD or (len(self._exchanges) > 1 and not self._exchanges[-1].whole)

    def _hold(self) -> None:
        """Pause reading."""
        self._held = True
        self._transport.pause_reading()

    def done(self, outcome: Outcome) -> None:
        """Answer the running request with its outcome."""
        if type(outcome) is Answer:
            self.answer(outcome.status, b"%bskerry-release: %d\r\n" % (outcome.head, outcome.release), outcome.body)
        else:
            assert isinstance(outcome, Refusal)  # noqa: S101
            self._refuse(outcome)

    def _refuse(self, refusal: Refusal) -> None:
        exchange = self._exchanges[0]
        exchange.request_id = exchange.request_id or new_request_id()
        head, body = head_of_refusal(refusal, exchange.request_id, refusal.release or exchange.release)
        self.answer(refusal.status, head, body, last=refusal.status in LAST)

    def answer(self, status: int, head: bytes, body: AnswerBody, *, last: bool = False) -> None:
        """Write the answer to the request whose turn it is; with `last`, nothing more is read after it.

        `head` consists of whole header lines; none is about the connection, or about the length if there is a body.
        """
        exchanges, shared, transport = self._exchanges, self._shared, self._transport
        exchange = exchanges.popleft()
        self._running = False
        shared.memory.held -= exchange.size
        shared.allocator.passed += exchange.size
        if self._over:
            return
        head = merged(head, exchange.cors) if exchange.cors else head
        self.deadline = clock.monotonic() + (HEAD_WAIT if self._requests.heading else KEEP_ALIVE)
        keep = exchange.keep and exchange.whole and not (last or shared.stopping or (self._ended and not exchanges))
        without = exchange.method == "HEAD"
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        # Only the function can know the length of a GET's answer, so the node adds no length to a HEAD's.
        length = b"" if status in BODILESS or (without and not body) else b"content-length: %d\r\n" % size
        end = b"\r\n" if keep and not exchange.old else KEEPS if keep else CLOSES
        self._answered = exchange.name
        request_id = b"x-request-id: %b\r\n" % (exchange.request_id or new_request_id())
        start = b"".join((STATUS_LINES[status], shared.date, head, request_id, length, end))
        if not length or without:
            transport.write(start)
        elif isinstance(body, bytes):
            if size <= PIECE:
                transport.write(start + body)
            else:
                shared.allocator.passed += size
                transport.writelines((start, body))
        else:
            shared.allocator.passed += size
            self._rest.extend(body)
            self._note_unread()
            self._write_more(start)
        if self._is_over():
            # The answer was given up at once, because too much is unread.
            return
        if not keep and self._rest:
            self._last = exchange
        elif not keep:
            self._close(exchange)
        elif exchanges or self._requests.broken is not None:
            asyncio.get_running_loop().call_soon(self._advance)

    def _write_more(self, start: bytes = b"") -> None:
        """Write the next piece of the answer; the rest follow after other work has had the event loop and the client
        has read."""
        rest = self._rest
        if self._paused or not rest:
            # The transport will say when it has sent its data; or the answer was given up.
            return
        self._transport.writelines((start, rest.popleft()) if start else (rest.popleft(),))
        if rest:
            if not self._paused:
                self._note_unread()
                asyncio.get_running_loop().call_soon(self._write_more)
            return
        if not self._paused:
            self._unread = False
            self._shared.unread.note(self, 0)
        last, self._last = self._last, None
        if last is not None:
            self._close(last)
        elif not self._exchanges and (self._ended or self._shared.stopping):
            self._over = True
            self._transport.close()
        elif not self._paused:
            self._note_read()

    def _drop_rest(self) -> None:
        """Write no more of the answer."""
        self._rest.clear()
        self._last = None

    def _close(self, last: Exchange) -> None:
        """Note that the last answer is written, and close the connection once the client has it."""
        self._over = True
        behind = self._held or bool(self._exchanges)
        self._forget()
        if last.whole and not behind and self._requests.broken is None:
            self._transport.close()
            return
        self._transport.write_eof()
        if not self._unread:
            self.deadline = clock.monotonic() + LINGER
            self._advance()

    def _forget(self) -> None:
        """Drop the requests that get no answer."""
        for exchange in self._exchanges:
            self._requests.drop(exchange)
        self._exchanges.clear()
