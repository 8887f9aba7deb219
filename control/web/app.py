"""The ASGI application: what every request goes through, and the lifespan that builds `Services`."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

from starlette.types import Receive, Scope, Send

from control.api import auth, operations, poll
from control.api.auth import AuthError, AuthFailures
from control.api.edge_check import Checks
from control.api.probes import Readiness
from control.api.services import Services
from control.clock import Clock, SystemClock
from control.local import pki
from control.metrics import Metrics
from control.problems import ProblemError
from control.settings import Settings, check
from control.storage import artifact_deletions, database, migrations, object_store
from control.storage.bucket_owner import Ownership
from control.storage.transaction_queue import Turns
from control.sync import reconciler, reports
from control.sync.fleet_cache import Fleet
from control.sync.heartbeats import Presence
from control.sync.monitor import Monitor
from control.sync.targets import Targets
from control.web import router

CLOSE = {401, 408, 413, 422, 503}
"""Statuses after which the connection is closed: its client is unwelcome, wrong about the body, or to go elsewhere."""
RESTART_PAUSE = 1.0
STORE_PATIENCE = 3.0
"""Seconds that a start waits for the artifact store, without which nodes are served too."""
JOINS, FIRST_POLLS = 2, 2
"""Connections to the metadata database beside those of `Settings.database_connections`, half of which are for lists."""
STEADY, BESIDE, SLICES, READINESS = 3, 4, 2, 1
"""Connections for what must go on however many requests wait for one; see `Services`."""
BACKGROUND_LOCK_TIMEOUT = 0.3
"""Seconds for which plans, reports and heartbeats wait for a locked row, before they go on without it."""

log = logging.getLogger("skerry.control")


class App:
    """The application; `services` is there between the lifespan's start and its end."""

    services: Services

    def __init__(self, settings: Settings, clock: Clock) -> None:
        check(settings)
        self._settings = settings
        self._clock = clock
        self._prefix = secrets.token_hex(4).encode()
        self._count = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # All that every request needs in one function: it runs for each poll, and a call costs a hundredth of one.
        if scope["type"] != "http":
            return await self._no_request(scope, receive, send)
        started = time.perf_counter()
        request_id = b"%s-%x" % (self._prefix, next(self._count))
        services, method, path = self.services, scope["method"], scope["path"]
        route, status = "none", 0
        try:
            try:
                if path == poll.PATH:
                    route = path
                    answer = await poll.answer(services, scope, receive)
                else:
                    found = router.find(path)
                    route = found.pattern
                    answer = await operations.answer(
                        services, found.operation(method), found.parameters, scope, receive
                    )
            except ProblemError as error:
                if isinstance(error, AuthError):
                    services.failures.record(auth.address(scope), error.reason)
                    services.metrics.auth_failure(error.reason)
                answer = operations.refusal(error)
            except Exception:
                log.exception("request %s: %s %s failed", request_id.decode(), method, path)
                detail = f"this is a fault of control; its log has more about request {request_id.decode()}"
                answer = operations.refusal(ProblemError("internal", detail))
            if answer is None:
                return None
            status = answer.status
            headers = [*answer.headers, (b"x-request-id", request_id)]
            if status in CLOSE:
                headers.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            if isinstance(answer.body, bytes):
                await send({"type": "http.response.body", "body": answer.body})
            else:
                async with aclosing(answer.body) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except Exception:
            # The server logs it, and ends the connection.
            log.error("request %s: %s %s was cut off within its answer", request_id.decode(), method, path)
            raise
        finally:
            services.metrics.request(method, route, status, time.perf_counter() - started)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Services]:
        """Connect, load, and run what runs beside the requests. Raises `SchemaError` or `ProblemError`."""
        settings, clock = self._settings, self._clock
        async with AsyncExitStack() as stack:
            metrics = Metrics()
            connect = partial(
                database.connect,
                settings.metadata_url,
                statement_timeout=settings.database_timeout,
                outages=database.Outages(),
                on_retry=metrics.retried,
            )
            half = max(1, settings.database_connections // 2)
            requests = await connect(connections=2 * half + JOINS + FIRST_POLLS + STEADY)
            stack.push_async_callback(requests.close)
            await migrations.check(requests)
            own = await connect(connections=BESIDE + SLICES + READINESS, lock_timeout=BACKGROUND_LOCK_TIMEOUT)
            stack.push_async_callback(own.close)
            turns = Turns()
            db = requests.share(half, "requests")
            steady = requests.share(STEADY, "targets")
            beside = own.share(BESIDE, "work in the background")
            objects = await stack.enter_async_context(object_store.connect(settings))
            ownership = Ownership(beside, objects, clock)
            try:
                async with asyncio.timeout(STORE_PATIENCE):
                    await ownership.confirm()
            except ProblemError as error:
                if error.code == "store_not_owned":
                    raise
                log.warning("serving without the artifact store for now")
            except TimeoutError:
                log.warning("the artifact store hasn't answered for %.0f s: serving without it", STORE_PATIENCE)
            readiness = Readiness(own.share(READINESS, "readiness"), ownership, clock)
            stack.push_async_callback(readiness.close)
            join_tokens = auth.join_tokens(steady)
            stack.push_async_callback(join_tokens.stop)
            fleet = Fleet(steady, clock, metrics)
            stack.push_async_callback(fleet.stop)
            pem = settings.ca_cert.read_bytes() if settings.ca_cert is not None else b""
            services = Services(
                settings=settings,
                clock=clock,
                db=db,
                writes=db.taking(turns),
                lists=requests.share(half, "lists"),
                joins=requests.share(JOINS, "joins").taking(turns),
                first_polls=requests.share(FIRST_POLLS, "first polls").taking(turns),
                slices=own.share(SLICES, "plans and reports").taking(turns),
                steady=steady,
                beside=beside,
                store=objects,
                ownership=ownership,
                checks=Checks(settings.checks_at_once, settings.check_timeout),
                readiness=readiness,
                failures=AuthFailures(beside, clock),
                join_tokens=join_tokens,
                fleet=fleet,
                presence=Presence(beside, clock, metrics),
                metrics=metrics,
                targets=Targets(),
                ca_pem=pem,
                ca_fingerprint=pki.fingerprint(pem) if pem else "",
            )
            services.opener, services.reports = reconciler.opener(services), reports.reports(services)
            services.deletions = artifact_deletions.Deletions(services)
            await fleet.load()
            slices = (services.opener.run, services.reports.run)
            stored = (ownership.run, services.deletions.run)
            others = (services.presence.run, services.failures.run, Monitor(services).run)
            await stack.enter_async_context(_running(fleet.run, *slices, *stored, *others))
            self.services = services
            yield services

    async def _no_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket, which is refused, or the ASGI lifespan protocol, for servers that aren't ours."""
        if scope["type"] != "lifespan":
            return await send({"type": "websocket.close", "code": 1000})
        await receive()
        started = False
        try:
            async with self.lifespan():
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{'shutdown' if started else 'startup'}.failed", "message": str(error)})
            raise
        return await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings, *, clock: Clock | None = None) -> App:
    """The application for these settings; raises `SettingsError` for settings that aren't safe."""
    return App(settings, clock or SystemClock())


@asynccontextmanager
async def _running(*loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `loops` beside the requests, each again when a mistake of ours ends it, until the block ends."""

    async def keep(loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await loop()
            except Exception:
                log.exception("a background task failed; it starts again in %.0f s", RESTART_PAUSE)
            await asyncio.sleep(RESTART_PAUSE)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep(loop)) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
