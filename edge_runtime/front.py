"""The front: one run of server, agent, pool and zygote, from the lock on the state directory to the last answer."""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

from control.protocol import version
from control.protocol.service_manager import ServiceManager
from edge_runtime import clock, logs, process_memory, threads, wal
from edge_runtime.backup.uploader import Uploader
from edge_runtime.built import parts
from edge_runtime.dispatch import resource_watchdog
from edge_runtime.dispatch.foreign_lock import ForeignLock
from edge_runtime.dispatch.guest_log import GuestLog
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.supervisor import Supervisor
from edge_runtime.dispatch.trial_load import TrialLoads
from edge_runtime.dispatch.worker_link import Hooks
from edge_runtime.egress.http_client import HttpClient, RequestsInFlight
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.metrics import EdgeMetrics
from edge_runtime.node_health import NodeHealth
from edge_runtime.release import applier_process
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.integrity_check import IntegrityCheck
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.release.secrets import FILE, Secrets
from edge_runtime.release.witness import Witness
from edge_runtime.schedules.scheduler import Scheduler
from edge_runtime.settings import EdgeSettings
from edge_runtime.state import State, make_reserve
from edge_runtime.status import NodeStatus
from edge_runtime.sync.node_agent import NodeAgent
from edge_runtime.telemetry import span_sender
from edge_runtime.telemetry.call_records import CallRecords
from edge_runtime.telemetry.call_traces import CallTracer
from edge_runtime.telemetry.hour_of_calls import HourOfCalls
from edge_runtime.telemetry.node_log import RingHandler
from edge_runtime.telemetry.poll_report import PollReport
from edge_runtime.telemetry.repeated_traps import RepeatedTraps
from edge_runtime.telemetry.ring import FOLDER, Ring
from edge_runtime.web.app import EdgeApp
from edge_runtime.web.callers import Callers
from edge_runtime.web.node_socket import NodeSocket
from edge_runtime.web.server import EdgeServer
from edge_runtime.web.tls_files import TlsFiles
from edge_runtime.web.token_file import TokenFile

log = logging.getLogger("skerry.front")

RESERVE_PERIOD: Final = 30.0
"""Seconds between two checks whether there is room for the reserve."""
AGAIN: Final = 10.0
"""Seconds until a background task that failed because of a bug is restarted."""


MakeAgent = Callable[[ReleaseManager, Compiler], NodeAgent]


