"""uvicorn as control needs it: limited connections, TLS, fewer garbage collections, and a fast shutdown.

`ControlServer` runs in the caller's loop, and a process may have several; `serve` is a whole process.
"""

import asyncio
import gc
import logging
import resource
import signal
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from control.access.certificates import CertificateError
from control.api import operations, probes
from control.api.services import Services
from control.clock import Clock, ClockError, SystemClock
from control.problems import ProblemError
from control.protocol import version
from control.protocol.counts import counted
from control.protocol.service_manager import ServiceManager
from control.settings import ControlSettings, is_loopback, listen_address
from control.web import connection_limits
from control.web.app import create_app
from control.web.listener import ListeningSockets

KEEP_ALIVE = 150
"""Seconds that an idle connection is kept: a new handshake costs as much as twenty polls. Nodes that send a record per
minute to a watcher keep theirs."""
BACKLOG = 4096
"""Connections that wait in the kernel to be accepted."""
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""Seconds for a client to take part in the shutdown of a TLS connection."""
TICK = 0.1
"""Seconds between two calls of `ControlServer.on_tick`."""
GRACE = 2.5
"""Seconds for unfinished answers when the server stops; held polls are answered at once."""
FULL_COLLECTION_TICKS = 36_000
"""Tenths of a second between two full garbage collections: each of them stops everything."""

METRICS = "/metrics"

log = logging.getLogger("skerry.server")


class StartError(Exception):
    """The server can't start; the message says why and what to do."""


class MetricsApp:
    """Serves `GET /metrics` without a token, for a Prometheus on the same machine, and nothing else."""

    def __init__(self, services: Callable[[], Services]) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; the server lets nothing else through."""
        if scope["path"] != METRICS:
            reply = operations.refusal(ProblemError("no_such_path", f"only {METRICS} is served here"))
        elif scope["method"] != "GET":
            reply = operations.refusal(ProblemError("method_not_allowed", f"{METRICS} takes GET", allow="GET"))
        else:
            reply = operations.prepared(await probes.scraped(self._services()))
        await reply(scope, receive, send)


class ControlServer(uvicorn.Server):
    """One replica's HTTP server. It raises what keeps it from starting; uvicorn's server would exit the process."""

    def __init__(
        self,
        settings: ControlSettings,
        *,
        clock: Clock | None = None,
        tame: bool = False,
        manager: ServiceManager | None = None,
    ) -> None:
        """`manager`: what started the process, and is told how it is."""
        self._manager = manager or ServiceManager()
        self._clock = clock or SystemClock()
        self.app = create_app(settings, clock=self._clock)
        self._settings = settings
        self._tame = tame
        self._services = AsyncExitStack()
        super().__init__(
            _config(self.app, host=settings.bind, port=settings.port, timeout_keep_alive=KEEP_ALIVE, backlog=BACKLOG)
        )

    @property
    def url(self) -> str:
        """Return the URL that it serves; valid once it is started."""
        scheme = "http" if self._settings.tls_cert is None else "https"
        return f"{scheme}://{_address(self._listener)}"

    @property
    def metrics_url(self) -> str:
        """Return the URL of the metrics without a token; '' if there is none. Valid once it is started."""
        listener = self._metrics_listener
        return "" if listener is None else f"http://{_address(listener)}{METRICS}"

    async def startup(self, sockets: Any = None) -> None:
        settings = self._settings
        _check_address(settings)
        telling = asyncio.create_task(self._tell_start())
        try:
            await self._services.enter_async_context(self.app.lifespan())
        except (CertificateError, ClockError) as error:
            raise StartError(str(error)) from error
        finally:
            telling.cancel()
        certificates = self.app.services.certificates
        listener = self._new_listener(self.config, None if certificates.context is None else certificates.served)
        try:
            await listener.listen(settings.bind, settings.port, BACKLOG)
        except OSError as error:
            await self._services.aclose()
            where = f"{settings.bind} port {settings.port} (SKERRY_BIND, SKERRY_PORT)"
            raise StartError(f"can't listen on {where}: {error}") from error
        self._listener = listener
        self._metrics_listener = None
        if settings.metrics_listen:
            self._metrics_listener = await self._listen_for_metrics(settings.metrics_listen)
        self.started = True
        if self._tame:
            # A full pass over ten thousand waiters stops everything for 0.3 s.
            gc.collect()
            gc.freeze()
            gc.set_threshold(2000, 10, 1_000_000)
        self._manager.up()
        log.info("control serves on %s", self.url)
        if self.metrics_url:
            log.info("metrics are at %s, without a token", self.metrics_url)

    async def _tell_start(self) -> None:
        """Tell the service manager that the start continues, until cancelled."""
        while True:
            self._manager.starting()
            await asyncio.sleep(self._manager.period)

    async def _listen_for_metrics(self, address: str) -> ListeningSockets:
        """Serve /metrics at `address`, without TLS. Raises: StartError, when it can't be used."""
        config = _config(MetricsApp(lambda: self.app.services))
        config.load()
        listener = self._new_listener(config, None)
        try:
            await listener.listen(*listen_address(address), BACKLOG)
        except OSError as error:
            self._listener.close()
            await self._services.aclose()
            raise StartError(f"can't listen on {address} (SKERRY_METRICS_LISTEN): {error}") from error
        return listener

    def _new_listener(self, config: uvicorn.Config, context: Callable[[], ssl.SSLContext] | None) -> ListeningSockets:
        def protocol() -> connection_limits.LimitedProtocol:
            made = connection_limits.LimitedProtocol(config=config, server_state=self.server_state, app_state={})
            made.clock = self._clock
            return made

        return ListeningSockets(protocol, context, HANDSHAKE_SECONDS, CLOSE_SECONDS, self._clock)

    def read_again(self) -> None:
        """Reread the files that can change while control runs: those of certificates, groups and secrets."""
        if self.started:
            self.app.services.reread.look_now()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            connection_limits.sweep(self.server_state.connections, self._clock.monotonic())
        if counter % max(int(self._manager.period / TICK), 1) == 0:
            # The event loop runs.
            self._manager.works()
        if self._tame and counter % FULL_COLLECTION_TICKS == FULL_COLLECTION_TICKS - 1:
            gc.collect()
        # 0 makes uvicorn set the Date of answers, which tells nodes the time: ten ticks of a busy loop take seconds.
        return await super().on_tick(0)

    async def shutdown(self, sockets: Any = None) -> None:
        """Answer every held poll (503, Retry-After, connection: close), and end the other requests, in three seconds.

        If the metadata database doesn't answer, this takes up to ten, most of them for remaining writes.
        """
        self._listener.close()
        if self._metrics_listener is not None:
            self._metrics_listener.close()
        self.app.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        deadline = asyncio.get_running_loop().time() + GRACE
        while (state.connections or state.tasks) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if state.tasks:
            log.warning("cut off by the end: %s", counted(len(state.tasks), "request"))
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await self._services.aclose()
        log.info("control has ended")


