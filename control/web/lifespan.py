"""The life of a replica: builds its `Services`, and runs the background tasks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import partial

from control.access.auth import Authenticator, OperatorUses
from control.access.auth_failures import AuthFailures
from control.access.certificates import ControlCertificates
from control.access.join_tokens import JoinTokens
from control.access.openid_groups import GrantsError
from control.access.openid_people import People
from control.access.openid_provider import Provider
from control.access.rate_limits import NodeLimits
from control.access.sessions import Sessions
from control.access.sign_ins import SignIns
from control.api import rollouts
from control.api.services import Databases, Services
from control.backups.backup_metrics import BackupMetrics
from control.backups.builder import Builder, private_folder
from control.backups.drills import Drills
from control.backups.grants import Grants
from control.backups.keeper import BackupKeeper
from control.backups.losses import RowComparison
from control.backups.merging import Merger
from control.backups.targets import StateFinder
from control.clock import Clock, ClockError, SystemClock
from control.edge_check import Checks
from control.live_settings import LiveSettings
from control.metrics import ControlMetrics
from control.problems import ProblemError
from control.protocol.wire import SyncState
from control.reread_files import Reread, RereadFiles
from control.rollouts.measuring import Measuring
from control.rollouts.rollout_metrics import RolloutMetrics
from control.rollouts.runner import RolloutRunner
from control.settings import ControlSettings, ControlSettingsError
from control.storage import database, migrations, object_store, queries
from control.storage.access_journal import AccessJournal
from control.storage.artifact_deletions import Deletions
from control.storage.bucket_owner import Ownership
from control.storage.connection_quotas import Turns
from control.storage.readiness import Readiness
from control.sync.fleet_cache import FleetCache
from control.sync.heartbeats import Heartbeats
from control.sync.node_state import Targets
from control.sync.reconciler import Decision, NodeRequest, Reconciler
from control.sync.reports import Reports, SyncReport
from control.sync.write_batches import WriteBatches
from control.telemetry.call_history import CallHistoryKeeper
from control.telemetry.fleet_metrics import FleetMetrics
from control.telemetry.fleet_summary import FleetReader
from control.telemetry.ingest import NumbersIngest
from control.telemetry.recent_calls import RecentCallsReader
from control.telemetry.schedules import ScheduleReader
from control.telemetry.watching.watch_service import WatchService
from control.telemetry.webhooks.webhook_client import WebhookClient
from control.telemetry.webhooks.webhook_sender import WebhookSender
from control.tracing import Tracing

TIME = queries.load("database").value("time", datetime)

RESTART_PAUSE = 1.0
"""Seconds after which a failed background task starts again."""
BUILD_LIMIT = 3600.0
"""Seconds that making a database of a backup's files may take, once they are downloaded."""
STORE_PATIENCE = 3.0
"""Seconds that a start waits for the artifact store; nodes are served even without it."""
LISTS_PATIENCE = 30.0
"""Seconds for which a start reads access lists; if there are more, nobody is let in until they are read."""
JOINS, FIRST_POLLS, CACHE = 2, 2, 3
"""Connections to the metadata database beyond those of `ControlSettings.database_connections`; see `Databases`."""
BACKGROUND, BATCHES, READINESS = 4, 2, 1
"""Connections of a second pool, with a shorter lock timeout."""
BACKGROUND_LOCK_TIMEOUT = 0.3
"""Seconds that plans, reports and background tasks wait for a locked row before they continue without it."""

log = logging.getLogger("skerry.control")


