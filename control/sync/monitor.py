"""Periodic work: offline nodes, warnings, expired syncs, arrivals, seals, old logs, the sweep of the store.

One replica at a time does it, under a lease in the metadata database. Each step first reads the rows it concerns and
then changes those that are still as they were read, so it rarely conflicts with syncs.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from control.clock import Clock
from control.log_throttle import Outage
from control.metrics import ControlMetrics
from control.problems import ProblemError
from control.protocol.counts import counted
from control.protocol.wire import EventKind
from control.settings import ControlSettings
from control.storage import audit_log, events, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.storage.idempotency import KEPT_ANSWERS
from control.storage.queries import Value
from control.sync import future_times, node_state
from control.sync.arrivals import Arrivals
from control.sync.leases import Leases
from control.sync.node_state import RunningSync, SyncChanges


class NodeStateRow(NamedTuple):
    """A node's state."""

    id: str
    state: str
    removed: bool


class OverdueNode(NamedTuple):
    """A node that hasn't been confirmed for a while."""

    id: str
    confirmed_at: datetime
    gone: bool
    """Whether it was removed or revoked, or is held at a restore, so that nothing is expected of it."""


SQL = queries.load("monitor")
EXPIRED = SQL.rows("expired", RunningSync)
UNSEEN = SQL.value("unseen", str)
SEEN_AGAIN = SQL.value("seen_again", str)
OVERDUE = SQL.value("overdue", str)
OVERDUE_NO_MORE = SQL.value("overdue_no_more", str)
CROSSING = SQL.value("crossing", str)
CROSSING_NO_MORE = SQL.value("crossing_no_more", str)
NAMES = SQL.value("names", str)
FIND_GOOD = SQL.value("find_good", str)
FIND_REVOKED = SQL.value("find_revoked", str)
LOCK_UNSEEN = SQL.value("lock_unseen", str)
LOCK_SEEN_AGAIN = SQL.value("lock_seen_again", str)
LOCK_FREE = SQL.rows("lock_free", NodeStateRow)
LOCK_OVERDUE = SQL.rows("lock_overdue", OverdueNode)
LOCK_OVERDUE_NO_MORE = SQL.value("lock_overdue_no_more", str)
LOCK_CROSSING = SQL.value("lock_crossing", str)
LOCK_CROSSING_NO_MORE = SQL.value("lock_crossing_no_more", str)

PERIOD = 2.0
"""Seconds between two passes."""
LEASE = timedelta(seconds=10)
LIMIT = 500
"""Maximum rows that one statement deletes, or syncs that one transaction ends."""
PAGE = 2000
"""Maximum nodes whose states or warnings one transaction changes."""
KEEP_EVERY = 3.0
"""Seconds after which a running pass renews its lease."""
SWEEP_PERIOD = 30.0
SWEEP_LEASE = timedelta(minutes=1)
REVOKED_EVERY = 60.0
"""Seconds between two checks for offline nodes that are revoked."""
SEAL_EVERY = 30.0
"""Seconds between two sealings of the audit log."""
SEAL_FOR = 1.0
"""Seconds of a pass for sealing; the remaining rows are sealed in the next pass."""
CROSSED_FOR = timedelta(minutes=1)
"""How long two processes must poll in turn before a node counts as cloned: longer than the poll of an exited process
is held."""
CLONED_FOR = timedelta(minutes=5)
"""How long one process must poll alone before the node no longer counts as cloned."""
RETENTION_EVERY = 600.0
RETENTION_FOR = 2.0
"""Seconds of a pass for deleting old logs; the rest is deleted in the next pass, after states and syncs."""
DROP_LIMIT = 1.0
"""Seconds that the exit of the process waits for the leases to be released; they expire in any case."""
KEPT_LEASES = timedelta(days=1)
KEPT_SESSIONS = timedelta(days=1)
"""How long a session is kept after it can no longer be valid."""
KEPT_CREDENTIALS = timedelta(days=35)
"""Longer than a join token is valid: its credentials show whether it was used."""

NAMED = 20
"""Maximum nodes that a log line names."""

CLONED = (
    "two processes poll as this node in turn: another machine has a copy of its state directory. Stop one of them, and "
    "have it join as a node of its own, with an empty state directory"
)

Done = tuple[int, list[str]]
"""How many nodes were processed, and the ids of those that changed."""
Work = Callable[[list[str], Connection], Awaitable[Done]]
"""Changes the nodes with these ids that are still as they were read."""