class Front:
    """Puts the front together, and runs it once.

    Without an agent it serves the release in the state directory, and nothing changes that.
    """

    def __init__(
        self, settings: EdgeSettings, state: State, make_agent: MakeAgent | None = None, node: str = ""
    ) -> None:
        """Put the parts together; `node` is the node's name, or empty if it isn't part of a fleet."""
        self.settings = settings
        children = frames.ChildSettings(
            str(state.path),
            settings.synchronous,
            settings.temp_limit,
            settings.fence,
            code_memory=settings.code_memory,
            wal_limit=settings.wal_limit,
            backup_limit=settings.backup_limit,
        )
        self.processes = ZygoteClient(children, state.lock)
        self.fetches = RequestsInFlight(HttpClient(settings.networks))
        self.pool = Pool(settings)
        self.ring = Ring(state.path / FOLDER, settings.records_limit, settings.records_age, node)
        self.guest_log = GuestLog(self.ring.put, node)
        self.hooks = Hooks(self.guest_log, self.fetches.begin, named=self.pool.named)
        self.call_records = CallRecords(self.pool.tallies.values, self.ring.put, node)
        self.secrets = Secrets(settings.secrets or state.path / FILE)
        self.traps = RepeatedTraps(self.processes, self.secrets.of)
        self.hooks.trapped = self.traps.note
        self.supervisor = Supervisor(
            self.pool, self.processes, TrialLoads(self.processes, settings.code_memory), self.hooks
        )
        self.compiler = Compiler(
            state.artifacts,
            state.aot,
            self.processes,
            settings.compile_limit,
            settings.compile_wait,
            settings.code_memory,
            settings.engine_compile_limit,
        )
        self.manager = ReleaseManager(
            self.pool,
            self.supervisor,
            self.compiler,
            self.processes,
            self.secrets,
            Witness(state.path),
            flip_limit=settings.flip_limit,
            apply_limit=settings.apply_limit,
        )
        # The limit on a worker's files must leave room for one more call's transaction.
        most = settings.temp_limit - settings.wal_limit
        self.checkpoints = CheckpointSchedule(
            self.processes, self.pool, state.path / wal.FILE, settings.wal_limit, most
        )
        self.scheduler = Scheduler(self.pool)
        self.hooks.damaged = self.manager.damaged
        self.manager.before_commit = self.checkpoints.before_commit
        self.manager.committing = self.checkpoints.before_release
        self.manager.committed = self.checkpoints.after_release
        self.verification = IntegrityCheck(self.manager, self.compiler, self.processes, state.artifacts)
        self.agent = make_agent(self.manager, self.compiler) if make_agent is not None else None
        asks = settings.tls_client_ca is not None
        self.callers = Callers(settings.callers, certificates=asks) if settings.callers is not None else None
        self.tls_files: TlsFiles | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.tls_files = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self.backup: Uploader | None = None
        if self.agent is not None:
            if self.agent.watched is not None:  # otherwise there is no control
                self.backup = Uploader(state.path, self.checkpoints, settings.backup_bandwidth)
                self.agent.backup = self.backup
                self.manager.finish_backup = self.backup.finish
            own = NodeHealth(self.pool, self.checkpoints, self.agent, self.tls_files, self.backup, self.scheduler)
            self.agent.renamed = self._renamed
            hour = HourOfCalls(self.pool.tallies.values)
            self.agent.numbers = PollReport(self.pool.counted, self.pool.release_number, own.measure, hour)
            if self.backup is not None:
                self.backup.tell_soon = self.agent.numbers.tell_node_soon
        metrics = EdgeMetrics(
            self.pool,
            self.processes,
            self.checkpoints,
            self.callers,
            agent=self.agent,
            tls_files=self.tls_files,
            ring=self.ring,
            backup=self.backup,
            scheduler=self.scheduler,
        )
        self.app = EdgeApp(settings, self.pool, self.status, metrics.text, self.callers)
        self.spans = span_sender.of_settings(settings, node) if settings.otlp_url else None
        if self.spans is not None:
            self.app.tracer = CallTracer(settings.trace_share, self.spans.put)
            if self.agent is not None:
                self.agent.put_span = self.spans.put
        self.token_file = None
        if settings.token_file is not None:
            self.token_file = TokenFile(settings.token_file, lambda token: setattr(self.app, "token", token))
        self.server = EdgeServer(self.app, settings, self.callers, self.tls_files, self.token_file)
        self._status = NodeStatus(
            self.pool,
            self.supervisor,
            self.processes,
            self.manager,
            self.compiler,
            self.secrets,
            self.verification,
            self.checkpoints,
            self.server,
            self.callers,
            self.tls_files,
            self.token_file,
            self.ring,
            self.scheduler,
            self.backup,
        )
        self.node_socket = NodeSocket(state.path, {"status": self.status})
        self.handed: socket.socket | None = None
        """The listening socket that a service manager handed over, if any."""
        self.service_manager = ServiceManager()
        """The service manager that started the process, which may want to know its state."""
        self.port = 0
        """Port of the local HTTP, once it is bound."""
        self.ready = asyncio.Event()
        """Set when calls are served."""
        self._stop = asyncio.Event()
        self._kept: RingHandler | None = None

    def _renamed(self, name: str) -> None:
        """Use the node's new name for records from now on; traces use it after the next start."""
        logs.name_node(name)
        self.ring.node = self.guest_log.node = self.call_records.node = name
        if self._kept is not None:
            self._kept.node = name

    def stop(self) -> None:
        """End the run: new calls are refused, running ones may finish."""
        self._stop.set()

    def read_again(self) -> None:
        """Reread at once the files that can change while the node runs: of callers, TLS, and its token."""
        self.server.look_now.set()

    async def run(self) -> None:
        """Serve until `stop`, on the socket `handed` if there is one.

        Raises: FileUnfit or EdgeSettingsError, perhaps in an ExceptionGroup, MachineUnfit or DatabaseUnfit, when the
        node can't serve.
        """
        settings = self.settings
        self.port = self.server.bind(self.handed)
        later = asyncio.get_running_loop().call_soon_threadsafe
        kept = self._kept = RingHandler(self.ring.put, later, self.ring.node)
        logging.getLogger().addHandler(kept)
        log.info("this is skerry-edge %s", version.running().text)
        for name, part in parts.document().items():
            log.log(logging.WARNING if part["stale"] else logging.INFO, "%s", parts.told(name, part))
        self.ring.start()
        await self.node_socket.open()
        if self.spans is not None:
            self.spans.start()
        try:
            await threads.start()
            async with asyncio.TaskGroup() as group:
                processes = group.create_task(self.processes.run())
                workers = [
                    group.create_task(work)
                    for work in (
                        self.supervisor.run(),
                        _kept_up(self.checkpoints.run),
                        self.fetches.run(),
                        self.call_records.run(),
                        self.traps.run(),
                        _kept_up(ForeignLock(self.pool, self.processes, settings.state.absolute() / wal.FILE).run),
                        self.compiler.compilations.run(),
                        self._tell_manager(),
                        self._keep_reserve(),
                        resource_watchdog.run(
                            self.pool,
                            settings.worker_memory,
                            (settings.state / wal.TEMPORARY).resolve(),
                            settings.temp_limit,
                        ),
                    )
                ]
                serving = group.create_task(self.server.run_until_stopped())
                # Changes need the workers, so they end first; a COMMIT that has begun is awaited.
                changing = group.create_task(self._change())
                await self._stop.wait()
                log.info("stopping")
                self.server.stop()
                await serving
                changing.cancel()
                await asyncio.wait([changing])
                for task in workers:
                    task.cancel()
                await asyncio.wait(workers)
                if self.ready.is_set():
                    await self.checkpoints.finish()
                processes.cancel()
        finally:
            self.server.close()
            self.node_socket.close()
            logging.getLogger().removeHandler(kept)
            self.call_records.make()
            self.ring.close()
            if self.spans is not None:
                await asyncio.to_thread(self.spans.close)

    async def _keep_reserve(self) -> None:
        """Make the reserve for a full disk, and restore it once there is room, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(make_reserve, self.settings.state)
            except OSError as error:
                log.error("the reserve for a full disk can't be made: %s", error)
            await clock.sleep(RESERVE_PERIOD)

    async def _change(self) -> None:
        """Serve the release that the node has, then newer ones and better code, until cancelled."""
        # Calls that arrive before the release is known wait.
        await self.manager.boot()
        log.info("serving on %s port %d", self.settings.address[0], self.port)
        self.ready.set()
        works = [self.manager.improve, self.manager.watch, self.manager.steps.run, self.verification.run]
        works.append(self.scheduler.run)
        if self.agent is not None:
            works += [self.agent.run, self._tell_rows]
            if self.agent.watched is not None:
                self.agent.watched.ring = self.ring
                self.agent.watched.functions = self._status.counts
                works.append(self.agent.watched.run)
        if self.backup is not None:
            works.append(self.backup.run)
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(_kept_up(work))

    async def _tell_manager(self) -> None:
        """Tell the service manager that the start continues, then that the node serves, and that it still does.

        However long the start takes: each of its steps has its own limit.
        """
        while not self.ready.is_set():
            self.service_manager.starting()
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(self.service_manager.period):
                    await self.ready.wait()
        self.service_manager.up()
        while True:
            # A front whose loop is stuck, or that has had no worker for a while, sends nothing.
            if any(link.usable for link in self.pool.links):
                self.service_manager.works()
            await clock.sleep(self.service_manager.period)

    async def _tell_rows(self) -> None:
        # Imported here, because a front without an agent doesn't need it.
        from edge_runtime.sync.row_count_reports import RowCountReports

        def schema() -> int:
            return self.manager.inventory.schema_version

        await RowCountReports(self.settings.state, lambda: applier_process.count_rows(self.processes), schema).run()

    def status(self) -> dict[str, Any]:
        """Return the document of /_skerry/status."""
        own = self._status.document()
        return {**(self.agent.status() if self.agent is not None else {}), **own}


async def _kept_up(work: Callable[[], Awaitable[None]]) -> None:
    """Run a background task until cancelled: a bug in it doesn't stop the serving of functions."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("the node made a mistake in what it does beside the calls; that is begun anew in a while")
        await clock.sleep(AGAIN)


def run(
    settings: EdgeSettings,
    make_agent: MakeAgent | None = None,
    begin: Callable[[Front], None] = lambda front: None,
    node: str = "",
) -> None:
    """Run a node until SIGTERM or SIGINT; a second signal kills it.

    `begin` gets the front before it runs; `node` is as in `Front`.

    Raises: StateUnfit, when the state directory can't be used, and as `Front.run`.
    """
    with State(settings.state, settings.start_wait) as state:
        _more_files()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main(settings, state, make_agent, begin, node))


async def _main(
    settings: EdgeSettings, state: State, make_agent: MakeAgent | None, begin: Callable[[Front], None], node: str
) -> None:
    front = Front(settings, state, make_agent, node)
    begin(front)
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        front.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    # Not the loop's handlers: the loop removes them when it ends, and the signal would then kill the process.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(front.read_again))
    # The objects made so far stay: full collections needn't examine them each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 10, 1000)
    process_memory.drop_mapped()
    try:
        await front.run()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _more_files() -> None:
    """Raise this process's limit on open files, which bounds the connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
