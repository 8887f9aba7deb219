"""Backups as metrics for Prometheus: by group, the worst of its nodes and how many have a fault; no node has its own.

They are the same at every replica, like the fleet's (`control.telemetry.fleet_metrics`).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from control.backups.backup_faults import LATE_INTERVALS, LEAST_LATE, PROVEN_LATE
from control.clock import Clock
from control.storage import queries
from control.storage.database import Database
from control.telemetry.fleet_metrics import family, labels
from control.telemetry.shared_reading import SharedReading

READ_EVERY: Final = 15.0
"""Seconds between two readings."""


class GroupBackups(NamedTuple):
    """The backups of a group whose nodes are backed up. Values of the worst node are 0 where no node has a backup."""

    group_name: str
    nodes: int
    """Nodes with a history that goes on."""
    missing: int
    """Nodes without one."""
    failing: int
    """Nodes that say that their backup doesn't go on."""
    lag: float
    """Seconds by which the store was behind the worst node, when that told of it."""
    pending: int
    """Bytes that wait on the worst node."""
    at_store: int
    unproven: float
    """Seconds since the oldest proof."""
    unproven_nodes: int
    """Nodes of which no restore was proven for `PROVEN_LATE`."""
    failed_drills: int
    """Nodes whose last drill found a fault."""
    late: int
    """Nodes that the store is too far behind, by `late_after`."""


SQL = queries.load("backups")
GROUPS = SQL.rows("of_groups", GroupBackups)


class BackupMetrics:
    """Reads backups for scrapes and pages, for all of them once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._reading = SharedReading(self._read, READ_EVERY, clock)

    async def text(self) -> str:
        """Return the metrics as text. Raises: ProblemError, when the database doesn't answer."""
        return text(await self.get())

    async def get(self) -> Sequence[GroupBackups]:
        """Return the backups of groups that are backed up, read about `READ_EVERY` ago.

        Raises: ProblemError, when the database doesn't answer.
        """
        return await self._reading.get()

    async def stop(self) -> None:
        """Cancel the running read."""
        await self._reading.stop()

    async def _read(self) -> Sequence[GroupBackups]:
        now = self._clock.now()
        return await self._db.read(lambda conn: conn.fetch(GROUPS, now, now - PROVEN_LATE, LEAST_LATE, LATE_INTERVALS))


def text(groups: Sequence[GroupBackups]) -> str:
    """Return backups as metrics."""

    def gauge(name: str, about: str, values: Sequence[float]) -> str:
        of = [labels(group=each.group_name) for each in groups]
        return family(name, "gauge", about, list(zip(of, values, strict=True)))

    return (
        gauge("skerry_backup_nodes", "Nodes with a backup that goes on", [each.nodes for each in groups])
        + gauge("skerry_backup_missing_nodes", "Nodes that should have one", [each.missing for each in groups])
        + gauge("skerry_backup_failing_nodes", "Nodes that can't back up", [each.failing for each in groups])
        + gauge("skerry_backup_lag_seconds", "How far the store is behind, worst node", [each.lag for each in groups])
        + gauge("skerry_backup_late_nodes", "Nodes that the store is too far behind", [each.late for each in groups])
        + gauge("skerry_backup_pending_bytes", "Bytes waiting on the worst node", [each.pending for each in groups])
        + gauge("skerry_backup_store_bytes", "Size of backups at the store", [each.at_store for each in groups])
        + gauge("skerry_backup_unproven_seconds", "Time since the oldest proof", [each.unproven for each in groups])
        + gauge("skerry_backup_unproven_nodes", "Nodes not proven in 3 days", [each.unproven_nodes for each in groups])
        + gauge("skerry_backup_failed_drills", "Nodes whose last drill failed", [each.failed_drills for each in groups])
    )