@asynccontextmanager
async def running(settings: ControlSettings, clock: Clock) -> AsyncIterator[Services]:
    """Connect, load the cache, and run the background tasks until the block ends.

    Raises: ClockError, when the time isn't known; CertificateError, when the certificates can't be used; SchemaError,
    when the database's schema doesn't fit; ProblemError, when the database doesn't answer or the bucket belongs to
    another control.
    """
    async with AsyncExitStack() as stack:
        metrics = ControlMetrics()
        live = LiveSettings(settings)
        settings = live.settings
        databases = await _connect(settings, clock, metrics, stack)
        await _know_time(databases.cache, clock)
        # Expiry is checked by this machine's own clock, as in TLS.
        certificates = ControlCertificates(settings, SystemClock(), metrics)
        certificates.start()
        store = await stack.enter_async_context(object_store.connect(settings))
        store.on_answer = metrics.store
        ownership = Ownership(databases.background, store, clock)
        await _confirm(ownership, clock)
        access = AccessJournal(databases.background, store, clock)
        known = await _look_back(access, clock)
        readiness = Readiness(databases.readiness, ownership, clock)
        stack.push_async_callback(readiness.close)
        join_tokens = JoinTokens(databases.cache, clock)
        stack.push_async_callback(join_tokens.stop)
        fleet = FleetCache(databases.cache, clock, metrics)
        stack.push_async_callback(fleet.stop)
        fleet.after_restore = lambda restored: access.apply(restored=restored)
        background = databases.background
        heartbeats = Heartbeats(background, clock, metrics)
        failures = AuthFailures(background, clock)
        deletions = Deletions(background, store, ownership, clock, settings.unknown_objects_kept)
        standings = FleetReader(databases.lists, clock)
        stack.push_async_callback(standings.stop)
        numbers = NumbersIngest(background, clock)
        recent_calls = RecentCallsReader(databases.lists, clock, fleet, numbers)
        stack.push_async_callback(recent_calls.stop)
        rollout_metrics = RolloutMetrics(databases.lists, clock)
        stack.push_async_callback(rollout_metrics.stop)
        backup_metrics = BackupMetrics(databases.lists, clock)
        stack.push_async_callback(backup_metrics.stop)
        schedules = ScheduleReader(databases.lists, clock)
        stack.push_async_callback(schedules.stop)
        more = [rollout_metrics.text, backup_metrics.text, schedules.text]
        fleet_metrics = FleetMetrics(standings, numbers, fleet, clock, more)
        stack.push_async_callback(fleet_metrics.stop)
        targets = Targets()
        traces = Tracing(settings, fleet.mark.name) if settings.otlp_url else None
        if traces is not None:
            stack.push_async_callback(traces.close)
        parent = None if traces is None else traces.sync_parent
        reconciler = Reconciler(clock, targets, store, settings.sync_lease, parent)
        decisions: WriteBatches[NodeRequest, Decision] = WriteBatches(
            databases.batches,
            fleet,
            heartbeats,
            metrics,
            reconciler.write,
            fault="control.poll",
            finish=reconciler.finish,
        )
        reports: WriteBatches[SyncReport, SyncState] = WriteBatches(
            databases.batches,
            fleet,
            heartbeats,
            metrics,
            Reports(clock, targets, settings.sync_lease).write,
            fault="control.result",
        )
        uses = OperatorUses(background, clock)
        authenticator = Authenticator(fleet, clock, databases.first_polls, settings, uses)
        sessions = Sessions(fleet, clock, authenticator, databases.cache, databases.writes, background, settings)
        stack.push_async_callback(sessions.stop)
        sign_ins = SignIns(sessions, clock, databases.cache, databases.writes)
        stack.push_async_callback(sign_ins.stop)
        folder = stack.enter_context(private_folder(settings.spool))
        checks = Checks(settings.checks_at_once, settings.check_timeout)
        builder = Builder(store, folder, settings.backup_limit, BUILD_LIMIT)
        merger = Merger(store, builder, ownership, folder)
        drills = Drills(background, store, builder, merger, checks, clock, folder)
        keeper = BackupKeeper(background, builder, merger, drills, clock, settings.backup_drill_bytes)
        provider = _provider(settings, clock)
        if provider is not None:
            stack.push_async_callback(provider.close)
        parts: dict[str, Reread] = {"certificates": certificates, "settings": live}
        if provider is not None:
            parts["oidc"] = provider.files
        for what, part in parts.items():
            metrics.watch_files(what, lambda part=part: bool(part.error))  # type: ignore[misc]
        services = Services(
            settings=settings,
            clock=clock,
            databases=databases,
            store=store,
            ownership=ownership,
            access=access,
            deletions=deletions,
            checks=checks,
            readiness=readiness,
            auth=authenticator,
            sessions=sessions,
            sign_ins=sign_ins,
            people=People(sessions, fleet, clock, databases.writes, settings),
            provider=provider,
            join_tokens=join_tokens,
            failures=failures,
            node_limits=NodeLimits(clock.monotonic),
            grants=Grants(databases.joins, databases.writes, clock),
            builder=builder,
            comparison=RowComparison(builder, clock),
            drills=drills,
            backup_counts=backup_metrics,
            states=StateFinder(databases.lists, builder, clock),
            fleet=fleet,
            heartbeats=heartbeats,
            decisions=decisions,
            reports=reports,
            numbers=numbers,
            numbers_kept=CallHistoryKeeper(background, clock),
            recent_calls=recent_calls,
            schedules=schedules,
            fleet_metrics=fleet_metrics,
            standings=standings,
            watching=WatchService(background, databases.writes, fleet, clock),
            metrics=metrics,
            tracing=traces,
            certificates=certificates,
            reread=RereadFiles(parts, clock),
            live_settings=live,
        )
        fleet.restoring = not known
        if known:
            await fleet.refresh()
        gates_webhooks = WebhookClient(settings.webhook_networks, clock)
        measuring = await stack.enter_async_context(Measuring(background, clock, numbers, gates_webhooks))
        rollout_runner = RolloutRunner(background, fleet, clock, measuring, rollouts.roll_back(clock))
        webhooks = WebhookSender(background, clock, metrics, WebhookClient(settings.webhook_networks, clock))
        tasks = {
            "fleet cache": fleet.run,
            "replica mark": fleet.mark.run,
            "plans": decisions.run,
            "reports": reports.run,
            "bucket's owner": ownership.run,
            "deletions": deletions.run,
            "access lists": access.run,
            "heartbeats": heartbeats.run,
            "numbers": numbers.run,
            "refusals": failures.run,
            "sessions": sessions.run,
            "uses of tokens": uses.run,
            "files": services.reread.run,
            "live records": services.watching.run,
            "backups": keeper.run,
            "monitor": services.monitor().run,
            "rollouts": rollout_runner.run,
            "webhooks": webhooks.run,
        }
        await stack.enter_async_context(_in_background(clock, tasks))
        yield services


