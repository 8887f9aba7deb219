"""The record of refused authentications (R 7.4), as counts: a flood of them is one row with a large number.

Addresses cost an attacker nothing, especially in an IPv6 network. So such a network counts as one address, and the
number of rows per hour for separate addresses is limited.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID, uuid4

from control.access.rate_limits import HOUR, Allowance, place
from control.clock import Clock
from control.storage import flush_loop, queries
from control.storage.connection import Connection
from control.storage.database import Database

SQL = queries.load("auth")
BEGIN_BATCH = SQL.optional("begin_batch", UUID)

FLUSH_EVERY = 1.0
"""Seconds between two writes to the database."""
MOST_ADDRESSES = 5_000
"""About how many rows an hour name addresses; as many at once after an hour without any. Refusals of
further addresses are counted together."""

log = logging.getLogger("skerry.auth")


@dataclass(slots=True)
class _Count:
    """Refusals with the same minute, address and reason."""

    count: int
    first_at: datetime
    last_at: datetime


class AuthFailures:
    """Counts refusals by minute, address and reason, and writes the counts to the database each second."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._waiting: dict[tuple[datetime, str, str], _Count] = {}
        self._batch: tuple[UUID, list[list[str]]] | None = None
        """The id and the columns of the batch that is being written, until it is known to be stored."""
        self._minute = datetime.min
        self._apart: set[tuple[str, str]] = set()
        """The addresses that are counted separately in that minute, each with a reason."""
        self._left = Allowance(MOST_ADDRESSES, HOUR, MOST_ADDRESSES, clock.monotonic())
        """How many more may be counted separately."""
        self._replica = uuid4()
        self._writing = asyncio.Lock()
        self.total = 0

    def record(self, address: str, reason: str) -> None:
        """Count one refusal."""
        now = self._clock.now()
        minute, counted_at = now.replace(second=0, microsecond=0), place(address)[:100]
        if minute != self._minute:
            self._minute, self._apart = minute, set()
        if not self._is_apart(counted_at, reason):
            counted_at = "others"
        counted = self._waiting.setdefault((minute, counted_at, reason), _Count(0, now, now))
        counted.count += 1
        counted.last_at = now
        self.total += 1

    def _is_apart(self, place: str, reason: str) -> bool:
        """Return whether this minute's refusals of an address are counted separately."""
        if (place, reason) in self._apart:
            return True
        if self._left.refill(self._clock.monotonic()) < 1:
            return False
        self._left.count -= 1
        self._apart.add((place, reason))
        return True

    async def flush(self) -> None:
        """Write the counts. A batch that wasn't stored, or may not have been, is retried the next time."""
        async with self._writing:
            while self._batch is not None or self._waiting:
                if self._batch is None:
                    self._batch = uuid4(), _columns(self._waiting)
                    self._waiting = {}
                await self._db.transaction(partial(self._write, *self._batch))
                self._batch = None

    async def _write(self, id: UUID, columns: list[list[str]], conn: Connection) -> None:
        """Write a batch, unless it was written already and only the answer to its COMMIT was lost."""
        if await conn.fetchval(BEGIN_BATCH, self._replica, id, self._clock.now()) is not None:
            await conn.execute(SQL["record_failures"], *columns)

    async def run(self) -> None:
        """Flush each second, and once more when cancelled."""

        def waiting() -> int:
            return len(self._waiting) + (0 if self._batch is None else len(self._batch[1][0]))

        await flush_loop.run(log, "counts of refused authentications", self._clock, FLUSH_EVERY, self.flush, waiting)


def _columns(waiting: dict[tuple[datetime, str, str], _Count]) -> list[list[str]]:
    """Return the columns minutes, addresses, reasons, counts, first and last times, as texts."""
    rows = [
        (minute.isoformat(), address, reason, str(c.count), c.first_at.isoformat(), c.last_at.isoformat())
        for (minute, address, reason), c in sorted(waiting.items(), key=lambda item: item[0])
    ]
    return [list(column) for column in zip(*rows, strict=True)]
