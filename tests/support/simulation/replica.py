"""A replica of control in a run: the program's application and sync manager, on the simulated database and network."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from control.access.auth import Authenticator, OperatorUses
from control.access.auth_failures import AuthFailures
from control.access.certificates import ControlCertificates
from control.access.rate_limits import NodeLimits
from control.access.sessions import Sessions
from control.api.services import Databases, Services
from control.backups.grants import Grants
from control.live_settings import LiveSettings
from control.metrics import ControlMetrics
from control.reread_files import RereadFiles
from control.settings import ControlSettings
from control.storage.object_store import Store
from control.sync.fleet_cache import FleetCache
from control.sync.heartbeats import Heartbeats
from control.sync.monitor import Monitor
from control.sync.node_state import Targets
from control.sync.reconciler import Reconciler
from control.sync.reports import Reports
from control.sync.write_batches import WriteBatches
from control.telemetry.ingest import NumbersIngest
from control.web.app import ControlApp
from tests.support.simulation.database import Database, Server
from tests.support.simulation.loop import Clock, VirtualLoop
from tests.support.simulation.network import Answer, Request
from tests.support.simulation.processes import Process, Risk

SETTINGS = ControlSettings(
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


class _Monitor(Monitor):
    async def seal(self, now: datetime) -> bool:
        """No row of the audit is sealed in a run."""
        return True


async def _nothing_old(now: datetime, seconds: float) -> bool:
    """No numbers are stored in a run."""
    return True


class Replica:
    """One of the replicas, over all its processes' lives."""

    def __init__(self, name: str, loop: VirtualLoop, server: Server, risk: Risk, answered: Answered) -> None:
        self.name = name
        self._loop = loop
        self._server = server
        self._risk = risk
        self._answered = answered
        self._app: ControlApp | None = None
        self._fleet: FleetCache | None = None

    def notices(self, backup: dict[str, dict[Any, dict[str, Any]]]) -> bool:
        """Whether the process sees that a backup is restored: its mark was written since the backup was made, or it has
        none yet and has read nothing."""
        if self._fleet is None:
            return True
        kept = backup["leases"].get(self._fleet.mark.name)
        return self._fleet.mark.committed > (0 if kept is None else int(kept["holder"]))

    @property
    def runs(self) -> bool:
        """Whether it listens."""
        return self._app is not None and self.process.alive

    def start(self) -> None:
        """Start a process of it."""
        self._app = self._fleet = None
        self.process = Process(self.name, self._risk)
        self.process.spawn(self._main(self.process))

    async def _main(self, process: Process) -> None:
        """The application's lifespan, but for what has to do with the artifact store, operators' checks and joins."""
        clock, metrics, db = Clock(self._loop), ControlMetrics(), cast(Any, Database(self._server, process))
        fleet, nothing = FleetCache(db, clock, metrics), cast(Any, None)
        heartbeats, targets, lease = Heartbeats(db, clock, metrics), Targets(), SETTINGS.sync_lease
        store = Store(nothing, nothing, "run", SETTINGS)
        reconciler, reports = Reconciler(clock, targets, store, lease), Reports(clock, targets, lease)
        written = (db, fleet, heartbeats, metrics)
        operators = Authenticator(fleet, clock, db, SETTINGS, OperatorUses(db, clock))
        services = Services(
            settings=SETTINGS,
            clock=clock,
            databases=Databases(**dict.fromkeys(Databases.__dataclass_fields__, db)),
            **dict.fromkeys(
                (
                    "ownership",
                    "access",
                    "builder",
                    "deletions",
                    "drills",
                    "backup_counts",
                    "checks",
                    "readiness",
                    "states",
                    "comparison",
                    "join_tokens",
                    "watching",
                    "sign_ins",
                    "people",
                ),
                nothing,
            ),
            **dict.fromkeys(("standings", "numbers_kept", "recent_calls", "schedules", "fleet_metrics"), nothing),
            numbers=NumbersIngest(db, clock),
            store=store,
            provider=None,
            auth=operators,
            sessions=Sessions(fleet, clock, operators, db, db, db, SETTINGS),
            failures=AuthFailures(db, clock),
            node_limits=NodeLimits(clock.monotonic),
            grants=Grants(db, db, clock),
            fleet=fleet,
            heartbeats=heartbeats,
            decisions=WriteBatches(*written, reconciler.write, fault="control.poll", finish=reconciler.finish),
            reports=WriteBatches(*written, reports.write, fault="control.result"),
            metrics=metrics,
            tracing=None,
            certificates=ControlCertificates(SETTINGS, clock),
            reread=RereadFiles({}, clock),
            live_settings=LiveSettings(SETTINGS),
        )
        while True:
            try:
                await fleet.refresh()
                break
            except Exception:
                await asyncio.sleep(1)  # as its service manager would start it again
        self._fleet = fleet
        for run in (fleet.run, fleet.mark.run, services.decisions.run, services.reports.run, services.heartbeats.run):
            process.spawn(run())
        monitor = _Monitor(db, clock, metrics, SETTINGS, sweep=nothing, tidy=_nothing_old)
        process.spawn(monitor._loop(monitor.tick, 2.0))
        app = ControlApp(SETTINGS, clock)
        app.serve_with(services)
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