def _provider(settings: ControlSettings, clock: Clock) -> Provider | None:
    """Make the OpenID provider of the settings.

    Raises: ControlSettingsError, when its files aren't what they must be.
    """
    if not settings.oidc_issuer:
        return None
    try:
        return Provider(settings, clock)
    except GrantsError as error:
        raise ControlSettingsError(f"SKERRY_OIDC_GRANTS, SKERRY_OIDC_CLIENT_SECRET: {error}") from error


async def _connect(
    settings: ControlSettings, clock: Clock, metrics: ControlMetrics, stack: AsyncExitStack
) -> Databases:
    """Connect to the metadata database and check its schema."""
    connect = partial(
        database.connect,
        settings.metadata_url,
        statement_timeout=settings.database_timeout,
        outages=database.Outages(),
        on_retry=metrics.retried,
        times=metrics.database,
        clock=clock,
    )
    half = max(1, settings.database_connections // 2)
    requests = await connect(connections=2 * half + JOINS + FIRST_POLLS + CACHE)
    stack.push_async_callback(requests.close)
    await migrations.check(requests)
    own = await connect(connections=BACKGROUND + BATCHES + READINESS, lock_timeout=BACKGROUND_LOCK_TIMEOUT)
    stack.push_async_callback(own.close)
    turns = Turns(clock)
    db = requests.share(half, "requests")
    return Databases(
        requests=db,
        writes=db.taking(turns),
        lists=requests.share(half, "lists"),
        joins=requests.share(JOINS, "joins").taking(turns),
        first_polls=requests.share(FIRST_POLLS, "first polls").taking(turns),
        batches=own.share(BATCHES, "plans and reports").taking(turns),
        cache=requests.share(CACHE, "targets"),
        background=own.share(BACKGROUND, "work in the background"),
        readiness=own.share(READINESS, "readiness"),
    )


async def _know_time(db: database.Database, clock: Clock) -> None:
    """Find out the time.

    If a clock that is years behind were used, everything stored would be years old once the clock is right, and
    credentials and tokens would have expired.

    Raises: ClockError, when it isn't known; ProblemError, when the database doesn't answer.
    """
    if clock.doubt:
        before = clock.now()
        clock.compare(await db.read(lambda conn: conn.fetchval(TIME)), before)
    if clock.doubt:
        raise ClockError(clock.doubt)


async def _confirm(ownership: Ownership, clock: Clock) -> None:
    """Check the bucket's owner, without waiting for an unavailable store. Raises: ProblemError, if it isn't ours."""
    try:
        async with clock.timeout(STORE_PATIENCE):
            await ownership.confirm()
    except ProblemError as error:
        if error.code == "store_not_owned":
            raise
        log.warning("serving without the artifact store for now")
    except TimeoutError:
        log.warning("the artifact store hasn't answered for %.0f s: serving without it", STORE_PATIENCE)


async def _look_back(access: AccessJournal, clock: Clock) -> bool:
    """Apply access lists that the metadata don't know; if they take too long, the rest later.

    Return whether anybody may be let in: not while there are unread lists. A store that didn't list them is no reason
    to refuse.
    """
    end = clock.monotonic() + LISTS_PATIENCE
    try:
        async with clock.timeout(min(STORE_PATIENCE, LISTS_PATIENCE)) as limit:
            await access.apply(on_list=lambda: limit.reschedule(min(clock.monotonic() + STORE_PATIENCE, end)))
    except (ProblemError, TimeoutError) as error:
        if access.answered:
            log.warning(
                "the bucket's access lists aren't all read yet: nobody is let in until they are (%s)",
                error or "they take long",
            )
            return False
        log.warning(
            "the bucket's access lists couldn't be read: if the metadata were restored, those revoked since are good "
            "until the store answers (%s)",
            error or "it doesn't answer",
        )
    return True


@asynccontextmanager
async def _in_background(clock: Clock, tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Run `tasks`, given by name, until the block ends; one that fails because of a bug starts again."""

    async def keep(name: str, task: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await task()
            except Exception:
                log.exception("the background task for %s failed; it starts again in %.0f s", name, RESTART_PAUSE)
            await clock.sleep(RESTART_PAUSE)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(keep(name, task), name=name) for name, task in tasks.items()]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
