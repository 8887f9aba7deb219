"""What happens by the clock: nodes go offline and come back, warnings, expired syncs, retention, the store's sweep.

One replica at a time does it, under a lease in the metadata DB. Each step first reads who is concerned and then
changes those, on the condition that they still are as they were read; so it seldom conflicts with syncs.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from control import artifacts, noderows, queries
from control.problems import ProblemError
from control.services import Services
from control.syncs import Ended

SQL = queries.load("monitor")

PERIOD = 2.0
LEASE = timedelta(seconds=10)
LIMIT = 500
"""Rows that one statement changes; what is left comes with the next pass."""
SWEEP_PERIOD = 30.0
SWEEP_LEASE = timedelta(minutes=1)
RETENTION_EVERY = timedelta(minutes=10)
KEPT_ANSWERS = timedelta(days=1)

log = logging.getLogger("skerry.monitor")


class Monitor:
    """One replica's part in it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._holder = str(uuid4())
        self._next_retention: datetime | None = None

    async def run(self) -> None:
        """Pass after pass until cancelled, which gives the leases back."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._loop(self.tick, PERIOD))
                group.create_task(self._loop(self.sweep, SWEEP_PERIOD))
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._try(self._drop)

    async def tick(self) -> bool:
        """One pass, if this replica has or gets the lease; raises `ProblemError`."""
        if not await self._take("monitor", LEASE):
            return False
        now = self._services.clock.now()
        await self.look(now)
        if self._next_retention is None or now >= self._next_retention:
            await self.retention(now)
            self._next_retention = now + RETENTION_EVERY
        return True

    async def look(self, now: datetime) -> None:
        """Make stored states and warnings what they should be at `now`; harmless beside another replica's."""
        await self.expire(now)
        await self.states(now)
        await self.warnings(now)

    async def sweep(self) -> bool:
        """Finish what a kill left behind in the artifact store; apart from `tick`, since it may take long."""
        if not await self._take("sweep", SWEEP_LEASE):
            return False
        await artifacts.sweep(self._services)
        return True

    async def expire(self, now: datetime) -> None:
        """Syncs whose lease has passed are failures (R 5.3)."""

        async def work(conn: Any) -> int:
            syncs = await conn.fetch(SQL["expired"], now, LIMIT)
            nodes = await noderows.load(conn, {sync["node_id"] for sync in syncs})
            ended = Ended()
            for sync in syncs:
                ended.expire(sync, nodes[sync["node_id"]], now)
            await ended.save(conn, now)
            await noderows.save(conn, nodes.values())
            return len(syncs)

        if await self._services.db.read(lambda conn: conn.fetch(SQL["expired"], now, 1)):
            self._services.metrics.sync("expired", await self._services.db.transaction(work))

    async def states(self, now: datetime) -> None:
        """Nodes that weren't seen for a while are offline, those that were seen again online (R 1.4)."""
        since = now - timedelta(seconds=self._services.settings.offline_after)
        for query, before, after in (("unseen", "online", "offline"), ("seen_again", "offline", "online")):
            ids = await self._ids(query, since)
            if ids:
                await self._write("change_states", ids, before, after, now)
                log.info("%s: %d nodes, %s", after, len(ids), ", ".join(ids[:5]))

    async def warnings(self, now: datetime) -> None:
        """A node that wasn't confirmed at target for a while has a warning until it is (R 5.2)."""
        since = now - timedelta(seconds=self._services.settings.overdue_after)
        cleared = await self._ids("overdue_no_more", since)
        if cleared:
            await self._write("clear_warnings", cleared, now)
        overdue = await self._services.db.read(lambda conn: conn.fetch(SQL["overdue"], since, LIMIT))
        if overdue:
            messages = [
                f"not confirmed at its target since {row['confirmed_at']:%Y-%m-%d %H:%M:%S} UTC" for row in overdue
            ]
            await self._write("warn", [str(uuid4()) for _ in overdue], [row["id"] for row in overdue], messages, now)
            log.warning("%d nodes are overdue", len(overdue))

    async def retention(self, now: datetime) -> None:
        """Old logs go, a slice at a time."""
        before = now - timedelta(seconds=self._services.settings.log_retention)
        for query, time in (
            ("old_syncs", before),
            ("old_auth_failures", before),
            ("old_audit", before),
            ("old_warnings", before),
            ("old_join_tokens", before),
            ("old_idempotency", now - KEPT_ANSWERS),
        ):
            while await self._write(query, time, LIMIT) == f"DELETE {LIMIT}":
                pass

    async def _ids(self, query: str, since: datetime) -> list[str]:
        rows = await self._services.db.read(lambda conn: conn.fetch(SQL[query], since, LIMIT))
        return sorted(row[0] for row in rows)

    async def _write(self, query: str, *arguments: Any) -> str:
        status: str = await self._services.db.transaction(lambda conn: conn.execute(SQL[query], *arguments))
        return status

    async def _take(self, name: str, lease: timedelta) -> bool:
        now = self._services.clock.now()
        arguments = (name, self._holder, now + lease, now)
        return bool(await self._services.db.transaction(lambda conn: conn.fetch(SQL["take_lease"], *arguments)))

    async def _drop(self) -> None:
        await self._write("drop_leases", self._holder)

    async def _loop(self, step: Callable[[], Awaitable[Any]], period: float) -> None:
        while True:
            await asyncio.sleep(period)
            await self._try(step)

    async def _try(self, step: Callable[[], Awaitable[Any]]) -> None:
        try:
            await step()
        except ProblemError as problem:
            log.warning("the monitor goes on later: %s", problem.detail)
