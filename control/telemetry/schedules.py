"""Functions' schedules on the nodes of each group: when lines ran last and run next, and on which nodes they failed.

Nodes tell of them with their other numbers, about once a minute (`node_health`).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from control.clock import Clock
from control.storage import queries
from control.storage.database import Database
from control.telemetry.fleet_metrics import family, labels
from control.telemetry.node_health import LATELY
from control.telemetry.shared_reading import SharedReading

READ_EVERY: Final = 5.0
"""Seconds between two readings."""


class GroupLine(NamedTuple):
    """A line of a function's schedule on the nodes of a group."""

    group_name: str
    function: str
    cron: str
    """Empty for calls after releases."""
    nodes: int
    """Nodes that have it."""
    failing: int
    """Nodes on which its last run failed."""
    example: str | None
    """The name of one of them."""
    last_run: int
    """Unix seconds, as `next_run`: the newest run of any node; 0 if there is none."""
    next_run: int
    """The first that is due."""
    late: int
    """Seconds by which the node is late that is the latest."""
    failures: int
    """Since the nodes' starts."""


SQL = queries.load("schedules")
OF_GROUPS = SQL.rows("of_groups", GroupLine)


class ScheduleReader:
    """Reads schedules for everybody who looks, for all of them once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._reading = SharedReading(self._read, READ_EVERY, clock)

    async def get(self) -> Sequence[GroupLine]:
        """Return the lines that nodes told of lately, by group, function and line. Raises: ProblemError."""
        return await self._reading.get()

    async def text(self) -> str:
        """Return the metrics as text. Raises: ProblemError."""
        return text(await self.get())

    async def stop(self) -> None:
        """Cancel the running read."""
        await self._reading.stop()

    async def _read(self) -> Sequence[GroupLine]:
        since = self._clock.now() - LATELY
        return await self._db.read(lambda conn: conn.fetch(OF_GROUPS, since))


def text(lines: Sequence[GroupLine]) -> str:
    """Return schedules as metrics."""
    failing: dict[str, int] = {}
    for line in lines:
        failing[line.group_name] = failing.get(line.group_name, 0) + line.failing
    return family(
        "skerry_group_failing_schedules",
        "gauge",
        "Lines of schedules whose last run failed, of all nodes of a group together",
        [(labels(group=group), count) for group, count in failing.items()],
    )
