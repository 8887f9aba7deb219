"""Leases in the metadata database, which let one replica at a time do a kind of work."""

import logging
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

from control.clock import AHEAD, Clock
from control.storage import audit_log, queries
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database


class LeaseRow(NamedTuple):
    """The replica that holds a lease, and until when."""

    holder: str
    expires_at: datetime


SQL = queries.load("monitor")
LEASE_ROW = SQL.rows("lease", LeaseRow)
TAKE_LEASE = SQL.optional("take_lease", str)
TAKE_OVER_LEASE = SQL.optional("take_over_lease", str)

ACTOR = Actor("control", "monitor")

log = logging.getLogger("skerry.monitor")


class Leases:
    """The leases of one holder: a part of one replica."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._holder = str(uuid4())
        self._ahead: dict[str, tuple[LeaseRow, float]] = {}
        """Leases with an implausibly late end, by name: as first seen, and when, by the clock's `monotonic`."""

    async def take(self, name: str, lasts: timedelta) -> bool:
        """Take or renew a lease; return whether this holder has it. Raises: ProblemError."""
        now = self._clock.now()
        arguments = (name, self._holder, now + lasts, now)
        if await self._db.transaction(lambda conn: conn.fetchval(TAKE_LEASE, *arguments)) is not None:
            self._ahead.pop(name, None)
            return True
        held = await self._db.read(lambda conn: conn.fetchrow(LEASE_ROW, name))
        if held is None or not self._is_dead(name, held, now, lasts):
            return False
        log.warning("the lease %s is taken over: its replica is gone, and its clock was ahead", name)
        taken = (name, self._holder, now + lasts, *held)

        async def take_over(conn: Connection) -> bool:
            if await conn.fetchval(TAKE_OVER_LEASE, *taken) is None:
                return False
            before, after = {"holder": held.holder}, {"holder": self._holder}
            await audit_log.record(conn, now, ACTOR, "lease.take-over", name, before=before, after=after)
            return True

        return await self._db.transaction(take_over)

    async def give_back(self) -> None:
        """Release all leases of this holder. Raises: ProblemError."""
        await self._db.transaction(lambda conn: conn.execute(SQL["drop_leases"], self._holder))

    def _is_dead(self, name: str, held: LeaseRow, now: datetime, lasts: timedelta) -> bool:
        """Return whether a lease has an implausibly late end and hasn't changed for as long as a lease lasts."""
        if held.expires_at <= now + lasts + AHEAD:
            self._ahead.pop(name, None)
            return False
        passed = self._clock.monotonic()
        known = self._ahead.get(name)
        if known is None or known[0] != held:
            self._ahead[name] = (held, passed)
            return False
        return passed - known[1] >= lasts.total_seconds()
