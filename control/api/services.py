"""What one replica of control works with; built by the app's lifespan, handed to every request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from control.api.auth import AuthFailures
    from control.api.edge_check import Checks
    from control.api.probes import Readiness
    from control.clock import Clock
    from control.metrics import Metrics
    from control.settings import Settings
    from control.storage.artifact_deletions import Deletions
    from control.storage.batched_lookups import Lookups
    from control.storage.bucket_owner import Ownership
    from control.storage.database import Database
    from control.storage.object_store import Store
    from control.sync.fleet_cache import Fleet
    from control.sync.heartbeats import Presence
    from control.sync.reconciler import Decision, Request
    from control.sync.reports import Report
    from control.sync.targets import Targets
    from control.sync.write_batches import Slices
    from control.wire import SyncState


@dataclass
class Services:
    """One of each, for the life of the process."""

    settings: Settings
    clock: Clock
    db: Database
    """For what requests ask of it, but for these, which have connections of their own:"""
    writes: Database
    """The same connections as `db`, for operators' writes, which take turns with all that nodes write."""
    lists: Database
    """What only reads for an operator, as lists do."""
    joins: Database
    first_polls: Database
    """The first use of a credential."""
    slices: Database
    """Plans for nodes and their reports."""
    steady: Database
    """What a replica keeps in memory."""
    beside: Database
    """What it does by itself: heartbeats, the monitor, the record of refusals."""
    store: Store
    ownership: Ownership
    checks: Checks
    readiness: Readiness
    failures: AuthFailures
    join_tokens: Lookups[Any]
    fleet: Fleet
    presence: Presence
    metrics: Metrics
    targets: Targets
    ca_pem: bytes
    """The CA that nodes are to trust; empty where there is none to give out."""
    ca_fingerprint: str
    """sha256 of the CA's certificate in hex, or ''."""
    opener: Slices[Request, Decision] = field(init=False)
    """Made of the other services, as `reports` and `deletions` are."""
    reports: Slices[Report, SyncState] = field(init=False)
    deletions: Deletions = field(init=False)
