"""A replica of control in a run: the program's application and sync manager, on the simulated database and network."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from control.api.auth import AuthFailures
from control.api.services import Services
from control.metrics import Metrics
from control.settings import Settings
from control.sync import reconciler, reports
from control.sync.fleet_cache import Fleet
from control.sync.heartbeats import Presence
from control.sync.monitor import Monitor
from control.sync.targets import Targets
from control.web.app import App
from tests.support.simulation.database import Database, Server
from tests.support.simulation.loop import Clock, VirtualLoop
from tests.support.simulation.network import Answer, Endpoint, Request
from tests.support.simulation.processes import Process, Risk

SETTINGS = Settings(
    metadata_url="postgresql://run@127.0.0.1/run",
    artifacts_url="http://key:secret@127.0.0.1:1/run",
    artifacts_delivery="control",
    hold=20.0,
    sync_lease=15.0,
    offline_after=25.0,
    overdue_after=45.0,
)
"""Shorter times than a fleet's, so that all of them pass in a run of some minutes."""

Answered = Callable[[Request, Answer], None]


class Replica(Endpoint):
    """One of the replicas, over all its processes' lives."""

    def __init__(self, name: str, loop: VirtualLoop, server: Server, risk: Risk, answered: Answered) -> None:
        self.name = name
        self.services: Services | None = None
        self._loop = loop
        self._server = server
        self._risk = risk
        self._answered = answered
        self._app: App | None = None

    @property
    def runs(self) -> bool:
        """Whether it listens."""
        return self._app is not None and self.process.alive

    def start(self) -> None:
        """Start a process of it."""
        self._app = None
        self.process = Process(self.name, self._risk)
        self.process.spawn(self._main(self.process))

    def kill(self) -> None:
        self.process.kill()

    async def _main(self, process: Process) -> None:
        """The application's lifespan, but for what has to do with the artifact store, operators' checks and joins."""
        clock, metrics, db = Clock(self._loop), Metrics(), cast(Any, Database(self._server, process))
        fleet, nothing = Fleet(db, clock, metrics), cast(Any, None)
        services = Services(
            settings=SETTINGS,
            clock=clock,
            **dict.fromkeys(("db", "lists", "steady", "beside", "writes", "joins", "first_polls", "slices"), db),
            **dict.fromkeys(("store", "ownership", "checks", "readiness", "join_tokens"), nothing),
            failures=AuthFailures(db, clock),
            fleet=fleet,
            presence=Presence(db, clock, metrics),
            metrics=metrics,
            targets=Targets(),
            ca_pem=b"",
            ca_fingerprint="",
        )
        services.opener, services.reports = reconciler.opener(services), reports.reports(services)
        while True:
            try:
                await fleet.load()
                break
            except Exception:
                await asyncio.sleep(1)  # as its service manager would start it again
        for run in (fleet.run, services.opener.run, services.reports.run, services.presence.run):
            process.spawn(run())
        monitor = Monitor(services)
        process.spawn(monitor._loop(monitor.tick, 2.0))
        app = App(SETTINGS, clock)
        app.services = self.services = services
        self._app = app

    def serve(self, request: Request) -> None:
        self.process.spawn(self._serve(request))

    async def _serve(self, request: Request) -> None:
        messages = [{"type": "http.request", "body": request.body, "more_body": False}]
        status, headers, parts = 0, {}, []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.shield(request.gone)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode().title(): value.decode() for name, value in message["headers"]}
            else:
                parts.append(message["body"])

        scope = {
            "type": "http",
            "method": request.method,
            "path": request.path,
            "query_string": b"",
            "headers": request.headers,
            "client": ("127.0.0.1", 1),
        }
        assert self._app is not None
        await self._app(scope, receive, send)
        if status and self.process.alive:
            answer = Answer(status, headers, b"".join(parts), self._loop.clock())
            self._answered(request, answer)
            if not request.answered.done():
                request.answered.set_result(answer)
