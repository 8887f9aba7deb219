"""What one replica of control works with; built by the app's lifespan, handed to every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from control.auth import AuthFailures
    from control.clock import Clock
    from control.database import Database
    from control.fleet import Fleet
    from control.metrics import Metrics
    from control.presence import Presence
    from control.settings import Settings
    from control.store import Store


@dataclass(frozen=True)
class Services:
    """One of each, for the life of the process."""

    settings: Settings
    clock: Clock
    db: Database
    store: Store
    failures: AuthFailures
    fleet: Fleet
    presence: Presence
    metrics: Metrics
