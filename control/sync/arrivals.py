"""Detects when a release has arrived at all nodes of its group, or no node is under way to it and some have failed.

The monitor checks often in a release's first minute, and less often the longer it takes, so a release that waits for an
absent node costs a large group little.
"""

import logging
from datetime import datetime
from typing import NamedTuple

from control.clock import Clock
from control.protocol.counts import counted
from control.protocol.wire import EventKind
from control.storage import events, queries
from control.storage.connection import Connection, log_at_commit
from control.storage.database import Database

SHARE = 0.05
"""A release is checked again after this share of its age, so its arrival is reported at most this much late."""
LONGEST_PAUSE = 60.0
"""Maximum seconds between two checks."""


class ReleaseUnderWay(NamedTuple):
    """A group's release that hasn't arrived at all its nodes."""

    id: str
    group_id: str
    group_name: str
    number: int
    created_at: datetime
    failed: bool
    """Whether its failure was reported already."""


class GroupStanding(NamedTuple):
    """The number of nodes in a group, of those that run its target, and of the others that failed or are away."""

    nodes: int
    arrived: int
    failed: int
    away: int


class CodeCount(NamedTuple):
    """How many nodes have an error with a code."""

    code: str
    nodes: int


SQL = queries.load("arrivals")
UNDER_WAY = SQL.rows("under_way", ReleaseUnderWay)
STANDING = SQL.rows("standing", GroupStanding)
CODES = SQL.rows("codes", CodeCount)
MARK_ARRIVED = SQL.optional("mark_arrived", int)
MARK_FAILED = SQL.optional("mark_failed", int)


class Arrivals:
    """Checks the releases that are under way."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._next: dict[str, float] = {}
        """When each release is checked next, by the clock's `monotonic`."""

    async def look(self, now: datetime) -> None:
        """Record which releases have arrived or failed since the last check. Raises: ProblemError."""
        passed = self._clock.monotonic()
        releases = await self._db.read(lambda conn: conn.fetch(UNDER_WAY))
        self._next = {release.id: self._next.get(release.id, passed) for release in releases}
        for release in releases:
            if self._next[release.id] <= passed:
                age = (now - release.created_at).total_seconds()
                self._next[release.id] = passed + min(max(age * SHARE, 0.0), LONGEST_PAUSE)
                await self._look_at(release, now)

    async def _look_at(self, release: ReleaseUnderWay, now: datetime) -> None:
        arguments = release.group_id, release.created_at
        standing = await self._db.read(lambda conn: conn.one(STANDING, *arguments))
        if not standing.nodes:
            return
        body = {"group": release.group_name, "release": release.number, **standing._asdict()}
        kind: EventKind
        if standing.arrived == standing.nodes:
            mark, kind, level = MARK_ARRIVED, "release.arrived", logging.INFO
        elif release.failed or not standing.failed:
            return
        elif standing.arrived + standing.failed + standing.away == standing.nodes:
            mark, kind, level = MARK_FAILED, "release.failed", logging.WARNING
            codes = await self._db.read(lambda conn: conn.fetch(CODES, *arguments))
            body["codes"] = {row.code: row.nodes for row in codes}
        else:
            return

        async def tell(conn: Connection) -> None:
            if await conn.fetchval(mark, release.id, now) is not None:
                await events.record(conn, now, kind, [body])
                log_at_commit(_line(release, standing, body.get("codes")), level)

        await self._db.transaction(tell)


def _line(release: ReleaseUnderWay, standing: GroupStanding, codes: dict[str, int] | None) -> str:
    """Return the log line for a release that has arrived or, with the error codes of its nodes, has failed."""
    name = f"release {release.group_name}/{release.number}"
    if codes is None:
        return f"{name}: the whole group is at it, {counted(standing.nodes, 'node')}"
    away = f", offline: {standing.away}" if standing.away else ""
    told = ", ".join(f"{code} {count}" for code, count in codes.items())
    return f"{name} has failed on {standing.failed} of {counted(standing.nodes, 'node')} ({told}){away}"
