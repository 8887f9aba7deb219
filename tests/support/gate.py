"""A web server that functions ask, and that answers when a test lets it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from tests.support.edge import until


class Gate:
    """A server that functions ask: it answers a request once `open` is set."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self.open = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await self.open.wait()
        return web.Response(text="open")

    @property
    def grant(self) -> dict[str, Any]:
        """What a manifest that lets the function ask it has as `http`."""
        return {"hosts": [self.url.rstrip("/")], "methods": ["GET", "POST"], "time_limit_ms": 60_000}

    def request(self, method: str = "GET") -> str:
        """A line for the guest `fetch`."""
        return orjson.dumps({"url": self.url, "method": method}).decode()

    async def reached(self, times: int = 1) -> None:
        await until(lambda: self.asked >= times)


@contextlib.asynccontextmanager
async def http_server(path: str, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Its URL."""
    app = web.Application()
    app.router.add_route("*", path, answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    made = Gate()
    async with http_server("/", made.answer) as made.url:
        try:
            yield made
        finally:
            made.open.set()
