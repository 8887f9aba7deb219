"""What happens by the clock: nodes go offline and come back, warnings, expired syncs, retention, the store's sweep.

One replica at a time does it, under a lease in the metadata DB. Each step first reads who is concerned and then
changes those, on the condition that they still are as they were read; so it seldom conflicts with syncs.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from control.api.services import Services
from control.clock import AHEAD
from control.log_throttle import Outage
from control.problems import ProblemError
from control.storage import artifact_deletions, queries
from control.storage.database import Locked
from control.sync import future_times, node_state
from control.sync.liveness import Work, confirmed, heard, overdue, silent
from control.sync.reports import Ended

SQL = queries.load("monitor")

PERIOD = 2.0
LEASE = timedelta(seconds=10)
LIMIT = 500
"""Rows that one statement changes where it does more than set a column."""
PAGE = 2000
"""Nodes whose states or warnings one transaction changes."""
KEEP_EVERY = 3.0
"""Seconds after which a pass that goes on takes its lease anew."""
SWEEP_PERIOD = 30.0
SWEEP_LEASE = timedelta(minutes=1)
RETENTION_EVERY = 600.0
RETENTION_FOR = 2.0
"""Seconds of a pass in which old logs go; what is left of them then goes in the next pass, after states and syncs."""
DROP_LIMIT = 1.0
"""Seconds that the end of the process waits until the leases are given back; they end by themselves too."""
KEPT_ANSWERS = timedelta(days=1)
KEPT_LEASES = timedelta(days=1)
KEPT_CREDENTIALS = timedelta(days=35)
"""Longer than a join token is good for: whether one was used is seen by the credentials that it gave."""

log = logging.getLogger("skerry.monitor")


class Monitor:
    """One replica's part in it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._holder = str(uuid4())
        self._next_retention = -math.inf
        """In the loop's time: a wrong clock must not put it off."""
        self._kept = 0.0
        """When the monitor's lease was last taken, in the loop's time."""
        self._ahead: dict[str, tuple[tuple[str, datetime], float]] = {}
        """Leases that are ahead, by name: as they were first seen, and when, in the loop's time."""
        self._outage = Outage(log, "the monitor waits, and goes on later")

    async def run(self) -> None:
        """Pass after pass until cancelled, which gives the leases back."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._loop(self.tick, PERIOD))
                group.create_task(self._loop(self.sweep, SWEEP_PERIOD))
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DROP_LIMIT):
                    await self._try(self._drop)

    async def tick(self) -> bool:
        """One pass, if this replica has or gets the lease; raises `ProblemError`."""
        if not await self._take("monitor", LEASE):
            return False
        now = self._services.clock.now()
        await self.look(now)
        passed = asyncio.get_running_loop().time()
        if passed >= self._next_retention and await self.retention(now):
            self._next_retention = passed + RETENTION_EVERY
        return True

    async def look(self, now: datetime) -> None:
        """Make stored states and warnings what they should be at `now`; harmless beside another replica's."""
        for step in (partial(future_times.correct, self._services), self.expire, self.states, self.warnings):
            # What another transaction has locked and can't be left out is logged, and holds up no other step.
            with contextlib.suppress(Locked):
                await step(now)

    async def sweep(self) -> bool:
        """Finish what a kill left behind in the artifact store; apart from `tick`, since it may take long."""
        if not await self._take("sweep", SWEEP_LEASE):
            return False
        await artifact_deletions.sweep(self._services)
        return True

    async def expire(self, now: datetime) -> None:
        """Syncs whose lease has passed are failures (R 5.3)."""

        async def work(conn: Any) -> tuple[int, int]:
            found = await conn.fetch(SQL["expired"], now, LIMIT)
            # A node that another transaction has locked waits for the next pass, and holds up no other one.
            free = await node_state.lock_free(conn, {sync["node_id"] for sync in found})
            syncs = [sync for sync in found if sync["node_id"] in free]
            nodes = await node_state.load(conn, {sync["node_id"] for sync in syncs})
            ended = Ended()
            for sync in syncs:
                ended.expire(sync, nodes[sync["node_id"]], now)
            await ended.save(conn, now)
            await node_state.save(conn, nodes.values())
            return len(found), len(syncs)

        more = bool(await self._services.beside.read(lambda conn: conn.fetch(SQL["expired"], now, 1)))
        while more:
            found, ended = await self._services.beside.transaction(work)
            self._services.metrics.sync("expired", ended)
            more = found == LIMIT and ended > 0
            await self._keep()

    async def states(self, now: datetime) -> None:
        """Nodes that weren't seen for a while are offline, those that were seen again online (R 1.4)."""
        since = now - timedelta(seconds=self._services.settings.offline_after)
        for query, work, state in (("unseen", silent, "offline"), ("seen_again", heard, "online")):
            changed = await self._pages(query, since, partial(work, since, now))
            if changed:
                log.info("%s: %d nodes, %s", state, len(changed), ", ".join(changed[:5]))

    async def warnings(self, now: datetime) -> None:
        """A node that wasn't confirmed at target for a while has a warning until it is (R 5.2)."""
        since = now - timedelta(seconds=self._services.settings.overdue_after)
        await self._pages("overdue_no_more", since, partial(confirmed, since, now))
        warned = await self._pages("overdue", since, partial(overdue, since, now))
        if warned:
            log.warning("%d nodes are overdue", len(warned))

    async def _pages(self, query: str, since: datetime, work: Work) -> list[str]:
        """Have `work` see to all nodes that `query` finds, a page at a time; return those that it has changed.

        It is done when a page isn't full, or when of a full one nothing was seen to: those nodes are locked, or are
        in the middle of a sync, and the next pass sees to them.
        """
        changed: list[str] = []
        while True:
            rows = await self._services.beside.read(lambda conn: conn.fetch(SQL[query], since, PAGE))
            if not rows:
                return changed
            ids = sorted(row["id"] for row in rows)
            seen_to, these = await self._services.beside.transaction(partial(work, ids))
            changed += these
            if len(rows) < PAGE or not seen_to:
                return changed
            await self._keep()

    async def retention(self, now: datetime) -> bool:
        """Old logs go, a slice at a time and some of each kind, for `RETENTION_FOR`; whether nothing was left over."""
        before = now - timedelta(seconds=self._services.settings.log_retention)
        end = asyncio.get_running_loop().time() + RETENTION_FOR
        done = True
        for query, time in (
            ("old_syncs", before),
            ("old_auth_failures", before),
            ("old_audit", before),
            ("old_warnings", before),
            ("old_join_tokens", before),
            ("old_idempotency", now - KEPT_ANSWERS),
            ("old_leases", now - KEPT_LEASES),
            ("old_batches", now - KEPT_ANSWERS),
            ("old_credentials", now - KEPT_CREDENTIALS),
        ):
            try:
                while await self._write(query, time, LIMIT) == f"DELETE {LIMIT}":
                    if asyncio.get_running_loop().time() >= end:
                        done = False
                        break
            except Locked:
                # Another transaction's row holds up no other kind.
                done = False
            await self._keep()
        return done

    async def _write(self, query: str, *arguments: Any) -> str:
        status: str = await self._services.beside.transaction(lambda conn: conn.execute(SQL[query], *arguments))
        return status

    async def _take(self, name: str, lease: timedelta) -> bool:
        if name == "monitor":
            self._kept = asyncio.get_running_loop().time()
        now = self._services.clock.now()
        arguments = (name, self._holder, now + lease, now)
        db = self._services.beside
        if await db.transaction(lambda conn: conn.fetch(SQL["take_lease"], *arguments)):
            self._ahead.pop(name, None)
            return True
        held = await db.read(lambda conn: conn.fetchrow(SQL["lease"], name))
        if held is None or not self._is_dead(name, (held["holder"], held["expires_at"]), now, lease):
            return False
        log.warning("the lease %s is of a replica whose clock was ahead, and which is gone: it is taken over", name)
        taken = (name, self._holder, now + lease, held["holder"], held["expires_at"])
        return bool(await db.transaction(lambda conn: conn.fetch(SQL["take_over_lease"], *taken)))

    def _is_dead(self, name: str, held: tuple[str, datetime], now: datetime, lease: timedelta) -> bool:
        """Whether a lease that is further ahead than any can be hasn't changed for as long as a lease lasts."""
        if held[1] <= now + lease + AHEAD:
            self._ahead.pop(name, None)
            return False
        passed = asyncio.get_running_loop().time()
        known = self._ahead.get(name)
        if known is None or known[0] != held:
            self._ahead[name] = (held, passed)
            return False
        return passed - known[1] >= lease.total_seconds()

    async def _keep(self) -> None:
        """Keep the monitor's lease in a pass that takes long."""
        passed = asyncio.get_running_loop().time()
        if passed - self._kept >= KEEP_EVERY:
            await self._take("monitor", LEASE)

    async def _drop(self) -> None:
        await self._write("drop_leases", self._holder)

    async def _loop(self, step: Callable[[], Awaitable[Any]], period: float) -> None:
        while True:
            await asyncio.sleep(period)
            await self._try(step)

    async def _try(self, step: Callable[[], Awaitable[Any]]) -> None:
        try:
            await step()
            self._outage.worked()
        except ProblemError as problem:
            self._outage.failed(problem.detail)
