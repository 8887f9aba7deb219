"""The state of nodes and of their backups, as they report it. The database has each node's newest report, at most one
per minute."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from control.clock import Clock
from control.protocol import wire
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import CachedNode
from control.sync.node_state import clean

PERIOD = 60.0
"""Seconds between two writes of nodes' reports."""
STATEMENT = 500
"""Nodes in one statement."""
LATELY = timedelta(hours=1)
"""Older reports don't count for the groups: the node is away, or was removed."""
LAST_TIME = 2**37
"""Unix seconds that are in the range of the database, and of Python."""
MOST_EVENTS = 1_000_000
"""The most worker deaths, dropped lines and failed syncs that one poll may report; more aren't trusted."""


class NodeTold(NamedTuple):
    """A node's last report about itself. The ends are Unix seconds, 0 if there is none."""

    told_at: datetime
    database_bytes: int
    wal_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    certificate_ends: int
    credential_ends: int
    edge: str
    trust_ends: int
    schedules: list[dict[str, Any]]
    """Lines of its functions' schedules, each with the fields of `wire.LineNumbers`."""


class GroupToldRow(NamedTuple):
    """Recent reports of the nodes of a group that have the same version of the edge."""

    group_id: str
    edge: str
    nodes: int
    database_sum: int
    database_max: int
    wal_max: int
    disk_free_min: int
    memory_sum: int
    certificate_ends_min: int
    credential_ends_min: int
    trust_ends_min: int


SQL = queries.load("numbers")
OF_NODE = SQL.rows("of_node", NodeTold)
OF_GROUPS = SQL.rows("of_groups", GroupToldRow)
BACKUPS = queries.load("backups")


class NodeReport(NamedTuple):
    """What a node has reported about itself, and isn't written yet."""

    group_id: str
    numbers: wire.NodeNumbers
    told_at: datetime


@dataclass(slots=True)
class Events:
    """What happened on the nodes of a group since this replica's start."""

    worker_deaths: int = 0
    log_dropped: int = 0
    failed_syncs: int = 0


class NodeHealthStore:
    """Collects nodes' reports, and writes and reads them."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._latest: dict[str, NodeReport] = {}
        """By node."""
        self._due = 0.0
        self.events: dict[str, Events] = {}
        """By group."""

    def take(self, node: CachedNode, numbers: wire.NodeNumbers) -> None:
        """Take a node's report."""
        self._latest[node.id] = NodeReport(node.group_id, numbers, self._clock.now())
        if numbers.worker_deaths or numbers.log_dropped or numbers.failed_syncs:
            events = self.events.setdefault(node.group_id, Events())
            events.worker_deaths += min(numbers.worker_deaths, MOST_EVENTS)
            events.log_dropped += min(numbers.log_dropped, MOST_EVENTS)
            events.failed_syncs += min(numbers.failed_syncs, MOST_EVENTS)

    async def write_if_due(self, time: float) -> None:
        """Write the reports if `PERIOD` has passed since the last write; `time` is the loop's. Raises: ProblemError."""
        if time >= self._due:
            self._due = time + PERIOD
            await self.write()

    async def write(self) -> None:
        """Write the reports; those that couldn't be written are kept. Raises: ProblemError."""
        while self._latest:
            ids = sorted(self._latest)[:STATEMENT]
            part = {id: self._latest[id] for id in ids}
            rows = [
                (
                    *(id, group_id, str(n.database), str(n.wal), str(n.disk_free), str(n.memory)),
                    *(str(n.certificate_ends), str(n.credential_ends), clean(n.edge)),
                    *(clean(n.trust), str(n.trust_ends), _schedules(n.schedules), told_at.isoformat()),
                )
                for id, (group_id, n, told_at) in part.items()
            ]
            columns, backups = _columns(rows), _columns(_backups(part))

            async def work(
                conn: Connection, columns: list[list[str]] = columns, backups: list[list[str]] = backups
            ) -> None:
                await conn.execute(SQL["write_nodes"], *columns)
                if backups:
                    await conn.execute(BACKUPS["tell"], *backups)
                    await conn.execute(BACKUPS["tell_first"], *backups)

            await self._db.transaction(work)
            for id, told in part.items():
                if self._latest.get(id) is told:
                    del self._latest[id]
            await asyncio.sleep(0)

    async def of_groups(self) -> list[GroupToldRow]:
        """Return recent reports of each group's nodes, by version of the edge. Raises: ProblemError."""
        since = self._clock.now() - LATELY
        return await self._db.read(lambda conn: conn.fetch(OF_GROUPS, since))


def _columns(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _schedules(lines: Sequence[wire.LineNumbers]) -> str:
    """Return lines of schedules as JSON. A node may send any number; those that are no times are left out."""
    told = [
        {
            "function": line.function,
            "cron": clean(line.cron),
            "last_run": line.last_run if line.last_run < LAST_TIME else 0,
            "last_status": clean(line.last_status),
            "next_run": line.next_run if line.next_run < LAST_TIME else 0,
            "late": min(line.late, LAST_TIME),
            "failures": min(line.failures, LAST_TIME),
        }
        for line in lines
    ]
    return msgspec.json.encode(told).decode()


def _backups(told: Mapping[str, NodeReport]) -> list[tuple[str, ...]]:
    """Return the rows of what nodes say of their backups, by node; '' for a time that isn't known."""
    rows: list[tuple[str, ...]] = []
    for id, (_, numbers, told_at) in told.items():
        state = numbers.backup
        if state is not None:
            # A node may send any number; of a clock that is ahead, this is the most that can be true.
            reached_at = datetime.fromtimestamp(min(state.reached_at, told_at.timestamp()), UTC)
            reached_text = reached_at.isoformat() if state.reached_at else ""
            texts = str(state.reached), reached_text, str(state.pending), clean(state.error)
            rows.append((id, state.lineage, *texts, told_at.isoformat()))
    return rows
