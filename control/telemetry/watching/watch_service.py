"""One replica's part in watching nodes' records: it begins and ends views, and takes the batches that nodes send.

A watch is a row of the metadata that is announced as a target is, so polls tell it to nodes. It has a lease, which the
replica with its view renews: a watch that nobody renews has ended. A batch goes to the view, where that is on this
replica, and else by the relay to the replica that has it.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import msgspec

from control import tokens
from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.counts import counted
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import CachedNode, FleetCache
from control.sync.watches import CachedWatch
from control.telemetry.watching.node_records import CheckedLines
from control.telemetry.watching.relay import NodeBatch, RecordRelay
from control.telemetry.watching.view import NAMED, Ask, NodeRates, Nodes, View, node_rates

LEASE = timedelta(seconds=12)
"""How long a watch lives without being renewed."""
RENEW = 3.0
"""Seconds between two renewals of leases."""
PERIOD = 0.2
"""Seconds between two exchanges with other replicas, while there is something to exchange."""
IDLE = 1.0
"""Seconds between two checks whether there is something."""
MOST_WATCHES = 32
"""Watches at once: each costs every node that it concerns some memory, and a request every half second."""
MOST_OF_OPERATOR = 8
"""Of these, one operator's."""
COUNTS = "functions"
"""The kind of question about what a node has counted: as many of these may be asked in addition."""
HISTORY = 5000
"""Records that all nodes together may send of what is there already; each may send at least `LEAST_HISTORY`."""
LEAST_HISTORY = 10
UNREAD = 10.0
"""Seconds within which a view's reader must begin to read."""
CLEAN_EVERY = 30.0
"""Seconds between two deletions of the relay's old rows."""


class WatchedNodeRow(NamedTuple):
    """A node, and its group."""

    id: str
    group_id: str
    group_name: str


class AskableRow(NamedTuple):
    """How many nodes are alike."""

    offline: bool
    too_old: bool
    nodes: int


SQL = queries.load("watches")
NODE = SQL.rows("node", WatchedNodeRow)
GROUPS = SQL.value("groups", str)
COUNTS_OF_NODES = SQL.rows("count_nodes", AskableRow)
NAMES = SQL.value("names", str)

log = logging.getLogger("skerry.live")


