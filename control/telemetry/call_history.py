"""Counts of functions' calls, stored in the database by group, minute and hour.

`CallTally` counts how many calls there were, how they ended, and how long they took. Counts are written, read, summed
up by hour, and deleted when they are old.

Minutes are kept for 48 hours, separately for each replica, and hours for 90 days. The key begins with the group, so
that groups don't conflict.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from control.clock import Clock
from control.protocol import histogram
from control.protocol.histogram import Counts
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database, Locked

PACKED = 512
"""Bytes of a stored histogram: enough for each bucket to have some calls."""
NO_ERRORS = frozenset({"client_gone"})
"""Codes of unsuccessful calls that aren't errors of the function or the node."""


class CallTally:
    """Calls of one function of one release."""

    __slots__ = ("outcomes", "times")

    def __init__(self, outcomes: dict[str, int] | None = None, times: Counts | None = None) -> None:
        self.outcomes: dict[str, int] = {} if outcomes is None else outcomes
        """How many calls ended with each code, without successful calls."""
        self.times: Counts = {} if times is None else times
        """How long all calls took, as in `histogram`."""

    @property
    def calls(self) -> int:
        """Return the number of calls."""
        return sum(self.times.values())

    @property
    def errors(self) -> int:
        """Return the number of calls that ended in an error of the function or the node."""
        return sum(count for code, count in self.outcomes.items() if code not in NO_ERRORS)

    def quantile(self, q: float) -> float | None:
        """Return the time in seconds that the share `q` of the calls didn't exceed; None without calls."""
        return histogram.quantile(self.times, q)

    def add(self, outcomes: Mapping[str, int], times: Counts) -> None:
        """Count more calls."""
        for code, count in outcomes.items():
            self.outcomes[code] = self.outcomes.get(code, 0) + count
        histogram.add(self.times, times)


Tallies = dict[tuple[str, int], CallTally]
"""By function and release number."""
K = TypeVar("K")
_Stored = list[tuple[str, int, dict[str, int], bytes]]


def add_tallies(into: Tallies, other: Tallies) -> None:
    """Add the calls of `other` to those of `into`, without sharing objects."""
    for key, tally in other.items():
        known = into.get(key)
        if known is None:
            known = into[key] = CallTally()
        known.add(tally.outcomes, tally.times)


def encode_tallies(tallies: Tallies) -> bytes:
    """Return the tallies in their stored form."""
    rows = [(name, release, _bounded(t.outcomes), _packed(t.times)) for (name, release), t in tallies.items()]
    return msgspec.msgpack.encode(rows)


def _packed(times: Counts) -> bytes:
    return histogram.pack(_bounded(times), PACKED)


def _bounded(counts: Mapping[K, int]) -> dict[K, int]:
    """Cut counts to readable sizes: nodes may send any numbers."""
    return {key: min(count, histogram.MOST) for key, count in counts.items()}


def decode_tallies(body: bytes, function: str = "", release: int = 0) -> Tallies:
    """Return what `encode_tallies` stored; only of one function or release number, if given.

    Raises: ValueError, when it is damaged.
    """
    try:
        rows = _decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"stored numbers that can't be read: {error}") from error
    return {
        (name, number): CallTally(outcomes, histogram.unpack(packed))
        for name, number, outcomes, packed in rows
        if function in ("", name) and release in (0, number)
    }


_decode = msgspec.msgpack.Decoder(_Stored).decode


class MinuteRow(NamedTuple):
    """A replica's counts of a group in a minute."""

    group_id: str
    minute: datetime
    replica: str
    body: bytes


class HourRow(NamedTuple):
    """The calls of a group in an hour."""

    group_id: str
    hour: datetime
    body: bytes


class Span(NamedTuple):
    """The calls of a group in a minute or an hour, as far as they are known."""

    group_id: str
    begins: datetime
    seconds: int
    counted: Tallies


SQL = queries.load("numbers")
MINUTES = SQL.rows("minutes", MinuteRow)
HOURS = SQL.rows("hours", HourRow)
WITHOUT_HOUR = SQL.value("without_hour", str)
GROUPS = SQL.value("groups", str)

MINUTES_KEPT = timedelta(hours=48)
HOURS_KEPT = timedelta(days=90)
SUMMED_AFTER = timedelta(minutes=15)
"""From the end of an hour until it is summed up: replicas keep unwritten counts for ten minutes."""
BY_MINUTE = timedelta(minutes=90)
"""Hours that ended longer ago than this are read by hour."""
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
LIMIT = 500
"""The most rows that one statement deletes."""
AT_ONCE = 50
"""The most rows that one transaction writes."""

log = logging.getLogger("skerry.numbers")


