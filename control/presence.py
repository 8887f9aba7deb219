"""Heartbeats, in batches: one statement a second for all nodes that were heard of (R 1.3, 5.1).

A row for each heartbeat's transaction would cost twenty times as much. Only this module writes node_presence, and it
writes nothing else, so a heartbeat never conflicts with a sync.
"""

import asyncio
import logging
from datetime import datetime
from typing import Any

from control import queries
from control.clock import Clock
from control.database import Database
from control.metrics import Metrics
from control.problems import ProblemError

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

    def seen(self, node_id: str) -> None:
        """The node has asked or reported something."""
        self._seen[node_id] = self._clock.now()

    def confirmed(self, node_id: str) -> None:
        """The node has asked, and is at target."""
        self._confirmed[node_id] = self._clock.now()

    async def flush(self) -> None:
        """Write what was heard; what couldn't be written is kept for the next time. Raises `ProblemError`."""
        seen, confirmed = self._seen, self._confirmed
        self._seen, self._confirmed = {}, {}
        try:
            # Apart, because nearly all are confirmed: then one time for each does.
            await self._write(SQL["seen"], seen)
            await self._write(SQL["confirmed"], confirmed)
        except BaseException:
            self._seen = seen | self._seen
            self._confirmed = confirmed | self._confirmed
            raise

    async def _write(self, statement: str, heard: dict[str, datetime]) -> None:
        """Write the times in `heard`, and take out of it what is written."""
        # Sorted, so that two replicas that write the same nodes wait for each other instead of failing.
        for ids in _slices(sorted(heard)):
            times = [heard[id].isoformat() for id in ids]

            async def work(conn: Any, ids: list[str] = ids, times: list[str] = times) -> None:
                await conn.execute(statement, ids, times)

            await self._db.transaction(work)
            for id in ids:
                del heard[id]
            self._metrics.heartbeats.inc(len(ids))

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
        except ProblemError as problem:
            log.warning("%d heartbeats wait to be recorded: %s", self._waiting, problem.detail)
        except Exception:
            # Heartbeats must go on whatever one of them holds.
            log.exception("%d heartbeats could not be recorded", self._waiting)


def _slices(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + STATEMENT] for start in range(0, len(ids), STATEMENT)]
