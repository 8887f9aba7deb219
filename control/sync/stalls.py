"""How long the schema changes of a release would hold writers up on nodes, where a table is large.

The check of a change finds the statements that can't be cut, with a time for each row; nodes tell about how many rows
their tables have. A release that would hold the writers of a node up for more than `ALLOWED` is refused unless its
author accepts that.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection
from control.sync.requirements import listed

ALLOWED = 1.0
"""Seconds for which a schema change may hold the writers of a node up without being asked."""
TOLD = 0.1
"""Seconds from which on a release says so."""
NAMED = 20
"""Nodes that an answer names for a statement."""
SHOWN = 5
"""Statements, and nodes of each, that a problem's text shows."""


class StallingChange(NamedTuple):
    """A schema change and what its check found."""

    number: int
    stalls: list[dict[str, Any]]


class NodeEstimate(NamedTuple):
    """A node, and about how many rows it has of a table."""

    name: str
    rows: int


class NodeStall(Struct):
    """How long a node's writers would wait."""

    name: str
    rows: int
    """Of the table, about."""
    seconds: float


class ExpectedStall(Struct):
    """A statement of a schema change that holds writers up on nodes."""

    change: int
    statement: str
    table: str
    message: str
    seconds: float
    """On the node where it is longest, by its rows; about."""
    nodes: list[NodeStall]
    """Those where it is longest, 20 at most."""


SQL = queries.load("stalls")
GROUP = SQL.optional("group", str)
CHANGES = SQL.rows("changes", StallingChange)
NODES = SQL.rows("nodes", NodeEstimate)


async def of_group(conn: Connection, group: str) -> list[ExpectedStall]:
    """How long the changes behind the floor of a group's release would hold its nodes up.

    Read in a transaction of its own: the release's must not conflict with nodes that report meanwhile.
    """
    id = await conn.fetchval(GROUP, group)
    found: list[ExpectedStall] = []
    if id is None:
        return found
    for change in await conn.fetch(CHANGES, group):
        for stall in change.stalls:
            nodes = [
                NodeStall(node.name, node.rows, round(node.rows * float(stall["us"]) / 1e6, 1))
                for node in await conn.fetch(NODES, id, change.number, stall["table"], NAMED)
                if node.rows * float(stall["us"]) / 1e6 >= TOLD
            ]
            if nodes:
                found.append(
                    ExpectedStall(
                        change.number, stall["statement"], stall["table"], stall["message"], nodes[0].seconds, nodes
                    )
                )
    return found


def between(found: Sequence[ExpectedStall], old: int, new: int) -> list[ExpectedStall]:
    """Those of `found` whose changes are above one floor, up to another."""
    return [stall for stall in found if old < stall.change <= new]


def refuse(stalls: Sequence[ExpectedStall], what: str) -> None:
    """Raises: ProblemError stall_not_allowed, when `what` would hold writers up for longer than `ALLOWED`."""
    long = [stall for stall in stalls if stall.seconds > ALLOWED]
    if not long:
        return
    texts = [
        f"schema change {stall.change}: {stall.message}, "
        f"{listed([f'{node.name}: about {node.seconds:g} s' for node in stall.nodes], SHOWN, len(stall.nodes))}"
        for stall in long
    ]
    raise ProblemError(
        "stall_not_allowed",
        f"{what} would hold calls that write up for long: {listed(texts, SHOWN, len(texts), '; ')}. Change the table "
        "in steps, or go on with allow_stall (--allow-stall) if that may be",
        field="allow_stall",
    )
