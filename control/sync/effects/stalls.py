"""How long schema changes would hold writers of nodes up, where a table is large.

The check of a change finds the statements that can't be cut, with a time for each row; nodes tell about how many rows
their tables have.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct

from control.problems import ProblemError
from control.settings import LEAST_STALL_LIMIT
from control.storage import queries
from control.storage.connection import Connection
from control.sync.requirements import listed

TOLD = LEAST_STALL_LIMIT
"""Seconds from which on a stall is told."""
NAMED = 20
"""Nodes that an answer names for a statement."""
SHOWN = 5
"""Statements, and nodes of each, that a problem's text shows."""


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
    """Empty for the check of foreign keys behind the change."""
    table: str
    message: str
    seconds: float
    """On the node where it is longest, by its rows; about."""
    nodes: list[NodeStall]
    """Those where it is longest, 20 at most."""


SQL = queries.load("stalls")
NODES = SQL.rows("nodes", NodeEstimate)
OF_NODE = SQL.value("of_node", int)


async def of_groups(
    conn: Connection, groups: Sequence[str], number: int, found: Sequence[Mapping[str, Any]]
) -> list[ExpectedStall]:
    """How long a change would hold up nodes of groups that lack it; `found` by the change's check."""
    expected: list[ExpectedStall] = []
    for stall in found:
        expected += _expected(number, stall, await conn.fetch(NODES, groups, number, stall["table"], NAMED))
    return expected


async def of_node(
    conn: Connection, node_id: UUID, name: str, number: int, found: Sequence[Mapping[str, Any]]
) -> list[ExpectedStall]:
    """How long a change would hold a node up; `found` by the change's check."""
    expected: list[ExpectedStall] = []
    for stall in found:
        rows = await conn.fetchval(OF_NODE, node_id, stall["table"])
        expected += _expected(number, stall, [NodeEstimate(name, rows)])
    return expected


def _expected(number: int, stall: Mapping[str, Any], nodes: Sequence[NodeEstimate]) -> Iterator[ExpectedStall]:
    """Yield the stall where it is worth telling; `nodes`: the largest first."""
    held = [NodeStall(node.name, node.rows, node.rows * float(stall["us"]) / 1e6) for node in nodes]
    told = [NodeStall(node.name, node.rows, round(node.seconds, 1)) for node in held if node.seconds >= TOLD]
    if told:
        yield ExpectedStall(number, stall["statement"], stall["table"], stall["message"], told[0].seconds, told)


def refusals(stalls: Sequence[ExpectedStall], what: str, limit: float) -> list[ProblemError]:
    """stall_not_allowed, where `what` would hold the writers of a node up for more than `limit` seconds: all of it is
    one transaction."""
    sums: dict[str, float] = {}
    for stall in stalls:
        for node in stall.nodes:
            sums[node.name] = sums.get(node.name, 0.0) + node.seconds
    longest = max(sums, key=lambda name: sums[name], default="")
    if not longest or sums[longest] <= limit:
        return []
    texts = [
        f"schema change {stall.change}: {stall.message}, "
        f"{listed([f'{node.name}: about {node.seconds:g} s' for node in stall.nodes], SHOWN, len(stall.nodes))}"
        for stall in sorted(stalls, key=lambda stall: -stall.seconds)
    ]
    return [
        ProblemError(
            "stall_not_allowed",
            f"{what} would hold calls that write up for about {round(sums[longest], 1):g} s on node {longest}, and "
            f"{limit:g} s are allowed (SKERRY_STALL_LIMIT): {listed(texts, SHOWN, len(texts), '; ')}. Change the table "
            "in steps, or go on with allow_stall (--allow-stall) if that may be",
            field="allow_stall",
        )
    ]
