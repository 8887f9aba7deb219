"""What one replica of control works with; built by the app's lifespan, handed to every request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from control.auth import AuthFailures
    from control.checks import Checks
    from control.clock import Clock
    from control.database import Database
    from control.fleet import Fleet
    from control.metrics import Metrics
    from control.opening import Decision, Request
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
    steady: Database
    """The same database, over connections that no request waits for."""
    store: Store
    checks: Checks
    readiness: Readiness
    failures: AuthFailures
    fleet: Fleet
    presence: Presence
    metrics: Metrics
    targets: Targets
    ca_pem: bytes
    """The CA that nodes are to trust; empty where there is none to give out."""
    ca_fingerprint: str
    """sha256 of the CA's certificate in hex, or ''."""
    opener: Slices[Request, Decision] = field(init=False)
    """Made of the other services, as `reports` is."""
    reports: Slices[Report, SyncState] = field(init=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held for writes that many nodes ask for at once, which would only be in each other's way."""
