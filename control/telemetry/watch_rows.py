"""What watches need of the metadata: the nodes that one is about, the replicas that there are, records on their way."""

from datetime import datetime, timedelta
from typing import NamedTuple

from control import tokens
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.connection import Connection
from control.sync import replica_mark
from control.telemetry.viewer import Ask, Nodes

MARKED = timedelta(seconds=10)
"""How old the mark may be of a replica that runs."""


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


class RateRow(NamedTuple):
    """The rate of a watch."""

    id: str
    rate: float


class SentRow(NamedTuple):
    """What a replica has sent to another one."""

    sender: str
    seq: int
    body: bytes


SQL = queries.load("watches")
NODE = SQL.rows("node", WatchedNodeRow)
GROUPS = SQL.value("groups", str)
COUNTS = SQL.rows("count_nodes", AskableRow)
NAMES = SQL.value("names", str)
RATES = SQL.rows("rates", RateRow)
REPLICAS = SQL.value("replicas", str)
RECEIVE = SQL.rows("receive", SentRow)


async def find(conn: Connection, ask: Ask) -> tuple[str | None, list[str] | None]:
    """The id of the node that is asked for, or None, and the ids of the groups that are; None for all of them.

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


async def count(conn: Connection, node: str | None, groups: list[str] | None, named: int) -> Nodes:
    """How many nodes can be asked, and which can't: `named` of these by their names."""
    asked = offline = too_old = 0
    for row in await conn.fetch(COUNTS, node, groups, wire.WATCH_PROTOCOL):
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


async def names(conn: Connection, node: str | None, groups: list[str] | None, named: int, but: list[str]) -> list[str]:
    """Names of nodes that can be asked, but for those of some ids."""
    return await conn.column(NAMES, node, groups, wire.WATCH_PROTOCOL, False, False, but, named)


async def renew(conn: Connection, rates: dict[str, float], until: datetime, forget: datetime | None = None) -> None:
    """Renew watches, and tell their rates; delete those that ended before `forget`, which nobody has renewed."""
    if rates:
        await conn.execute(SQL["renew"], list(rates), [str(rate) for rate in rates.values()], until)
    if forget is not None:
        await conn.execute(SQL["forget"], forget)


async def replicas(conn: Connection, now: datetime) -> list[str]:
    """The names of the replicas that run."""
    return await conn.column(REPLICAS, now + replica_mark.KEPT - MARKED)
