"""Calls, errors and times of the last minutes, by group and release or function, for overviews.

All replicas' rows are read, and this replica's unwritten counts. A known row isn't decoded again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from control.clock import Clock
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import FleetCache
from control.telemetry import call_history
from control.telemetry.call_history import MINUTES, CallTally, MinuteRow, Tallies
from control.telemetry.ingest import NumbersIngest
from control.telemetry.shared_reading import SharedReading

K = TypeVar("K")

MINUTES_SHOWN = 10
"""How many minutes are shown, including the current one."""
PERIOD = 2.0
"""The fewest seconds between two readings."""

ByRelease = dict[int, CallTally]
ByFunction = dict[str, CallTally]


class _Counted(NamedTuple):
    """The calls of a group in a minute."""

    releases: ByRelease
    functions: ByFunction


@dataclass(frozen=True, slots=True)
class RecentCalls:
    """The calls of the last `MINUTES_SHOWN` minutes."""

    read_at: datetime
    groups: Mapping[str, ByRelease]
    """By the group's name and the number of the release."""
    functions: Mapping[str, ByFunction]
    """By the group's name and the function's."""


class RecentCallsReader:
    """Reads recent calls for all viewers on this replica."""

    def __init__(self, db: Database, clock: Clock, fleet: FleetCache, numbers: NumbersIngest) -> None:
        self._db = db
        self._clock = clock
        self._fleet = fleet
        self._numbers = numbers
        self._known: dict[tuple[str, datetime, str], tuple[bytes, _Counted]] = {}
        """The contents of rows, by their keys."""
        self._reading = SharedReading(self._read, PERIOD, clock)

    async def get(self) -> RecentCalls:
        """Return the calls as they were read at most `PERIOD` ago. Raises: ProblemError, when they can't be read."""
        return await self._reading.get()

    async def stop(self) -> None:
        """Cancel the running read."""
        await self._reading.stop()

    async def _read(self) -> RecentCalls:
        now = self._clock.now()
        since = now.replace(second=0, microsecond=0) - timedelta(minutes=MINUTES_SHOWN - 1)
        names = {id: group.name for id, group in self._fleet.groups.items()}
        # Before the query: minutes that are written afterwards are left out of its answer.
        mine = {
            (group_id, minute): _counted(counted)
            for minute, by_group in self._numbers.unwritten().items()
            for group_id, counted in by_group.items()
            if minute >= since
        }

        async def work(conn: Connection) -> list[MinuteRow]:
            return await conn.fetch(MINUTES, sorted(names), since, now + timedelta(minutes=1))

        rows = await self._db.read(work)
        known: dict[tuple[str, datetime, str], tuple[bytes, _Counted]] = {}
        for row in rows:
            if row.replica == self._numbers.replica and (row.group_id, row.minute) in mine:
                continue
            key = row.group_id, row.minute, row.replica
            earlier = self._known.get(key)
            if earlier is not None and earlier[0] == row.body:
                known[key] = earlier
            else:
                known[key] = row.body, _counted(call_history.counted_in(row.body))
        self._known = known
        releases: dict[str, ByRelease] = {}
        functions: dict[str, ByFunction] = {}
        parts = [(group_id, counted) for (group_id, _, _), (_, counted) in known.items()]
        for group_id, counted in (*parts, *((group_id, counted) for (group_id, _), counted in mine.items())):
            if group_id in names:
                _add(releases.setdefault(names[group_id], {}), counted.releases.items())
                _add(functions.setdefault(names[group_id], {}), counted.functions.items())
        return RecentCalls(now, releases, functions)


def _counted(tallies: Tallies) -> _Counted:
    found = _Counted({}, {})
    _add(found.releases, ((release, tally) for (_, release), tally in tallies.items()))
    _add(found.functions, ((function, tally) for (function, _), tally in tallies.items()))
    return found


def _add(total: dict[K, CallTally], more: Iterable[tuple[K, CallTally]]) -> None:
    for key, tally in more:
        total.setdefault(key, CallTally()).add(tally.outcomes, tally.times)