log = logging.getLogger("skerry.monitor")


class Monitor:
    """One replica's monitor, which works while it has the lease."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        metrics: ControlMetrics,
        settings: ControlSettings,
        sweep: Callable[[], Awaitable[None]],
        tidy: Callable[[datetime, float], Awaitable[bool]],
    ) -> None:
        """`sweep` finishes what crashes left undone in the artifact store.

        `tidy` aggregates old numbers and deletes them, within the given seconds, and returns whether none are left.
        """
        self._db = db
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._sessions_kept = timedelta(seconds=max(settings.session_life, settings.session_stay)) + KEPT_SESSIONS
        self._sweep = sweep
        self._leases = Leases(db, clock)
        self._arrivals = Arrivals(db, clock)
        self._tidy = tidy
        self._next_retention = -math.inf
        """When old logs are deleted next, by the clock's `monotonic`, so that a wrong clock can't delay it."""
        self._next_seals = self._next_revoked = -math.inf
        self._kept = 0.0
        """When the monitor's lease was last taken, by the clock's `monotonic`."""
        self._outage = Outage(log, "the monitor can't work, and tries again")

    async def run(self) -> None:
        """Make passes until cancelled, then release the leases."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._loop(self.tick, PERIOD))
                group.create_task(self._loop(self.sweep, SWEEP_PERIOD))
        finally:
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(DROP_LIMIT):
                    await self._try(self._leases.give_back)

    async def tick(self) -> bool:
        """Make a pass, if this replica has or gets the lease; return whether it did. Raises: ProblemError."""
        if not await self._take("monitor", LEASE):
            return False
        now = self._clock.now()
        await self.look(now)
        passed = self._clock.monotonic()
        if passed >= self._next_seals and await self.seal(now):
            self._next_seals = passed + SEAL_EVERY
        if passed >= self._next_revoked:
            await self.revocations(now)
            self._next_revoked = passed + REVOKED_EVERY
        if passed >= self._next_retention and await self.retention(now):
            self._next_retention = passed + RETENTION_EVERY
        return True

    async def look(self, now: datetime) -> None:
        """Bring stored states and warnings up to date as of `now`; two replicas may do it at once."""
        correct = partial(future_times.correct, self._db, self._settings)
        for step in (correct, self.expire, self.states, self.warnings, self.clones, self._arrivals.look):
            # A locked row that can't be skipped is logged, and doesn't stop the other steps.
            with contextlib.suppress(Locked):
                await step(now)

    async def seal(self, now: datetime) -> bool:
        """Seal rows of the audit log; return whether all of them are sealed."""
        with contextlib.suppress(Locked):
            return await audit_log.seal(self._db, self._clock, now, SEAL_FOR)
        return False

    async def sweep(self) -> bool:
        """Sweep the artifact store if this replica has or gets the lease; separate from `tick`, as it may take long."""
        if not await self._take("sweep", SWEEP_LEASE):
            return False
        await self._sweep()
        return True

    async def expire(self, now: datetime) -> None:
        """End syncs whose lease has passed: they have failed (R 5.3)."""

        async def work(conn: Connection) -> tuple[int, list[str]]:
            found = await conn.fetch(EXPIRED, now, LIMIT)
            # A node that another transaction has locked is left to the next pass and doesn't delay other nodes.
            free = await node_state.lock_free(conn, {sync.node_id for sync in found})
            syncs = [sync for sync in found if sync.node_id in free]
            nodes = await node_state.load(conn, {sync.node_id for sync in syncs})
            changes = SyncChanges(now)
            for sync in syncs:
                changes.expire(sync, nodes[sync.node_id])
            await changes.save(conn)
            await node_state.save(conn, nodes.values())
            return len(found), [sync.node_id for sync in syncs]

        more = bool(await self._db.read(lambda conn: conn.fetch(EXPIRED, now, 1)))
        while more:
            found, ended = await self._db.transaction(work)
            self._metrics.sync("expired", len(ended))
            if ended:
                log.warning("syncs expired: %s, %s", counted(len(ended), "node"), await self._names(ended))
            more = found == LIMIT and bool(ended)
            await self._keep()

    async def states(self, now: datetime) -> None:
        """Mark nodes offline that weren't seen for a while, and online that were seen again (R 1.4)."""
        since = now - timedelta(seconds=self._settings.offline_after)
        for query, work, state in ((UNSEEN, _silent, "offline"), (SEEN_AGAIN, _heard, "online")):
            changed = await self._pages(query, since, partial(work, since, now))
            if changed:
                log.info("%s: %s, %s", state, counted(len(changed), "node"), await self._names(changed))

    async def revocations(self, now: datetime) -> None:
        """Mark nodes revoked or not, by their credentials, which another version or a recovery may have changed."""
        with contextlib.suppress(Locked):
            while await self._db.transaction(partial(_revoked, now, PAGE)) >= PAGE:
                await self._keep()

    async def warnings(self, now: datetime) -> None:
        """Warn of nodes that haven't been confirmed at their target for a while, until they are (R 5.2)."""
        since = now - timedelta(seconds=self._settings.overdue_after)
        await self._pages(OVERDUE_NO_MORE, since, partial(_confirmed, since, now))
        warned = await self._pages(OVERDUE, since, partial(_overdue, since, now))
        if warned:
            log.warning("overdue: %s, %s", counted(len(warned), "node"), await self._names(warned))

    async def clones(self, now: datetime) -> None:
        """Warn of nodes for which two processes poll, until only one does."""
        since = now - CLONED_FOR
        await self._pages(CROSSING_NO_MORE, since, partial(_alone, since, now))
        since = now - CROSSED_FOR
        if cloned := await self._pages(CROSSING, since, partial(_crossing, since, now)):
            log.warning("cloned: %s, %s", counted(len(cloned), "node"), await self._names(cloned))

    async def _names(self, ids: list[str]) -> str:
        """Return the names of some nodes, for the log; their ids if the names can't be read now."""
        some, more = ids[:NAMED], ", …" if len(ids) > NAMED else ""
        try:
            found = await self._db.read(lambda conn: conn.column(NAMES, some))
        except ProblemError:
            found = some
        return ", ".join(found) + more

    async def _pages(self, query: Value[str], since: datetime, work: Work) -> list[str]:
        """Apply `work` to all nodes that `query` finds, a page at a time; return the ids of those that it changed.

        It ends with a page that isn't full, or of which no node was processed: those nodes are locked or have open
        syncs, and are left to the next pass.
        """
        changed: list[str] = []
        while True:
            ids = sorted(await self._db.read(lambda conn: conn.column(query, since, PAGE)))
            if not ids:
                return changed
            looked_after, these = await self._db.transaction(partial(work, ids))
            changed += these
            if len(ids) < PAGE or not looked_after:
                return changed
            await self._keep()

    async def retention(self, now: datetime) -> bool:
        """Delete old logs, some rows of each kind at a time, for `RETENTION_FOR`; return whether none are left."""
        before = now - timedelta(seconds=self._settings.log_retention)
        end = self._clock.monotonic() + RETENTION_FOR
        done = True
        for query, time in (
            ("old_syncs", before),
            ("old_auth_failures", before),
            ("old_warnings", before),
            ("old_join_tokens", before),
            ("old_idempotency", now - KEPT_ANSWERS),
            ("old_leases", now - KEPT_LEASES),
            ("old_batches", now - KEPT_ANSWERS),
            ("old_codes", now - KEPT_ANSWERS),
            ("old_logins", now - KEPT_ANSWERS),
            ("old_sessions", now - self._sessions_kept),
            ("old_credentials", now - KEPT_CREDENTIALS),
        ):
            try:
                while await self._write(query, time, LIMIT) == f"DELETE {LIMIT}":
                    if self._clock.monotonic() >= end:
                        done = False
                        break
            except Locked:
                # A locked row doesn't stop the other kinds of logs.
                done = False
            await self._keep()
        done = await self._tidy(now, RETENTION_FOR) and done
        await self._keep()
        try:
            return await audit_log.cut(self._db, self._clock, now, before, RETENTION_FOR) and done
        except Locked:
            return False

    async def _write(self, query: str, *arguments: object) -> str:
        return await self._db.transaction(lambda conn: conn.execute(SQL[query], *arguments))

    async def _take(self, name: str, lease: timedelta) -> bool:
        """Take or renew a lease; return whether this replica has it."""
        if name == "monitor":
            self._kept = self._clock.monotonic()
        return await self._leases.take(name, lease)

    async def _keep(self) -> None:
        """Renew the monitor's lease in a pass that takes long."""
        passed = self._clock.monotonic()
        if passed - self._kept >= KEEP_EVERY:
            await self._take("monitor", LEASE)

    async def _loop(self, step: Callable[[], Awaitable[object]], period: float) -> None:
        while True:
            await self._clock.sleep(period)
            await self._try(step)

    async def _try(self, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
            self._outage.worked()
        except ProblemError as problem:
            self._outage.failed(problem.detail)


# Each of these changes a page of nodes in one transaction: those that are still as they were read, and that no other
# transaction has locked.


async def _silent(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Mark nodes offline that weren't seen since `since`; those with an open sync only once it has expired."""
    nodes = await conn.fetch(LOCK_FREE, await conn.column(LOCK_UNSEEN, ids, since))
    online = [node.id for node in nodes if node.state == "online" and not node.removed]
    settled = [node.id for node in nodes if node.state != "syncing" or node.removed]
    if online:
        await conn.execute(SQL["change_states"], online, "offline", now)
    if settled:
        await conn.execute(SQL["set_offline"], settled, True)
    told = [node.id for node in nodes if node.state in ("online", "offline") and not node.removed]
    await _tell(conn, now, "node.offline", told)
    return len(settled), online


async def _heard(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Mark nodes online again that were seen since `since`."""
    nodes = await conn.fetch(LOCK_FREE, await conn.column(LOCK_SEEN_AGAIN, ids, since))
    offline = [node.id for node in nodes if node.state == "offline" and not node.removed]
    settled = [node.id for node in nodes]
    if offline:
        await conn.execute(SQL["change_states"], offline, "online", now)
    if settled:
        await conn.execute(SQL["set_offline"], settled, False)
    await _tell(conn, now, "node.online", [node.id for node in nodes if not node.removed and node.state != "revoked"])
    return len(settled), offline


async def _revoked(now: datetime, limit: int, conn: Connection) -> int:
    """Mark offline nodes revoked if all their credentials have ended, and revoked ones offline if one is valid.

    At most `limit` of each; return how many.
    """
    good = await conn.column(FIND_GOOD, now, limit)
    if good:
        # The next heartbeat marks them online.
        await conn.execute(SQL["set_offline"], good, True)
    found = await conn.column(FIND_REVOKED, limit)
    if found:
        await conn.execute(SQL["clear_warnings"], found, now, "overdue")
    if good or found:
        await Changed(nodes={*good, *found}).announce(conn)
    return len(good) + len(found)


async def _overdue(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Warn of nodes that haven't been confirmed at their target since `since`."""
    nodes = await conn.fetch(LOCK_OVERDUE, ids, since)
    late = [node for node in nodes if not node.gone]
    if late:
        messages = [f"not confirmed at its target since {node.confirmed_at:%Y-%m-%d %H:%M:%S} UTC" for node in late]
        await _warn(conn, now, "overdue", [node.id for node in late], messages)
    if nodes:
        await conn.execute(SQL["set_overdue"], [node.id for node in nodes], True)
    await _tell(conn, now, "node.overdue", [node.id for node in late])
    return len(nodes), [node.id for node in late]


async def _confirmed(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Clear the warnings of nodes that were confirmed since `since`."""
    again = await conn.column(LOCK_OVERDUE_NO_MORE, ids, since)
    if again:
        await conn.execute(SQL["clear_warnings"], again, now, "overdue")
        await conn.execute(SQL["set_overdue"], again, False)
    await _tell(conn, now, "node.caught_up", again)
    return len(again), again


async def _crossing(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Warn of nodes for which two processes have polled in turn since before `since`."""
    nodes = await conn.column(LOCK_CROSSING, ids, since)
    if nodes:
        await _warn(conn, now, "cloned", nodes, [CLONED] * len(nodes))
        await conn.execute(SQL["set_cloned"], nodes, True)
    return len(nodes), nodes


async def _alone(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Clear the warnings of nodes for which one process alone has polled since `since`."""
    nodes = await conn.column(LOCK_CROSSING_NO_MORE, ids, since)
    if nodes:
        await conn.execute(SQL["clear_warnings"], nodes, now, "cloned")
        await conn.execute(SQL["set_cloned"], nodes, False)
    return len(nodes), nodes


async def _warn(conn: Connection, now: datetime, kind: str, ids: list[str], messages: list[str]) -> None:
    await conn.execute(SQL["warn"], [str(uuid4()) for _ in ids], ids, messages, now, kind)


async def _tell(conn: Connection, now: datetime, kind: EventKind, ids: list[str]) -> None:
    """Record an event of these nodes."""
    await events.record(conn, now, kind, [{"node_id": id} for id in ids])
