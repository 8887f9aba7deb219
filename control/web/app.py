"""The ASGI application: what every request goes through.

Polls and batches of watched records are answered here, all other requests by Starlette (ADR 30).
"""

import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from control.access.auth import AuthError
from control.api import logs, operations, poll
from control.api.poll import PollEndpoint
from control.api.services import Services
from control.clock import Clock, SystemClock
from control.console.hub import Hub
from control.console.node_functions import NodeFunctions
from control.problems import ProblemError
from control.settings import ControlSettings, check
from control.web import lifespan, starlette_app

CLOSE = {401, 408, 413, 422, 503}
"""Statuses after which the connection is closed: the client is refused, sent a wrong body, or should go elsewhere."""

log = logging.getLogger("skerry.control")


class ControlApp:
    """The application; `services` exists between the lifespan's start and its end."""

    services: Services

    def __init__(self, settings: ControlSettings, clock: Clock) -> None:
        check(settings)
        self._settings = settings
        self._clock = clock
        self._prefix = secrets.token_hex(4).encode()
        self._count = itertools.count(1)
        self._starlette = starlette_app.starlette(self._lifespan)
        self._polls: PollEndpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Everything that a poll needs is in one function: each function call costs a hundredth of a poll.
        if scope["type"] != "http":
            return await self._starlette(scope, receive, send)
        started = time.perf_counter()
        request_id = scope["request_id"] = b"%s-%x" % (self._prefix, next(self._count))
        route, status = scope["path"], 0
        try:
            batch = route.startswith(logs.BATCHES) and scope["method"] == "POST"
            if route != poll.PATH and not batch:
                route = "none"

                async def send_identified(message: Message) -> None:
                    nonlocal status
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        message["headers"].append((b"x-request-id", request_id))
                        if status in CLOSE:
                            message["headers"].append((b"connection", b"close"))
                    await send(message)

                try:
                    if self.services.tracing is None:
                        return await self._starlette(scope, receive, send_identified)
                    with self.services.tracing.request(scope, lambda: status):
                        return await self._starlette(scope, receive, send_identified)
                finally:
                    if "endpoint" in scope:
                        route = scope["endpoint"].pattern
            reply: operations.Reply | None
            try:
                if batch:
                    route = logs.BATCH_ROUTE
                    reply = await logs.take_at_once(self.services, scope, receive)
                else:
                    reply = await self._polls.answer(scope, receive)
            except ProblemError as error:
                if isinstance(error, AuthError):
                    starlette_app.count_refusal(self.services, scope, error)
                reply = operations.refusal(error)
            except Exception:
                reply = operations.refusal(operations.internal(scope))
            if reply is None:
                return None
            status = reply.status
            headers = [*reply.headers, (b"x-request-id", request_id)]
            if status in CLOSE:
                headers.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        except Exception:
            # The server logs it and closes the connection.
            log.error(
                "request %s: %s %s was cut off within its answer", request_id.decode(), scope["method"], scope["path"]
            )
            raise
        finally:
            self.services.metrics.request(scope["method"], route, status, time.perf_counter() - started)

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Connect, load, and run the background tasks until the block ends.

        Raises: SchemaError, when the database's schema doesn't fit; ProblemError, when control can't serve.
        """
        return self._starlette.router.lifespan_context(self._starlette)

    @asynccontextmanager
    async def _lifespan(self, _starlette: Starlette) -> AsyncIterator[None]:
        async with lifespan.running(self._settings, self._clock) as services:
            self.serve_with(services)
            yield
            await self.hub.stop()
            await self.node_functions.stop()

    def close(self) -> None:
        """Answer every held poll and end every live page now, and hold no others: the replica is stopping."""
        self.services.fleet.close()
        self.hub.close()

    def serve_with(self, services: Services) -> None:
        """Answer requests with these services."""
        self.services = self._starlette.state.services = services
        self.hub = self._starlette.state.hub = Hub(services.clock)
        self.node_functions = NodeFunctions(services)
        self._starlette.state.node_functions = self.node_functions
        services.metrics.watch_readers(lambda: self.hub.streams, lambda: len(services.watching.views))
        self._polls = PollEndpoint(services)
        services.reread.changed.append(self._take_changes)

    def _take_changes(self) -> None:
        """Go by what was read again of files."""
        self.services.settings = self.services.live_settings.settings
        self._polls.reload()


def create_app(settings: ControlSettings, *, clock: Clock | None = None) -> ControlApp:
    """Make the application for these settings. Raises: ControlSettingsError, when they aren't safe."""
    return ControlApp(settings, clock or SystemClock())
