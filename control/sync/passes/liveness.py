"""Which nodes are online or offline, overdue or not, by the times at which they were last seen and confirmed.

Each function changes a page of nodes in one transaction: those that are still as they were read, and that no other
transaction has locked. It returns how many nodes it has looked after, and which of them have changed.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple
from uuid import uuid4

from control.protocol.wire import EventKind
from control.storage import events, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection


class NodeStateRow(NamedTuple):
    """A node's state."""

    id: str
    state: str
    removed: bool


class OverdueNode(NamedTuple):
    """A node that wasn't confirmed for a while."""

    id: str
    confirmed_at: datetime
    gone: bool
    """It was removed or revoked: nothing is expected of it."""


SQL = queries.load("monitor")
FIND_GOOD = SQL.value("find_good", str)
FIND_REVOKED = SQL.value("find_revoked", str)
LOCK_UNSEEN = SQL.value("lock_unseen", str)
LOCK_SEEN_AGAIN = SQL.value("lock_seen_again", str)
LOCK_FREE = SQL.rows("lock_free", NodeStateRow)
LOCK_OVERDUE = SQL.rows("lock_overdue", OverdueNode)
LOCK_OVERDUE_NO_MORE = SQL.value("lock_overdue_no_more", str)

LOCK_CROSSING = SQL.value("lock_crossing", str)
LOCK_CROSSING_NO_MORE = SQL.value("lock_crossing_no_more", str)
CLONED = (
    "two processes poll as this node in turn: another machine has a copy of its state directory. Stop one of them, and "
    "have it join as a node of its own, with an empty state directory"
)

Done = tuple[int, list[str]]
"""How many nodes were looked after, and the ids of those that have changed."""
Work = Callable[[list[str], Connection], Awaitable[Done]]
"""Looks after the nodes of these ids."""


async def silent(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Make nodes offline that weren't seen since `since`; a node with an open sync only once that has expired."""
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


async def heard(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Make nodes online again that were seen since `since`."""
    nodes = await conn.fetch(LOCK_FREE, await conn.column(LOCK_SEEN_AGAIN, ids, since))
    offline = [node.id for node in nodes if node.state == "offline" and not node.removed]
    settled = [node.id for node in nodes]
    if offline:
        await conn.execute(SQL["change_states"], offline, "online", now)
    if settled:
        await conn.execute(SQL["set_offline"], settled, False)
    await _tell(conn, now, "node.online", [node.id for node in nodes if not node.removed and node.state != "revoked"])
    return len(settled), offline


async def revoked(now: datetime, limit: int, conn: Connection) -> int:
    """Make offline nodes revoked whose credentials have all ended, and revoked ones offline that have a good one,
    `limit` of each at most; return how many."""
    good = await conn.column(FIND_GOOD, now, limit)
    if good:
        # The next heartbeat makes them online.
        await conn.execute(SQL["set_offline"], good, True)
    found = await conn.column(FIND_REVOKED, limit)
    if found:
        await conn.execute(SQL["clear_warnings"], found, now, "overdue")
    if good or found:
        await Changed(nodes={*good, *found}).announce(conn)
    return len(good) + len(found)


async def overdue(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Warn of nodes that weren't confirmed at their target since `since`."""
    nodes = await conn.fetch(LOCK_OVERDUE, ids, since)
    late = [node for node in nodes if not node.gone]
    if late:
        messages = [f"not confirmed at its target since {node.confirmed_at:%Y-%m-%d %H:%M:%S} UTC" for node in late]
        await _warn(conn, now, "overdue", [node.id for node in late], messages)
    if nodes:
        await conn.execute(SQL["set_overdue"], [node.id for node in nodes], True)
    await _tell(conn, now, "node.overdue", [node.id for node in late])
    return len(nodes), [node.id for node in late]


async def confirmed(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Clear the warnings of nodes that were confirmed since `since`."""
    again = await conn.column(LOCK_OVERDUE_NO_MORE, ids, since)
    if again:
        await conn.execute(SQL["clear_warnings"], again, now, "overdue")
        await conn.execute(SQL["set_overdue"], again, False)
    await _tell(conn, now, "node.caught_up", again)
    return len(again), again


async def crossing(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Warn of nodes as which two processes have polled in turn since before `since`."""
    nodes = await conn.column(LOCK_CROSSING, ids, since)
    if nodes:
        await _warn(conn, now, "cloned", nodes, [CLONED] * len(nodes))
        await conn.execute(SQL["set_cloned"], nodes, True)
    return len(nodes), nodes


async def alone(since: datetime, now: datetime, ids: list[str], conn: Connection) -> Done:
    """Clear the warnings of nodes as which one process alone has polled since `since`."""
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
