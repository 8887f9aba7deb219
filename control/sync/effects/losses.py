"""Which rows nodes can lose by schema changes: what the check of a change found, and how many rows the nodes told."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from msgspec import Struct

from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import queries
from control.storage.connection import Connection
from control.sync.requirements import listed

NAMED = 20
"""Nodes that an answer names for a table."""
SHOWN = 5
"""Losses, and nodes of each, that a problem's text shows."""


class TableRows(NamedTuple):
    """How many nodes lack a change, how many of them told the rows of a table, and the sum."""

    nodes: int
    told: int
    rows: int


class NamedRows(NamedTuple):
    """The rows of a table of a node; -1 where it hasn't told them."""

    name: str
    rows: int


class NodeRows(Struct):
    """A node's rows of a table."""

    name: str
    rows: int | None
    """As the node told it last; 10,001 for more than 10,000, null where it hasn't."""


class LostRows(Struct):
    """What a statement of a schema change can lose, and of how many nodes."""

    change: int
    """The number of the schema change."""
    statement: str
    """Empty where it isn't one statement alone."""
    table: str
    message: str
    nodes: int
    """Nodes of the group that would get the change."""
    rows: int | None
    """Rows of the table that these nodes have together, as far as they told it; null where none has."""
    most: list[NodeRows]
    """The nodes with the most rows, 20 at most."""


SQL = queries.load("losses")
ROWS = SQL.rows("rows", TableRows)
NODES = SQL.rows("nodes", NamedRows)
OF_NODE = SQL.value("of_node", int)


async def of_groups(
    conn: Connection, groups: Sequence[str], number: int, found: Sequence[Mapping[str, str]]
) -> list[LostRows]:
    """What nodes of groups that lack a change can lose by it; `found` by the change's check."""
    lost: list[LostRows] = []
    for loss in found:
        count = await conn.one(ROWS, groups, number, loss["table"])
        if count.nodes:
            nodes = await conn.fetch(NODES, groups, number, loss["table"], NAMED)
            lost.append(_lost(number, loss, count.nodes, count.rows if count.told else None, nodes))
    return lost


async def of_node(
    conn: Connection, node_id: UUID, name: str, number: int, found: Sequence[Mapping[str, str]]
) -> list[LostRows]:
    """What a node can lose by a change; `found` by the change's check."""
    lost: list[LostRows] = []
    for loss in found:
        rows = await conn.fetchval(OF_NODE, node_id, loss["table"])
        lost.append(_lost(number, loss, 1, None if rows < 0 else rows, [NamedRows(name, rows)]))
    return lost


def refusals(losses: Sequence[LostRows], what: str) -> list[ProblemError]:
    """loss_not_allowed, where `what` can lose something."""
    if not losses:
        return []
    texts = [f"schema change {loss.change}: {loss.message}{_statement(loss)}, of {told(loss)}" for loss in losses]
    return [
        ProblemError(
            "loss_not_allowed",
            f"{what} can lose rows of nodes: {listed(texts, SHOWN, len(texts), '; ')}. Go on with allow_loss "
            "(--allow-loss) if that is meant; `skerry schema withdraw` takes a change back that no node has yet",
            field="allow_loss",
        )
    ]


def told(loss: LostRows) -> str:
    """The nodes of a loss and their rows, as text."""
    total = "an unknown number of rows" if loss.rows is None else counted(loss.rows, "row")
    named = [f"{node.name}: {said(node.rows)}" for node in loss.most]
    names = f" ({listed(named, SHOWN, max(loss.nodes, len(named)))})" if named else ""
    return f"{counted(loss.nodes, 'node')} with {total}{names}"


def _statement(loss: LostRows) -> str:
    return f" ({' '.join(loss.statement[:200].split())})" if loss.statement else ""


def said(rows: int | None) -> str:
    """How many rows a node has of a table, as it told it, as text."""
    return "unknown" if rows is None else "more than 10,000" if rows > 10_000 else str(rows)


def _lost(number: int, loss: Mapping[str, str], nodes: int, rows: int | None, most: Sequence[NamedRows]) -> LostRows:
    named = [NodeRows(node.name, None if node.rows < 0 else node.rows) for node in most]
    return LostRows(number, loss["statement"], loss["table"], loss["message"], nodes, rows, named)
