"""Reads requests from a connection's bytes with httptools, and limits what each may cost before it runs. No I/O.

Input that httptools accepts although HTTP doesn't allow it is refused here: a proxy in front of the node must not see
different requests in the same bytes (request smuggling).
"""

import itertools
import re
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NoReturn

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from control.protocol.manifest import TICK_HEADERS
from edge_runtime.dispatch.outcomes import Refusal, refused
from edge_runtime.web.connection_memory import BodyMemory

HEAD_BYTES: Final = 32 * 1024
"""Limit of a request's line and headers, in bytes."""
HEADERS: Final = 100
"""Headers that a request may have."""
PIPELINED: Final = 32
"""Requests that a connection may send before the first of them is answered."""
PIECE: Final = 64 * 1024
"""Bytes up to which small pieces of a body are joined."""

REQUEST_ID: Final = b"x-request-id"
TRACE: Final = frozenset((REQUEST_ID, b"traceparent"))
"""The headers that differ from request to request. Functions get them if their manifests ask for them: calls with the
same head, byte for byte, share what a worker has made of it."""

TICK: Final = frozenset(
    "".join(letters).encode()
    for name in TICK_HEADERS
    for letters in itertools.product(*(("-", "_") if letter == "-" else letter for letter in name))
)
"""Headers that only calls have that the node makes by itself, also as WAGI's variables would have them from others."""

_CLIENTS_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
"""The form that a client's own request id may have."""
_ID_PREFIX: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count(1)
_MATTER: Final = TRACE.union(
    TICK, (b"host", b"content-length", b"authorization", b"transfer-encoding", b"expect", b"origin", b"sec-fetch-site")
)
"""The headers that the node itself looks at."""

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_TOO_LARGE: Final = refused(
    "head_too_large", f"A request's line and headers may have {HEAD_BYTES} bytes and {HEADERS} headers."
)
_TOO_MANY: Final = refused(
    "request_invalid", f"A connection may send {PIPELINED} requests before the first of them is answered."
)


def _invalid(why: str) -> Refusal:
    return refused("request_invalid", f"This is no HTTP/1.1 request: {why}.")


def new_request_id() -> bytes:
    """Return an id that this process hasn't made before, and most likely no other process has: `6f2a1b3c-17`."""
    return b"%b-%d" % (_ID_PREFIX, next(_numbers))


Pieces = list[bytes | bytearray]


