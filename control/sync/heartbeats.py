"""Heartbeats, in batches: one statement a second for all nodes that were heard of (R 1.3, 5.1).

A row for each heartbeat's transaction would cost twenty times as much. It writes node_presence and nothing else, and
syncs don't write that, so a heartbeat never conflicts with a sync.
"""

import asyncio
import logging
from datetime import datetime
from typing import Any

from control.clock import AHEAD, Clock
from control.log_throttle import Outage
from control.metrics import Metrics
from control.problems import ProblemError
from control.storage import queries
from control.storage.database import Database, Locked

SQL = queries.load("presence")

PERIOD = 1.0
STATEMENT = 500
"""Nodes in one statement."""
LAST_FLUSH = 2.0
"""Seconds for what is left when the replica stops."""

log = logging.getLogger("skerry.presence")


class Presence:
    """The nodes that were heard of since the last flush."""

    def __init__(self, db: Database, clock: Clock, metrics: Metrics) -> None:
        self._db = db
        self._clock = clock
        self._metrics = metrics
        self._seen: dict[str, datetime] = {}
        self._confirmed: dict[str, datetime] = {}
        self._careful = False
        """Whether a row was locked lately: then those that are locked are left out, else they are waited for."""
        self._outage = Outage(log, "heartbeats can't be recorded")

    def seen(self, node_id: str) -> None:
        """The node has asked or reported something."""
        self._seen[node_id] = self._clock.now()

    def confirmed(self, node_id: str) -> None:
        """The node has asked, and is at target."""
        self._confirmed[node_id] = self._clock.now()

    async def flush(self) -> None:
        """Write what was heard; what couldn't be written is kept for the next time. Raises `ProblemError`.

        A node whose row another transaction has locked holds up no other one: it is kept for the next time.
        """
        seen, confirmed = self._seen, self._confirmed
        self._seen, self._confirmed = {}, {}
        try:
            # Apart, because nearly all are confirmed: then one time for each does.
            await self._write(SQL["seen"], seen)
            await self._write(SQL["confirmed"], confirmed)
        finally:
            # Left in them: what couldn't be written.
            self._seen = seen | self._seen
            self._confirmed = confirmed | self._confirmed
        self._careful = bool(seen or confirmed)

    async def _write(self, statement: str, heard: dict[str, datetime]) -> None:
        """Write the times in `heard`, and take out of it what is written."""
        # Sorted, so that two replicas that write the same nodes wait for each other instead of failing.
        for ids in _slices(sorted(heard)):
            now = self._clock.now()
            # Heard of while the clock was ahead, it was heard of by now.
            times = [(heard[id] if heard[id] <= now + AHEAD else now).isoformat() for id in ids]

            async def work(
                conn: Any, ids: list[str] = ids, times: list[str] = times, believed: datetime = now + AHEAD
            ) -> list[str]:
                if self._careful:
                    free = {row["id"] for row in await conn.fetch(SQL["lock_free"], ids)}
                    times = [time for id, time in zip(ids, times, strict=True) if id in free]
                    ids = [id for id in ids if id in free]
                await conn.execute(statement, ids, times, believed)
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
        try:
            while True:
                await asyncio.sleep(PERIOD)
                await self._try()
        finally:
            try:
                async with asyncio.timeout(LAST_FLUSH):
                    await self._try()
            except TimeoutError:
                log.warning("%d heartbeats were not recorded before the end", self._waiting)

    @property
    def _waiting(self) -> int:
        return len(self._seen) + len(self._confirmed)

    async def _try(self) -> None:
        try:
            await self.flush()
            self._outage.worked()
        except ProblemError as problem:
            self._outage.failed(f"{self._waiting} of them wait; {problem.detail}")
        except Exception:
            # Heartbeats must go on whatever one of them holds.
            log.exception("%d heartbeats could not be recorded", self._waiting)


def _slices(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + STATEMENT] for start in range(0, len(ids), STATEMENT)]
