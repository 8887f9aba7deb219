"""From where people have signed in, as the audit log has it: for limits that strangers must not use up for them."""

import asyncio
import logging
import math
from datetime import timedelta

from control.access import guesses
from control.clock import Clock
from control.problems import ProblemError
from control.storage import queries
from control.storage.database import Database

LOOKED_BACK = timedelta(days=90)
"""How long ago somebody may have signed in last; the audit log may be kept for less."""
MOST_READ = 10_000
"""Sign-ins that are looked at, the newest."""
AGAIN = 5.0
"""Seconds between two readings at least. It is read only while strangers have used up their tries."""

FROM = queries.load("sign_ins").value("signed_in_from", str)

log = logging.getLogger("skerry.sessions")


class SignedInPlaces:
    """What this replica has read of that."""

    def __init__(self, lookups: Database, clock: Clock) -> None:
        self._db = lookups
        self._clock = clock
        self._places: frozenset[str] = frozenset()
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def has(self, place: str) -> bool:
        """Whether somebody has signed in from a place; where the database is away, as it was known before."""
        async with self._reading:
            if self._clock.monotonic() - self._read_at >= AGAIN:
                await self._read()
        return place in self._places

    async def _read(self) -> None:
        since = self._clock.now() - LOOKED_BACK
        try:
            found = await self._db.read(lambda conn: conn.column(FROM, since, MOST_READ))
            self._places = frozenset(map(guesses.place, found))
        except ProblemError as error:
            log.warning("from where people have signed in can't be read: %s", error.detail)
        # A database that is away isn't asked by each who waits.
        self._read_at = self._clock.monotonic()
