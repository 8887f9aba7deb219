"""Watches of nodes' records, and the records that come for them, on one replica.

A watch is a row of the metadata that is announced as a target is, so polls tell it to nodes. Nodes send records in
batches to any replica. The one that has the operator's connection hands them over; another one sends them to it by the
metadata database (`record_relay`). A watch has a lease, which its replica renews: what nobody renews is no watch any
more.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import msgspec

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.counts import counted
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import FleetCache
from control.sync.fleet_rows import CachedNode
from control.sync.watches import CachedWatch
from control.telemetry import record_lines, watch_rows
from control.telemetry.fair_rates import NodeRates
from control.telemetry.record_relay import NodeBatch, RecordRelay
from control.telemetry.viewer import NAMED, Ask, Viewer, node_rates

LEASE = timedelta(seconds=12)
"""How long a watch lives that nobody renews."""
RENEW = 3.0
"""Seconds between two renewals of leases."""
PERIOD = 0.2
"""Seconds between two exchanges with other replicas, while there is something to exchange."""
IDLE = 1.0
"""Seconds between two looks at whether there is."""
MOST_WATCHES = 32
"""Watches at once: each costs every node that it concerns some memory, and a request each half a second."""
MOST_OF_OPERATOR = 8
"""Of these, one operator's."""
COUNTS = "functions"
"""The kind of questions of what a node has counted: there may be as many besides."""
HISTORY = 5000
"""Records of what is there already that all nodes together are to tell; each may tell `LEAST_HISTORY`."""
LEAST_HISTORY = 10
UNREAD = 10.0
"""Seconds in which a view's reader must come."""
CLEAN_EVERY = 30.0
"""Seconds between two deletions of older ones."""

log = logging.getLogger("skerry.live")