async def write(db: Database, replica: str, minute: datetime, counted: Mapping[str, Tallies]) -> None:
    """Write a replica's counts of a minute, by group. Raises: ProblemError."""
    rows = [(group_id, minute, replica, encode_tallies(found)) for group_id, found in sorted(counted.items())]
    for start in range(0, len(rows), AT_ONCE):

        async def work(conn: Connection, part: list[tuple[str, datetime, str, bytes]]) -> None:
            for row in part:
                await conn.execute(SQL["write_minute"], *row)

        await db.transaction(partial(work, part=rows[start : start + AT_ONCE]))


async def read(
    db: Database,
    groups: Collection[str],
    since: datetime,
    until: datetime,
    unwritten: Mapping[datetime, Mapping[str, Tallies]],
    replica: str,
    function: str = "",
    release: int = 0,
) -> list[Span]:
    """Return the calls of groups, given by id, from `since` to before `until`, in order of time.

    They are of one function or one number of a release only, if given. Old calls are by hour, others by minute.
    `unwritten` are this replica's counts that aren't stored yet.
    Raises: ProblemError.
    """
    ids = sorted(groups)
    cut = _hour(until - BY_MINUTE)
    # Copied before the query: minutes that are written afterwards are left out of its answer.
    mine = [
        Span(group_id, minute, 60, _of(found, function, release))
        for minute, by_group in unwritten.items()
        for group_id, found in by_group.items()
        if group_id in groups and since <= minute < until
    ]
    known = {(span.group_id, span.begins) for span in mine}

    async def work(conn: Connection) -> tuple[list[HourRow], list[MinuteRow]]:
        hours = await conn.fetch(HOURS, ids, _hour(since), cut) if since < cut else []
        return hours, await conn.fetch(MINUTES, ids, max(since, cut), until)

    hours, minutes = await db.read(work)
    found = []
    for number, hour in enumerate(hours):
        found.append(Span(hour.group_id, hour.hour, 3600, counted_in(hour.body, function, release)))
        if number % 10 == 9:
            await asyncio.sleep(0)
    for number, row in enumerate(minutes):
        if row.replica != replica or (row.group_id, row.minute) not in known:
            found.append(Span(row.group_id, row.minute, 60, counted_in(row.body, function, release)))
        if number % 10 == 9:
            await asyncio.sleep(0)
    return sorted((*found, *mine), key=lambda span: span.begins)


def counted_in(body: bytes, function: str = "", release: int = 0) -> Tallies:
    """Return the counts in a stored row, as `decode_tallies` does; none if it can't be read."""
    try:
        return decode_tallies(body, function, release)
    except ValueError as error:
        # It is damaged, or from another version of control. The others can still be shown.
        log.warning("%s", error)
        return {}


def _of(found: Tallies, function: str, release: int) -> Tallies:
    wanted = {key: tally for key, tally in found.items() if function in ("", key[0]) and release in (0, key[1])}
    copied: Tallies = {}
    add_tallies(copied, wanted)
    return copied


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


class CallHistoryKeeper:
    """Sums up hours and deletes old rows; the monitor runs it, on one replica at a time."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._summed: datetime | None = None
        """The last hour that is summed up for all groups."""

    async def work(self, now: datetime, seconds: float) -> bool:
        """Work for at most `seconds`; return whether nothing is left to do. Raises: ProblemError."""
        end = self._clock.monotonic() + seconds
        try:
            return await self._sum_up(now, end) and await self._delete(now, end)
        except Locked:
            return False

    async def _sum_up(self, now: datetime, end: float) -> bool:
        last = _hour(now - SUMMED_AFTER) - HOUR
        hour = _hour(now - MINUTES_KEPT) + HOUR if self._summed is None else self._summed + HOUR
        while hour <= last:
            for group_id in await self._db.read(partial(_without, hour)):
                await self._sum_up_hour(group_id, hour)
                if self._clock.monotonic() >= end:
                    return False
            self._summed = hour
            hour += HOUR
        return True

    async def _sum_up_hour(self, group_id: str, hour: datetime) -> None:
        found: Tallies = {}
        rows = await self._db.read(lambda conn: conn.fetch(MINUTES, [group_id], hour, hour + HOUR))
        for number, row in enumerate(rows):
            add_tallies(found, counted_in(row.body))
            if number % 10 == 9:
                await asyncio.sleep(0)
        if found:
            body = encode_tallies(found)
            await self._db.transaction(lambda conn: conn.execute(SQL["write_hour"], group_id, hour, body))

    async def _delete(self, now: datetime, end: float) -> bool:
        for group_id in await self._db.read(lambda conn: conn.column(GROUPS)):
            for query, before in (("delete_minutes", now - MINUTES_KEPT), ("delete_hours", now - HOURS_KEPT)):
                while await self._db.transaction(partial(_delete, query, group_id, before)) == f"DELETE {LIMIT}":
                    if self._clock.monotonic() >= end:
                        return False
        return True


async def _without(hour: datetime, conn: Connection) -> list[str]:
    return await conn.column(WITHOUT_HOUR, hour, hour + HOUR)


async def _delete(query: str, group_id: str, before: datetime, conn: Connection) -> str:
    return await conn.execute(SQL[query], group_id, before, LIMIT)
