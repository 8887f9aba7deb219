"""A receiver of webhooks: a real HTTP server, which checks messages by the standard and answers as the test says."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

TOLERANCE = 300.0
"""Seconds by which a message's timestamp may differ from the receiver's clock."""


@dataclass(frozen=True)
class Received:
    """A message as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def kind(self) -> str:
        return str(self.body["type"])

    @property
    def items(self) -> list[Any]:
        return list(self.body["data"]["items"])

    def verify(self, secret: str, now: float | None = None) -> None:
        """Check the message as its receiver does, by the standard's words and none of the program's code."""
        timestamp = int(self.headers["webhook-timestamp"])
        assert abs((time.time() if now is None else now) - timestamp) <= TOLERANCE
        key = base64.b64decode(secret.split("_", 1)[1])
        signed = b".".join((self.id.encode(), str(timestamp).encode(), self.raw))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        versions = dict(one.split(",", 1) for one in self.headers["webhook-signature"].split(" "))
        assert hmac.compare_digest(versions["v1"], expected)
        assert "." not in self.id


@dataclass
class Receiver:
    """What it has received, and what it answers."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answers: Callable[[Received], int | float] = lambda message: 204
    """The status to answer a message with; a float is seconds to wait first."""
    under_way: int = 0
    most_at_once: int = 0

    def of(self, kind: str) -> list[Received]:
        return [message for message in self.received if message.kind == kind]

    def items(self, kind: str) -> list[Any]:
        """All that happened of a kind, in the order in which it was told."""
        return [item for message in self.of(kind) for item in message.items]

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        message = Received(request.path, headers, await request.read())
        self.received.append(message)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            answer = self.answers(message)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = 204
            return web.Response(status=answer, headers={"location": "/elsewhere"} if 300 <= answer < 400 else {})
        finally:
            self.under_way -= 1


@contextlib.asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on 127.0.0.1, until the block ends."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    receiver.url = f"https://localhost:{port}/hook" if tls else f"http://127.0.0.1:{port}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()