class Exchange:
    """A request on its connection, as far as it has been received."""

    __slots__ = (
        "auth_type", "authorization", "awaited", "call", "caller", "cors", "expects", "headers", "host", "keep",
        "length", "method", "name", "old", "origin", "path", "pieces", "query", "refusal", "release", "request_id",
        "site", "size", "target", "traced", "whole",
    )  # fmt: skip

    def __init__(self, method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.path = path
        """The path in ASCII, percent-encoded."""
        self.query = query
        """The query as received, without the question mark."""
        self.headers = headers
        """The headers in their order, names in lower case."""
        self.host: bytes | None = None
        self.authorization: bytes | None = None
        self.origin: bytes | None = None
        """The Origin header: the origin of the web page that sends the request, if one does."""
        self.site: bytes | None = None
        """The header Sec-Fetch-Site: how the web page that had the browser send the request relates to the URL."""
        self.request_id = b""
        """The client's id for the request, or ours; empty until it is needed."""
        self.traced = False
        """The request has one of the headers `TRACE`."""
        self.cors = b""
        """Header lines that the answer gets for web pages of other origins."""
        self.length = 0
        """Bytes of the body, if the head gives them, else 0."""
        self.expects = False
        """The client waits for `100 Continue` before it sends the body."""
        self.keep = True
        """The connection may have another request after this one."""
        self.old = False
        """The request is in HTTP/1.0."""
        self.refusal: Refusal | None = None
        """The answer, if it is known before the request runs; the body isn't kept then."""
        self.pieces: Pieces = []
        """The body."""
        self.size = 0
        """Bytes of the body that have been received and are kept."""
        self.whole = False
        self.awaited = False
        """Whether the rest of the body is being waited for: all requests before this one are answered."""
        self.name = ""
        """Name of the requested function; empty for the node's own pages."""
        self.release = 0
        """Number of the release that was served when it arrived; 0 for the node's own pages, and before the first
        release."""
        self.target: Any = None
        self.call: Any = None
        self.caller: Any = None
        self.auth_type = ""
        """`target`, `call`, `caller` and `auth_type` belong to the application."""


class Requests:
    """The requests of one connection: `feed` puts them into `exchanges`, from which the connection takes them."""

    # mypyc needs this.
    __deletable__ = ("_parser",)

    def __init__(self, memory: BodyMemory, admit: Callable[[Exchange, bytes | None], Refusal | None]) -> None:
        """`admit` is called with `certificate` when a request's head has come, and returns why it is refused, or
        None."""
        self.certificate: bytes | None = None
        """sha256 of the certificate that the client has presented; empty if it has presented none, None in plain
        HTTP."""
        self.exchanges: deque[Exchange] = deque()
        """The requests in their order; the last may be incomplete."""
        self.heading = False
        """A head has begun to arrive, and isn't complete yet."""
        self.broken: Refusal | None = None
        """Why the last bytes can't be read, if they can't; nothing more is read then."""
        self._memory = memory
        self._admit = admit
        self._parser = HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fed = 0
        """Bytes that `feed` was last given."""
        self._received = 0
        """Bytes that came after the piece in which the last request ended."""
        self._before = 0
        """Bytes of the piece in which the last request ended: some of them may belong to the next one."""
        self._again = b""
        """A head that asked for another protocol, with that request removed."""

    def feed(self, data: bytes) -> None:
        """Read what the connection has received."""
        self._fed = len(data)
        self._received += self._fed
        while self.broken is None:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                behind = data[upgrade.args[0] :]
            except HttpParserError as error:
                self._fail(error)
                break
            # The head asked for another protocol: read it again without that, and then what follows.
            data, self._again = self._again + behind, b""
            self._parser = HttpRequestParser(self)
        if self._received > HEAD_BYTES:
            self._check_size()

    def drop(self, exchange: Exchange) -> None:
        """Discard a request's body."""
        self._memory.held -= exchange.size
        exchange.size = 0
        exchange.pieces = []

    def close(self) -> None:
        """Stop reading, and release the parser."""
        del self._parser  # The parser and this object refer to each other.

    # Called by the parser

    def on_url(self, url: bytes) -> None:
        if self.heading:
            self._url += url
        else:
            self.heading, self._url, self._headers = True, url, []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.heading:  # A trailer, which follows a chunked body, is dropped.
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heading = False
        headers = self._headers
        if len(headers) > HEADERS or (self._before + self._received > HEAD_BYTES and self._head_size() > HEAD_BYTES):
            self._break(_TOO_LARGE)
        if len(self.exchanges) >= PIPELINED:
            self._break(_TOO_MANY)
        if self._parser.should_upgrade():
            self._again = self._without_upgrade()
            return
        exchange = self._read_head(headers)
        self.exchanges.append(exchange)
        exchange.refusal = self._admit(exchange, self.certificate)

    def on_body(self, piece: bytes) -> None:
        exchange = self.exchanges[-1]
        if exchange.refusal is not None:
            return
        memory, count = self._memory, len(piece)
        if exchange.size + count > memory.body_limit:
            self.drop(exchange)
            exchange.refusal = too_large(memory.body_limit)
        elif memory.held + count > memory.limit:
            self.drop(exchange)
            text = "The node holds too many request bodies at once; try again."
            exchange.refusal = refused("body_memory", text, 1)
        else:
            exchange.size += count
            memory.held += count
            pieces = exchange.pieces
            if pieces and len(pieces[-1]) + count <= PIECE:
                last = pieces[-1]
                if isinstance(last, bytes):
                    last = pieces[-1] = bytearray(last)
                last += piece
            else:
                pieces.append(piece)

    def on_message_complete(self) -> None:
        if not self._again:
            self.exchanges[-1].whole = True
            self._before, self._received = self._fed, 0

    def _read_head(self, headers: list[tuple[bytes, bytes]]) -> Exchange:
        """Return the request whose head has come; end the parsing if HTTP doesn't allow such a head."""
        parser, url = self._parser, self._url
        version = parser.get_http_version()
        path, _, query = url.partition(b"?")
        exchange = Exchange(parser.get_method().decode(), path, query, headers)
        exchange.keep = parser.should_keep_alive()
        old = exchange.old = version == "1.0"
        hosts = 0
        chunked = claims = False
        for name, value in headers:
            if name not in _MATTER:
                continue
            if name == b"host":
                exchange.host = value
                hosts += 1
            elif name == b"content-length":
                exchange.length = int(value)
            elif name == b"authorization":
                if exchange.authorization is not None:
                    self._break(_invalid("it has two Authorization headers"))
                exchange.authorization = value
            elif name == b"origin":
                if exchange.origin is not None:
                    self._break(_invalid("it has two Origin headers"))
                exchange.origin = value
            elif name == b"sec-fetch-site":
                if exchange.site is not None:
                    self._break(_invalid("it has two Sec-Fetch-Site headers"))
                exchange.site = value
            elif name in TRACE:
                exchange.traced = True
                if name == REQUEST_ID and not exchange.request_id and _CLIENTS_ID.fullmatch(value):
                    exchange.request_id = value
            elif name in TICK:
                claims = True
            elif name == b"expect":
                exchange.expects = not old and value.lower() == b"100-continue"
            elif chunked or old or value.lower() != b"chunked":
                self._break(_invalid("Transfer-Encoding may be chunked, once, in HTTP/1.1"))
            else:
                chunked = True
        if not old and version != "1.1":
            self._break(_invalid(f"HTTP/{version} isn't spoken here"))
        if hosts > 1 or not (hosts or old):
            self._break(_invalid(f"it has {hosts} Host headers"))
        if exchange.host is not None and not _HOST.fullmatch(exchange.host):
            self._break(_invalid("its Host is no host and port"))
        if b"#" in url:
            self._break(_invalid("its path has a #"))
        if chunked:
            # The function gets the body without chunks: this header would make it expect them.
            exchange.headers = [header for header in headers if header[0] != b"transfer-encoding"]
        if claims:
            exchange.headers = [header for header in exchange.headers if header[0] not in TICK]
        if not url.startswith(b"/"):
            self._read_absolute(exchange, url)
        return exchange

    def _read_absolute(self, exchange: Exchange, url: bytes) -> None:
        """Read a target in the form for proxies, `GET http://HOST/PATH`: its host counts, not the header's. `*` is no
        page."""
        if url == b"*":
            return
        why = _invalid("its line has no path and no http URL")
        # Missing parts are None, which httptools' type hints don't say.
        parts: Any
        try:
            parts = parse_url(url)
        except HttpParserInvalidURLError:
            self._break(why)
        if (parts.schema or b"").lower() not in (b"http", b"https") or not parts.host or parts.userinfo:
            self._break(why)
        host = b"[%b]" % parts.host if b":" in parts.host else parts.host
        host = exchange.host = host + b":%d" % parts.port if parts.port else host
        exchange.headers = [(b"host", host), *(header for header in exchange.headers if header[0] != b"host")]
        exchange.path, exchange.query = parts.path or b"/", parts.query or b""

    def _without_upgrade(self) -> bytes:
        """Return a head that asks for another protocol (Upgrade), with that request removed.

        The node speaks only HTTP/1.1, so it answers as if the client hadn't asked. The parser would take the body for
        the other protocol's data.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._break(_invalid("the node is no proxy"))
        line = b"%b %b HTTP/%b" % (method, self._url, self._parser.get_http_version().encode())
        kept = [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        return b"\r\n".join([line, *kept, b"", b""])

    def _fail(self, error: HttpParserError) -> None:
        """Stop parsing after an error of the parser; raise the error if it is a bug in this program."""
        if self.broken is None:
            self.broken = _invalid(str(error).rstrip("."))
            if isinstance(error, HttpParserCallbackError):
                raise error

    def _break(self, why: Refusal) -> NoReturn:
        """Stop parsing, from within a callback of the parser."""
        self.broken = self.broken or why
        raise _Broken

    def _head_size(self) -> int:
        return len(self._url) + sum(len(name) + len(value) for name, value in self._headers)

    def _check_size(self) -> None:
        """Refuse the bytes since the last whole request, if they are too many for what they say."""
        if self.heading:
            # At most one piece that the event loop read comes before the head's end.
            self.broken = self.broken or _TOO_LARGE
        elif self.exchanges:
            exchange = self.exchanges[-1]
            # Chunks have their lengths between them, but may not have endless extensions and trailers.
            if not exchange.whole and exchange.refusal is None and self._received > 2 * HEAD_BYTES + 16 * exchange.size:
                self.broken = self.broken or _invalid("its body is mostly lengths, extensions or trailers")


def too_large(limit: int) -> Refusal:
    return refused("body_too_large", f"The request's body is larger than {limit} bytes (body_limit).")


class _Broken(Exception):
    """Raised in a callback to stop parsing; the parser turns it into an error of its own."""