async def serve(
    settings: ControlSettings, *, clock: Clock | None = None, manager: ServiceManager | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal kills the process at once. SIGHUP rereads files.

    `manager` is as in `ControlServer`. Raises what keeps it from starting.
    """
    _raise_limit()
    log.info("this is skerry %s", version.running().text)
    server = ControlServer(settings, clock=clock, tame=True, manager=manager)
    loop = asyncio.get_running_loop()
    # Not uvicorn's serve(), which would raise the signal again at the end.
    serving = asyncio.ensure_future(server._serve())

    def stop() -> None:
        if server.should_exit:
            sys.exit(1)
        server.should_exit = True
        if not server.started:
            # What a start waits for may take long, for instance a database that doesn't answer.
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # Not the loop's handlers: when one is removed, its signal kills the process until another handler is set.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(server.read_again))
    try:
        await serving
    except asyncio.CancelledError:
        if not server.should_exit:
            raise
        log.info("control has ended before it was up")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _config(app: Any, **more: Any) -> uvicorn.Config:
    """Make uvicorn's configuration of an application; `more` are further options of uvicorn's."""
    return uvicorn.Config(
        app,
        http=connection_limits.LimitedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        # The client's real address is recorded with refusals, so a header must not replace it.
        proxy_headers=False,
        server_header=False,
        **more,
    )


def _address(listener: ListeningSockets) -> str:
    """Return a listener's HOST:PORT, as in URLs."""
    host, port = listener.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(settings: ControlSettings) -> None:
    """Check that others can't reach control without TLS (R 7.2). Raises: StartError."""
    if settings.tls_cert is None and not is_loopback(settings.bind):
        raise StartError(
            "control speaks TLS to other machines: set SKERRY_TLS_CERT and SKERRY_TLS_KEY, or bind to 127.0.0.1 "
            f"instead of {settings.bind}"
        )


def _raise_limit() -> None:
    """Raise the limit on file descriptors as far as the system allows: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
