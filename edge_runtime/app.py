"""The ASGI application of a node's local HTTP: functions, and the runtime's own pages under /_skerry/."""

import asyncio
import hmac
import http
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson

from control import wire

from .calls import Call, Outcome, Refusal
from .pool import Pool
from .server import BODILESS, Exchange
from .settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FUNCTIONS: Final = b"/functions/"
OWN: Final = b"/_skerry/"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


class Failed(Exception):
    """The request is refused before it is a call."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class App:
    """`status` makes the document of /_skerry/status, `metrics` the text of /_skerry/metrics."""

    def __init__(
        self, settings: Settings, pool: Pool, status: Callable[[], dict[str, Any]], metrics: Callable[[], bytes]
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._status = status
        self._metrics = metrics
        self._token = f"Bearer {settings.token}".encode() if settings.token else None
        self._hosts = frozenset(name.encode() for name in (*_LOOPBACK, *settings.hosts))
        self._held = 0
        """Bytes of the bodies that are being received or wait."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope["raw_path"]
        try:
            if path.startswith(FUNCTIONS):
                await self._function(scope, path, receive, send)
            elif path.startswith(OWN):
                await self._own(scope, path, send)
            else:
                text = "There are functions under /functions/NAME, and the node's own pages under /_skerry/."
                raise Failed(Refusal(404, "path_unknown", text))
        except Failed as failed:
            await self._refuse(send, failed.refusal)

    async def _function(self, scope: Scope, path: bytes, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        length = self._admit(headers)
        end = path.find(b"/", len(FUNCTIONS))
        if end < 0:
            end = len(path)
        name = path[len(FUNCTIONS) : end].decode("ascii")
        exchange: Exchange = scope["extensions"]["skerry"]
        if length > self._settings.body_limit:
            raise Failed(self._too_large())
        body = exchange.whole_body()
        if body is None:
            body = await self._body(receive)
        else:
            self._hold(len(body))
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        client = scope["client"]
        call = Call(
            name,
            scope["method"],
            path[end:].decode("ascii"),
            scope["query_string"],
            headers if self._token is None else [h for h in headers if h[0] != b"authorization"],
            client[0] if client else "",
            body,
            lambda ended: None if outcome.done() else outcome.set_result(ended),
        )
        exchange.connection.waits = Leaver(self._pool, call)
        try:
            self._pool.submit(call)
            result = await outcome
        finally:
            exchange.connection.waits = None
            self._held -= len(body)
        if isinstance(result, Refusal):
            await self._refuse(send, result)
            return
        head = b"%bskerry-release: %d\r\n" % (result.head, result.release)
        if exchange.answer(result.status, head, result.body):
            return
        answered = [(name, value) for name, _, value in (line.partition(b": ") for line in head.splitlines())]
        if result.status not in BODILESS:
            answered.append((b"content-length", b"%d" % len(result.body)))
        await send({"type": "http.response.start", "status": result.status, "headers": answered})
        await send({"type": "http.response.body", "body": result.body})

    async def _own(self, scope: Scope, path: bytes, send: Send) -> None:
        page = path[len(OWN) :]
        if scope["method"] not in ("GET", "HEAD"):
            raise Failed(Refusal(405, "method_unknown", "The node's own pages are only read: GET or HEAD."))
        if page == b"healthz":
            # For a supervisor, which has no token: it says nothing but that the front runs.
            await _send(send, 200, b"text/plain; charset=utf-8", b"ok\n")
            return
        self._admit(scope["headers"])
        if page == b"status":
            await _send(send, 200, b"application/json", orjson.dumps(self._status(), option=orjson.OPT_INDENT_2))
        elif page == b"metrics":
            await _send(send, 200, b"text/plain; version=0.0.4; charset=utf-8", self._metrics())
        else:
            raise Failed(Refusal(404, "path_unknown", "There are /_skerry/status, /_skerry/healthz, /_skerry/metrics."))

    def _admit(self, headers: list[tuple[bytes, bytes]]) -> int:
        """Check who asks; the Content-Length, 0 where there is none. Error: Failed."""
        host = authorization = None
        length = 0
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"content-length":
                length = int(value)
            elif name == b"authorization":
                authorization = value
        if self._token is not None:
            if authorization is None or not hmac.compare_digest(authorization, self._token):
                text = "This node asks for its token: send `Authorization: Bearer TOKEN`."
                raise Failed(Refusal(401, "token_needed", text))
        elif host is None or (host not in self._hosts and host.rpartition(b":")[0].lower() not in self._hosts):
            # A page of the web whose name was bound to this address could else call functions in its visitor's name.
            shown = "none" if host is None else host[:100].decode("latin-1")
            text = f"The Host header is {shown}; on loopback it must be localhost, 127.0.0.1 or one of `hosts`."
            raise Failed(Refusal(403, "host_refused", text))
        return length

    async def _body(self, receive: Receive) -> bytes:
        """A body that isn't there yet. Error: Failed."""
        settings = self._settings
        parts = bytearray()
        try:
            async with asyncio.timeout(settings.body_wait):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Failed(Refusal(499, "client_gone", "The client went away."))
                    piece = message["body"]
                    if len(parts) + len(piece) > settings.body_limit:
                        raise Failed(self._too_large())
                    self._hold(len(piece))
                    parts += piece
                    more = message.get("more_body", False)
                return bytes(parts)
        except BaseException as error:
            self._held -= len(parts)
            if isinstance(error, TimeoutError):
                text = f"The request's body took longer than {settings.body_wait:g} s to come (body_wait)."
                raise Failed(Refusal(408, "body_timeout", text)) from None
            raise

    def _hold(self, length: int) -> None:
        """Count bytes of a body; whoever takes it gives them back. Error: Failed, with nothing counted."""
        if self._held + length > self._settings.body_memory:
            text = "The node holds too many request bodies at once; try again."
            raise Failed(Refusal(503, "body_memory", text, 1))
        self._held += length

    def _too_large(self) -> Refusal:
        text = f"The request's body is larger than {self._settings.body_limit} bytes (body_limit)."
        return Refusal(413, "body_too_large", text)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        title = http.HTTPStatus(refusal.status).phrase if refusal.status != 499 else "Client Closed Request"
        body = wire.problem_bytes(wire.Problem(refusal.code, title, refusal.status, refusal.message))
        extra = []
        if refusal.retry_after:
            extra.append((b"retry-after", b"%d" % refusal.retry_after))
        if refusal.status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        if refusal.status in (401, 408, 413, 431):
            # What else comes on this connection isn't worth reading.
            extra.append((b"connection", b"close"))
        await _send(send, refusal.status, b"application/problem+json", body, extra)


class Leaver:
    """Told by the connection that its client has gone."""

    __slots__ = ("_call", "_pool")

    def __init__(self, pool: Pool, call: Call) -> None:
        self._pool = pool
        self._call = call

    def leave(self) -> None:
        self._pool.leave(self._call)


async def _send(
    send: Send, status: int, kind: bytes, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(extra or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
