"""The parts of one replica of control: built by the app's lifespan, and passed to every operation."""

from dataclasses import dataclass

from control.access.auth import Authenticator
from control.access.auth_failures import AuthFailures
from control.access.certificates import ControlCertificates
from control.access.join_tokens import JoinTokens
from control.access.openid_people import People
from control.access.openid_provider import Provider
from control.access.rate_limits import NodeLimits
from control.access.sessions import Sessions
from control.access.sign_ins import SignIns
from control.backups.backup_metrics import BackupMetrics
from control.backups.builder import Builder
from control.backups.drills import Drills
from control.backups.grants import Grants
from control.backups.losses import RowComparison
from control.backups.targets import StateFinder
from control.clock import Clock
from control.edge_check import Checks
from control.live_settings import LiveSettings
from control.metrics import ControlMetrics
from control.protocol.wire import SyncState
from control.reread_files import RereadFiles
from control.settings import ControlSettings
from control.storage.access_journal import AccessJournal
from control.storage.artifact_deletions import Deletions
from control.storage.bucket_owner import Ownership
from control.storage.database import Database
from control.storage.object_store import Store
from control.storage.readiness import Readiness
from control.sync.fleet_cache import FleetCache
from control.sync.heartbeats import Heartbeats
from control.sync.monitor import Monitor
from control.sync.reconciler import Decision, NodeRequest
from control.sync.reports import SyncReport
from control.sync.write_batches import WriteBatches
from control.telemetry.call_history import CallHistoryKeeper
from control.telemetry.fleet_metrics import FleetMetrics
from control.telemetry.fleet_summary import FleetReader
from control.telemetry.ingest import NumbersIngest
from control.telemetry.recent_calls import RecentCallsReader
from control.telemetry.schedules import ScheduleReader
from control.telemetry.watching.watch_service import WatchService
from control.tracing import Tracing


@dataclass
class Databases:
    """The metadata database, with a share of its connections for each kind of work that must not wait for others."""

    requests: Database
    """Reads and writes of requests without their own share."""
    writes: Database
    """Operators' writes: the connections of `requests`; they take turns with all writes for nodes."""
    lists: Database
    """Requests that only read, such as lists."""
    joins: Database
    """Joins, and new credentials."""
    first_polls: Database
    """The first uses of credentials."""
    batches: Database
    """Decisions about nodes, and their reports."""
    cache: Database
    """Reads of the cache of targets and credentials."""
    background: Database
    """Heartbeats, the monitor, the record of refusals, deletions."""
    readiness: Database
    """The check whether the database accepts writes."""


@dataclass
class Services:
    """One of each, for the life of the process."""

    settings: ControlSettings
    clock: Clock
    databases: Databases
    store: Store
    ownership: Ownership
    access: AccessJournal
    deletions: Deletions
    checks: Checks
    readiness: Readiness
    auth: Authenticator
    sessions: Sessions
    sign_ins: SignIns
    people: People
    provider: Provider | None
    """The OpenID provider at which people may sign in, if there is one."""
    join_tokens: JoinTokens
    failures: AuthFailures
    node_limits: NodeLimits
    grants: Grants
    """What nodes may put at the store."""
    builder: Builder
    """Makes databases of backups."""
    comparison: RowComparison
    """Counts the rows that restores would lose."""
    drills: Drills
    """Proves backups."""
    backup_counts: BackupMetrics
    """How many nodes' backups have a fault, by group."""
    states: StateFinder
    """Finds states of nodes' databases in their backups."""
    fleet: FleetCache
    heartbeats: Heartbeats
    decisions: WriteBatches[NodeRequest, Decision]
    """Decides what polling nodes must do."""
    reports: WriteBatches[SyncReport, SyncState]
    """Takes the nodes' reports of their syncs."""
    numbers: NumbersIngest
    """Takes nodes' reports about calls and themselves."""
    numbers_kept: CallHistoryKeeper
    """Sums up stored calls, and deletes old ones."""
    recent_calls: RecentCallsReader
    """Calls of the last minutes, for views of the whole fleet."""
    schedules: ScheduleReader
    fleet_metrics: FleetMetrics
    """The fleet's metrics, for Prometheus."""
    standings: FleetReader
    """How many nodes have each standing, for views of the whole fleet."""
    watching: WatchService
    """Views of nodes' records on this replica, and what nodes send for them."""
    metrics: ControlMetrics
    tracing: Tracing | None
    """Makes and sends traces; None if none are sent."""
    certificates: ControlCertificates
    """Control's own certificate, and the CAs that nodes should trust."""
    live_settings: LiveSettings
    """The settings that can change while control runs."""
    reread: RereadFiles
    """Rereads files that can change while control runs."""

    def monitor(self) -> Monitor:
        """Make a monitor, which isn't running yet."""
        return Monitor(
            self.databases.background,
            self.clock,
            self.metrics,
            self.settings,
            sweep=self.deletions.sweep,
            tidy=self.numbers_kept.work,
        )

    @property
    def db(self) -> Database:
        """Return the connections of requests without their own share."""
        return self.databases.requests
