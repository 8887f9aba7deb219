"""What one replica of control works with; built by the app's lifespan, handed to every request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from control.auth import AuthFailures
    from control.checks import Checks
    from control.clock import Clock
    from control.database import Database
    from control.deletions import Deletions
    from control.fleet import Fleet
    from control.lookups import Lookups
    from control.metrics import Metrics
    from control.opening import Decision, Request
    from control.ownership import Ownership
    from control.presence import Presence
    from control.probes import Readiness
    from control.settings import Settings
    from control.slices import Slices
    from control.store import Store
    from control.syncs import Report
    from control.targets import Targets
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