class WatchService:
    """The views of this replica, and what nodes send for views here and elsewhere."""

    def __init__(self, db: Database, writes: Database, fleet: FleetCache, clock: Clock) -> None:
        """`writes` has the connections whose transactions take turns with all others that announce something."""
        self._db = db
        self._writes = writes
        self._fleet = fleet
        self._clock = clock
        self._name = fleet.mark.name
        self.views: dict[str, View] = {}
        self._remote: dict[str, NodeRates] = {}
        """The nodes that send records here for views of other replicas, by watch."""
        self._relay = RecordRelay(db, clock, self._name)
        self._ended: set[str] = set()
        """Ids of watches that are to be deleted."""
        self._needed = asyncio.Event()
        self._renewed_at = self._cleaned_at = -math.inf

    # Views

    async def begin(self, ask: Ask, confirm: Callable[[Connection], Awaitable[None]] | None = None) -> View:
        """Begin a view. Its reader must come soon, and must `leave` it.

        `confirm` is awaited in the transaction that writes the watch. Raises: ProblemError unknown_node, unknown_group,
        too_many_watches, and those of the database.
        """
        question = ask.question or wire.Question("", self._clock.now())
        self._refuse_more(ask.operator, question.kind)
        now, id = self._clock.now(), str(uuid4())
        node, groups = await self._db.read(lambda conn: find_nodes(conn, ask))
        nodes = await self._db.read(lambda conn: count_nodes(conn, node, groups, NAMED))
        least = max(LEAST_HISTORY, HISTORY // max(1, nodes.asked))
        question = msgspec.structs.replace(
            question, id=id, limit=min(question.limit, least if nodes.asked > 1 else 10_000)
        )
        # Others may have begun in the meantime, even many at once.
        self._refuse_more(ask.operator, question.kind)
        view = View(id, question, ask, nodes, self._clock)
        fields = msgspec.to_builtins(question)
        del fields["id"]

        async def write(conn: Connection) -> None:
            if confirm is not None:
                await confirm(conn)
            row = (id, self._name, ask.operator, node, groups, fields, view.rate, now, now + LEASE)
            await conn.execute(SQL["begin"], *row)
            await Changed(watches=True).announce(conn)

        self.views[id] = view
        self._renewed_at = -math.inf  # soon, to find out which replicas there are
        try:
            await self._writes.transaction(write)
            await self._fleet.announced()
        except BaseException:
            self.leave(view)
            raise
        log.info("%s watches %s of %s", ask.operator, question.kind, counted(nodes.asked, "node"))
        return view

    def _refuse_more(self, operator: str, kind: str) -> None:
        """Raises: ProblemError too_many_watches, when no more views may begin; those of this replica that aren't
        announced yet count, too."""
        begun = {watch.id: (watch.operator, watch.question.kind) for watch in self._fleet.watches.alive.values()}
        begun |= {view.id: (view.operator, view.kind) for view in self.views.values()}
        # Pages of nodes and readers of logs take no views away from each other.
        alike = [whose for whose, what in begun.values() if (what == COUNTS) == (kind == COUNTS)]
        mine = alike.count(operator)
        if len(alike) >= MOST_WATCHES or mine >= MOST_OF_OPERATOR:
            whose = f"{operator} has {mine}" if mine >= MOST_OF_OPERATOR else f"there are {len(alike)}"
            raise ProblemError("too_many_watches", f"{whose} views of records already; end one of them", retry_after=10)

    def leave(self, view: View) -> None:
        """End a view: its nodes are told at once."""
        if self.views.pop(view.id, None) is not None:
            view.end("watch_ended")
            self._ended.add(view.id)
            self._needed.set()

    async def silent(self, view: View) -> list[str]:
        """Return the names of nodes that haven't told what they had; none if there are many, or without an answer of
        the database."""
        watch = self._fleet.watches.alive.get(view.id)
        if watch is None or view.nodes.asked > 1000:
            return []
        groups = None if watch.group_ids is None else sorted(watch.group_ids)
        try:
            return await self._db.read(
                lambda conn: names_of_nodes(conn, watch.node_id, groups, NAMED, but=sorted(view.answered))
            )
        except ProblemError:
            return []

    # What nodes send

    async def watch_of(self, id: str, node: CachedNode) -> CachedWatch:
        """Return the watch of this id, which concerns a node. Raises: ProblemError watch_ended."""
        watch = self._fleet.watches.alive.get(id)
        if watch is None:
            # The node may have heard of it from another replica.
            await self._fleet.caught_up()
            watch = self._fleet.watches.alive.get(id)
        if watch is None or not watch.concerns(node) or (watch.replica == self._name and id not in self.views):
            raise ProblemError("watch_ended", "nobody watches that of this node any more")
        return watch

    def take(
        self,
        watch: CachedWatch,
        node: CachedNode,
        found: CheckedLines,
        *,
        sampled: int,
        left_out: int,
        done: bool,
    ) -> float:
        """Take a node's records; return how many it may send a second from now on."""
        now = self._clock.monotonic()
        view = self.views.get(watch.id)
        if view is not None:
            view.share()
            rates, rate = view.rates, view.rate
        else:
            rates, rate = self._remote.setdefault(watch.id, node_rates(watch.question)), watch.rate
        count = len(found.lines)
        taken = rates.take(node.id, count, sampled, rate, now)
        lines = found.lines if taken >= count else _evenly(found.lines, taken)
        batch = NodeBatch(
            watch.id, node.id, b"".join(lines), len(lines), sampled + count - len(lines), left_out, found.invalid, done
        )
        if view is not None:
            _show(view, batch)
        else:
            self._relay.post(watch.replica, batch)
            self._needed.set()
        return rate

    # In the background

    async def run(self) -> None:
        """Exchange records with other replicas, renew and end watches, until cancelled."""
        outage = Outage(log, "records that are watched can't be exchanged with other replicas")
        while True:
            busy = self.views or self._ended
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
        if (self.views or self._fleet.watches.alive) and now - self._renewed_at >= RENEW:
            self._renewed_at = now
            await self._renew()
        for id, rate in (await self._relay.send()).items():
            if id in self._fleet.watches.alive:
                self._fleet.watches.alive[id].rate = rate
        if self.views and self._relay.others:
            await self._tell_rates()
            await self._receive()
        if now - self._cleaned_at >= CLEAN_EVERY:
            self._cleaned_at = now
            await self._relay.clean()

    async def _end_views(self) -> None:
        """End the views that must end."""
        now = self._clock.monotonic()
        for view in list(self.views.values()):
            code = "shutting_down" if self._fleet.closing else await view.may()
            if code:
                view.end(code)
            if view.ended or (not view.begun and now - view.made_at > UNREAD):
                self.leave(view)

    async def _delete_ended(self) -> None:
        ended = sorted(self._ended)

        async def write(conn: Connection) -> None:
            await conn.execute(SQL["end"], ended)
            await Changed(watches=True).announce(conn)

        await self._writes.transaction(write)
        self._ended.difference_update(ended)
        await self._fleet.announced()

    async def _renew(self) -> None:
        """Renew the watches of this replica's views, read all watches, and find out which replicas there are."""
        now = self._clock.now()
        for view in self.views.values():
            view.share()
        rates = {view.id: view.rate for view in self.views.values()}
        await self._db.transaction(lambda conn: renew(conn, rates, now + LEASE, now - LEASE))
        await self._relay.find_others()
        await self._fleet.refresh_watches()
        alive = self._fleet.watches.alive
        for id in self._remote.keys() - alive.keys():
            del self._remote[id]
        for view in self.views.values():
            view.told_rate = rates.get(view.id, view.told_rate)
            if view.begun and view.id in rates and view.id not in alive:
                view.end("watch_ended")

    async def _tell_rates(self) -> None:
        """Tell other replicas the rates that have changed much since the last time."""
        changed = {}
        for view in self.views.values():
            view.share()
            if not 0.8 < view.rate / view.told_rate < 1.25:
                changed[view.id] = view.told_rate = view.rate
        if changed:
            until = self._clock.now() + LEASE
            await self._db.transaction(lambda conn: renew(conn, changed, until))

    async def _receive(self) -> None:
        """Show what other replicas have sent."""
        now = self._clock.monotonic()
        for batch in await self._relay.receive():
            view = self.views.get(batch.watch)
            if view is not None:
                view.rates.note(batch.node, batch.records + batch.sampled, now)
                _show(view, batch)


def _show(view: View, batch: NodeBatch) -> None:
    if batch.lines:
        view.put(batch.lines, batch.records)
    view.count("sampled", batch.sampled)
    view.count("left_out", batch.left_out)
    view.count("invalid", batch.invalid)
    if batch.done:
        view.done(batch.node)


def _evenly(lines: list[bytes], count: int) -> list[bytes]:
    """Return so many of the lines, at even distances."""
    return [lines[at * len(lines) // count] for at in range(count)]


async def find_nodes(conn: Connection, ask: Ask) -> tuple[str | None, list[str] | None]:
    """Return the id of the node that is asked for, or None, and the ids of the groups; None for all of them.

    Raises: ProblemError, when there is no such node or group, or the operator may not see it.
    """
    names = ask.groups
    if ask.group is not None:
        names = [ask.group] if names is None or ask.group in names else []
    groups = None
    if names is not None:
        groups = sorted(await conn.column(GROUPS, names))
        if ask.group is not None and not groups:
            raise ProblemError("unknown_group", f"there is no group {ask.group}", field="group")
    if ask.node is None:
        return None, groups
    row = await conn.fetchrow(NODE, ask.node, ask.node if tokens.ID.fullmatch(ask.node) else None)
    if row is None or (groups is not None and row.group_id not in groups):
        raise ProblemError("unknown_node", f"there is no node {ask.node}", field="node")
    return row.id, groups


async def count_nodes(conn: Connection, node: str | None, groups: list[str] | None, named: int) -> Nodes:
    """Count the nodes that can be asked and those that can't, and name `named` of the latter."""
    asked = offline = too_old = 0
    for row in await conn.fetch(COUNTS_OF_NODES, node, groups, wire.WATCH_PROTOCOL):
        if row.offline:
            offline += row.nodes
        elif row.too_old:
            too_old += row.nodes
        else:
            asked += row.nodes
    offline_names: list[str] = []
    old_names: list[str] = []
    if offline:
        # Of both versions, since an older one may be upgraded until it is back.
        for old in (False, True):
            found = await conn.column(NAMES, node, groups, wire.WATCH_PROTOCOL, True, old, [], named)
            offline_names = sorted([*offline_names, *found])[:named]
    if too_old:
        old_names = await conn.column(NAMES, node, groups, wire.WATCH_PROTOCOL, False, True, [], named)
    return Nodes(asked, offline, too_old, offline_names, old_names)


async def names_of_nodes(
    conn: Connection, node: str | None, groups: list[str] | None, named: int, but: list[str]
) -> list[str]:
    """Return the names of `named` nodes that can be asked, except for those with the ids `but`."""
    return await conn.column(NAMES, node, groups, wire.WATCH_PROTOCOL, False, False, but, named)


async def renew(conn: Connection, rates: dict[str, float], until: datetime, forget: datetime | None = None) -> None:
    """Renew watches and write their rates; delete those whose leases ended before `forget`."""
    if rates:
        await conn.execute(SQL["renew"], list(rates), [str(rate) for rate in rates.values()], until)
    if forget is not None:
        await conn.execute(SQL["forget"], forget)
