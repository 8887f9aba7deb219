"""Heartbeats, in batches: one statement a second for all nodes that polled or reported (R 1.3, 5.1).

A transaction for each heartbeat would cost twenty times as much. Heartbeats write the table node_presence alone, which
syncs don't write, so they never conflict with syncs.
"""

import asyncio
import logging
from datetime import datetime

from control.clock import AHEAD, Clock
from control.metrics import ControlMetrics
from control.storage import flush_loop, queries
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.sync.node_state import clean

SQL = queries.load("heartbeats")
LOCK_FREE = SQL.value("lock_free", str)

PERIOD = 1.0
"""Seconds between two writes to the database."""
STATEMENT = 500
"""Maximum nodes in one statement."""
Heard = tuple[datetime, str]
"""When a node was heard from, and which of its processes polled; '' if unknown."""

log = logging.getLogger("skerry.presence")


class Heartbeats:
    """The nodes that were seen since the last flush, and when."""

    def __init__(self, db: Database, clock: Clock, metrics: ControlMetrics) -> None:
        self._db = db
        self._clock = clock
        self._metrics = metrics
        self._seen: dict[str, Heard] = {}
        self._confirmed: dict[str, Heard] = {}
        self._careful = False
        """Whether a row was locked recently: locked rows are then skipped, and otherwise waited for."""
        self._writing = asyncio.Lock()

    def seen(self, node_id: str, now: datetime, boot_id: str = "") -> None:
        """Note that the node has polled, by its process `boot_id`, or reported."""
        self._seen[node_id] = now, boot_id

    def confirmed(self, node_id: str, now: datetime, boot_id: str = "") -> None:
        """Note the same, and that the node is at its target."""
        self._confirmed[node_id] = now, boot_id

    async def flush(self) -> None:
        """Write the heartbeats. Those that can't be written are kept for the next time.

        A flush under way ends first: everything noted before this call is written when it returns, or kept. A node
        whose row another transaction has locked doesn't delay other nodes: it is kept for the next time.
        Raises: ProblemError, when the database doesn't answer.
        """
        async with self._writing:
            seen, confirmed = self._seen, self._confirmed
            self._seen, self._confirmed = {}, {}
            try:
                # Two statements: nearly all nodes are confirmed, and for them one time is enough for three columns.
                await self._write(SQL["seen"], seen)
                await self._write(SQL["confirmed"], confirmed)
            finally:
                # What remains in them couldn't be written.
                self._seen = seen | self._seen
                self._confirmed = confirmed | self._confirmed
            self._careful = bool(seen or confirmed)

    async def _write(self, statement: str, heard: dict[str, Heard]) -> None:
        """Write `heard`, and delete from it what was written."""
        # Sorted, so that two replicas that write the same nodes wait for each other and don't deadlock.
        for ids in _slices(sorted(heard)):
            now = self._clock.now()
            # A time from a clock that was ahead becomes now.
            times = [(heard[id][0] if heard[id][0] <= now + AHEAD else now).isoformat() for id in ids]
            boots = [clean(heard[id][1]) for id in ids]

            async def work(
                conn: Connection,
                ids: list[str] = ids,
                times: list[str] = times,
                boots: list[str] = boots,
                believed: datetime = now + AHEAD,
            ) -> list[str]:
                if self._careful:
                    free = set(await conn.column(LOCK_FREE, ids))
                    times = [time for id, time in zip(ids, times, strict=True) if id in free]
                    boots = [boot for id, boot in zip(ids, boots, strict=True) if id in free]
                    ids = [id for id in ids if id in free]
                await conn.execute(statement, ids, times, boots, believed)
                return ids

            try:
                written = await self._db.transaction(work)
            except Locked:
                if self._careful:
                    raise
                self._careful = True
                written = await self._db.transaction(work)
            for id in written:
                del heard[id]
            self._metrics.heartbeats.inc(len(written))

    async def run(self) -> None:
        """Flush each second until cancelled, and once more then."""
        await flush_loop.run(
            log, "heartbeats", self._clock, PERIOD, self.flush, lambda: len(self._seen) + len(self._confirmed)
        )


def _slices(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + STATEMENT] for start in range(0, len(ids), STATEMENT)]