class LiveRecords:
    """The views of this replica, and the way of records to the views of others."""

    def __init__(self, db: Database, writes: Database, fleet: FleetCache, clock: Clock) -> None:
        """`writes`: the connections whose transactions take turns with all that announce something."""
        self._db = db
        self._writes = writes
        self._fleet = fleet
        self._clock = clock
        self._name = fleet.mark.name
        self.viewers: dict[str, Viewer] = {}
        self._remote: dict[str, NodeRates] = {}
        """The nodes that send records here for views of other replicas, by watch."""
        self._relay = RecordRelay(db, clock, self._name)
        self._ended: set[str] = set()
        """Ids of watches that are to be deleted."""
        self._needed = asyncio.Event()
        self._renewed_at = self._cleaned_at = -math.inf

    # Views

    async def begin(self, ask: Ask, confirm: Callable[[Connection], Awaitable[None]] | None = None) -> Viewer:
        """Begin a view. Its reader must come soon, and must `leave` it.

        `confirm` is awaited in the transaction that writes the watch. Raises: ProblemError unknown_node, unknown_group,
        too_many_watches, and those of the database.
        """
        question = ask.question or wire.Question("", self._clock.now())
        self._refuse_more(ask.operator, question.kind)
        now, id = self._clock.now(), str(uuid4())
        node, groups = await self._db.read(lambda conn: watch_rows.find(conn, ask))
        nodes = await self._db.read(lambda conn: watch_rows.count(conn, node, groups, NAMED))
        least = max(LEAST_HISTORY, HISTORY // max(1, nodes.asked))
        question = msgspec.structs.replace(
            question, id=id, limit=min(question.limit, least if nodes.asked > 1 else 10_000)
        )
        # Others may have begun meanwhile, also many at once.
        self._refuse_more(ask.operator, question.kind)
        viewer = Viewer(id, question, ask, nodes, self._clock)
        fields = msgspec.to_builtins(question)
        del fields["id"]

        async def write(conn: Connection) -> None:
            if confirm is not None:
                await confirm(conn)
            row = (id, self._name, ask.operator, node, groups, fields, viewer.rate, now, now + LEASE)
            await conn.execute(watch_rows.SQL["begin"], *row)
            await Changed(watches=True).announce(conn)

        self.viewers[id] = viewer
        self._renewed_at = -math.inf  # soon, to find out which replicas there are
        try:
            await self._writes.transaction(write)
            await self._fleet.announced()
        except BaseException:
            self.leave(viewer)
            raise
        log.info("%s watches %s of %s", ask.operator, question.kind, counted(nodes.asked, "node"))
        return viewer

    def _refuse_more(self, operator: str, kind: str) -> None:
        """Raises: ProblemError too_many_watches, when there are as many views as there may be, those of this replica
        too that aren't announced yet."""
        views = {watch.id: (watch.operator, watch.question.kind) for watch in self._fleet.watches.alive.values()}
        views |= {viewer.id: (viewer.operator, viewer.kind) for viewer in self.viewers.values()}
        # Pages of nodes take no view away from who reads a log, nor the other way round.
        alike = [whose for whose, what in views.values() if (what == COUNTS) == (kind == COUNTS)]
        mine = alike.count(operator)
        if len(alike) >= MOST_WATCHES or mine >= MOST_OF_OPERATOR:
            whose = f"{operator} has {mine}" if mine >= MOST_OF_OPERATOR else f"there are {len(alike)}"
            raise ProblemError("too_many_watches", f"{whose} views of records already; end one of them", retry_after=10)

    def leave(self, viewer: Viewer) -> None:
        """End a view: its nodes are told at once."""
        if self.viewers.pop(viewer.id, None) is not None:
            viewer.end("watch_ended")
            self._ended.add(viewer.id)
            self._needed.set()

    async def silent(self, viewer: Viewer) -> list[str]:
        """The names of nodes that haven't told what they had; none where the database doesn't answer, or for many."""
        watch = self._fleet.watches.alive.get(viewer.id)
        if watch is None or viewer.nodes.asked > 1000:
            return []
        groups = None if watch.group_ids is None else sorted(watch.group_ids)
        try:
            return await self._db.read(
                lambda conn: watch_rows.names(conn, watch.node_id, groups, NAMED, but=sorted(viewer.answered))
            )
        except ProblemError:
            return []

    # What nodes send

    async def watch_of(self, id: str, node: CachedNode) -> CachedWatch:
        """The watch of this id that concerns a node. Raises: ProblemError watch_ended."""
        watch = self._fleet.watches.alive.get(id)
        if watch is None:
            # The node may have heard of it by another replica.
            await self._fleet.caught_up()
            watch = self._fleet.watches.alive.get(id)
        if watch is None or not watch.concerns(node) or (watch.viewer == self._name and id not in self.viewers):
            raise ProblemError("watch_ended", "nobody watches that of this node any more")
        return watch

    def take(
        self,
        watch: CachedWatch,
        node: CachedNode,
        found: record_lines.CheckedLines,
        *,
        sampled: int,
        left_out: int,
        done: bool,
    ) -> float:
        """Take a node's records; return how many it may send a second from now on."""
        now = self._clock.monotonic()
        viewer = self.viewers.get(watch.id)
        if viewer is not None:
            viewer.share()
            rates, rate = viewer.rates, viewer.rate
        else:
            rates, rate = self._remote.setdefault(watch.id, node_rates(watch.question)), watch.rate
        count = len(found.lines)
        taken = rates.take(node.id, count, sampled, rate, now)
        lines = found.lines if taken >= count else _evenly(found.lines, taken)
        batch = NodeBatch(
            watch.id, node.id, b"".join(lines), len(lines), sampled + count - len(lines), left_out, found.invalid, done
        )
        if viewer is not None:
            _show(viewer, batch)
        else:
            self._relay.post(watch.viewer, batch)
            self._needed.set()
        return rate

    # In the background

    async def run(self) -> None:
        """Exchange records with other replicas, renew and end watches, until cancelled."""
        outage = Outage(log, "records that are watched can't be exchanged with other replicas")
        while True:
            busy = self.viewers or self._ended
            try:
                async with self._clock.timeout(PERIOD if busy else IDLE):
                    await self._needed.wait()
                if not self._ended:
                    await self._clock.sleep(PERIOD)
            except TimeoutError:
                pass
            self._needed.clear()
            try:
                await self._turn()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)
                await self._clock.sleep(PERIOD)

    async def _turn(self) -> None:
        await self._end_views()
        if self._ended:
            await self._delete_ended()
        now = self._clock.monotonic()
        if (self.viewers or self._fleet.watches.alive) and now - self._renewed_at >= RENEW:
            self._renewed_at = now
            await self._renew()
        for id, rate in (await self._relay.send()).items():
            if id in self._fleet.watches.alive:
                self._fleet.watches.alive[id].rate = rate
        if self.viewers and self._relay.others:
            await self._tell_rates()
            await self._receive()
        if now - self._cleaned_at >= CLEAN_EVERY:
            self._cleaned_at = now
            await self._relay.clean()

    async def _end_views(self) -> None:
        """End the views that must end."""
        now = self._clock.monotonic()
        for viewer in list(self.viewers.values()):
            code = "shutting_down" if self._fleet.closing else await viewer.may()
            if code:
                viewer.end(code)
            if viewer.ended or (not viewer.begun and now - viewer.made_at > UNREAD):
                self.leave(viewer)

    async def _delete_ended(self) -> None:
        ended = sorted(self._ended)

        async def write(conn: Connection) -> None:
            await conn.execute(watch_rows.SQL["end"], ended)
            await Changed(watches=True).announce(conn)

        await self._writes.transaction(write)
        self._ended.difference_update(ended)
        await self._fleet.announced()

    async def _renew(self) -> None:
        """Renew the watches of this replica's views, and read all that there are; find out which replicas there are."""
        now = self._clock.now()
        for viewer in self.viewers.values():
            viewer.share()
        rates = {viewer.id: viewer.rate for viewer in self.viewers.values()}
        await self._db.transaction(lambda conn: watch_rows.renew(conn, rates, now + LEASE, now - LEASE))
        await self._relay.find_others()
        await self._fleet.refresh_watches()
        alive = self._fleet.watches.alive
        for id in self._remote.keys() - alive.keys():
            del self._remote[id]
        for viewer in self.viewers.values():
            viewer.told_rate = rates.get(viewer.id, viewer.told_rate)
            if viewer.begun and viewer.id in rates and viewer.id not in alive:
                viewer.end("watch_ended")

    async def _tell_rates(self) -> None:
        """Tell other replicas the rates that have changed much since they were told."""
        changed = {}
        for viewer in self.viewers.values():
            viewer.share()
            if not 0.8 < viewer.rate / viewer.told_rate < 1.25:
                changed[viewer.id] = viewer.told_rate = viewer.rate
        if changed:
            until = self._clock.now() + LEASE
            await self._db.transaction(lambda conn: watch_rows.renew(conn, changed, until))

    async def _receive(self) -> None:
        """Show what other replicas have sent."""
        now = self._clock.monotonic()
        for batch in await self._relay.receive():
            viewer = self.viewers.get(batch.watch)
            if viewer is not None:
                viewer.rates.note(batch.node, batch.records + batch.sampled, now)
                _show(viewer, batch)


def _show(viewer: Viewer, batch: NodeBatch) -> None:
    if batch.lines:
        viewer.put(batch.lines, batch.records)
    viewer.count("sampled", batch.sampled)
    viewer.count("left_out", batch.left_out)
    viewer.count("invalid", batch.invalid)
    if batch.done:
        viewer.done(batch.node)


def _evenly(lines: list[bytes], count: int) -> list[bytes]:
    """So many of the lines, at even distances."""
    return [lines[at * len(lines) // count] for at in range(count)]
