"""Which rows of nodes a release can lose: what the check of schema changes found, and how many rows the nodes told.

A change is brought to nodes by the first release of their group whose floor includes it. That release, or the move of a
node, is refused unless its author allows the loss. A node without any schema change has no tables, and nothing to lose.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct

from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection
from control.sync.requirements import listed

NAMED = 20
"""Nodes that an answer names for a table."""
SHOWN = 5
"""Losses, and nodes of each, that a problem's text shows."""


class LosingChange(NamedTuple):
    """A schema change and what its check found."""

    number: int
    losses: list[dict[str, str]]


class GroupFloor(NamedTuple):
    """A group and the floor of its release, 0 without one."""

    id: str
    schema_floor: int


class TableRows(NamedTuple):
    """How many nodes lack a change, how many of them told the rows of a table, and the sum."""

    nodes: int
    told: int
    rows: int


class NamedRows(NamedTuple):
    """The rows of a table of a node; -1 where it hasn't told them."""

    name: str
    rows: int


class MovedNode(NamedTuple):
    """A node that is to be moved, and its rows by table; None where it has told none."""

    name: str
    schema_version: int
    counts: dict[str, Any] | None


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
CHANGES = SQL.rows("changes", LosingChange)
GROUP_FLOOR = SQL.rows("group_floor", GroupFloor)
ROWS = SQL.rows("rows", TableRows)
NODES = SQL.rows("nodes", NamedRows)
MOVED = SQL.rows("moved", MovedNode)
FLOOR = SQL.value("floor", int)
GROUPS_WITH = SQL.value("groups_with", str)

Found = dict[tuple[int, str, str], LostRows]
"""By change, table and statement."""


async def of_group(conn: Connection, group: str) -> Found:
    """What releases of a group can lose whose floors are above the one that it has.

    Read in a transaction of its own: the release's must not conflict with nodes that report meanwhile.
    """
    found: Found = {}
    row = await conn.fetchrow(GROUP_FLOOR, group)
    if row is None:
        return found
    for change in await conn.fetch(CHANGES, row.schema_floor, 2**31):
        for loss in change.losses:
            found[_key(change.number, loss)] = await _of_groups(conn, [row.id], change.number, loss)
    return found


async def of_amendment(conn: Connection, number: int, losses: Sequence[Mapping[str, str]]) -> list[LostRows]:
    """What nodes can lose by another text of a change: those that lack it and whose release has it already. They get
    the newest text when they try again, without another release.
    """
    groups = await conn.column(GROUPS_WITH, number) if losses else []
    found = [await _of_groups(conn, groups, number, loss) for loss in losses]
    return [loss for loss in found if loss.nodes]


async def _of_groups(conn: Connection, groups: list[str], number: int, loss: Mapping[str, str]) -> LostRows:
    table = loss["table"]
    count = await conn.one(ROWS, groups, number, table)
    nodes = await conn.fetch(NODES, groups, number, table, NAMED) if count.nodes else []
    return _lost(number, loss, count.nodes, count.rows if count.told else None, nodes)


async def of_floors(conn: Connection, found: Found, old: int, new: int) -> list[LostRows]:
    """Those of `found` that are between two floors of the group. A change that came after `found` was read counts, too,
    as one whose nodes aren't known.
    """
    losses = [
        found.get(_key(change.number, loss)) or _lost(change.number, loss, 1, None, [])
        for change in await conn.fetch(CHANGES, old, new)
        for loss in change.losses
    ]
    return [loss for loss in losses if loss.nodes]


async def of_move(conn: Connection, node_id: UUID, group_id: UUID) -> list[LostRows]:
    """What a node can lose by its move to a group."""
    node = await conn.one(MOVED, node_id)
    if not node.schema_version:
        return []
    found: list[LostRows] = []
    for change in await conn.fetch(CHANGES, node.schema_version, await conn.fetchval(FLOOR, group_id)):
        for loss in change.losses:
            rows = (node.counts or {}).get(loss["table"])
            found.append(_lost(change.number, loss, 1, rows, [NamedRows(node.name, -1 if rows is None else rows)]))
    return found


def refuse(losses: Sequence[LostRows], what: str) -> None:
    """Raises: ProblemError loss_not_allowed, when `what` (a release, a move) can lose something."""
    if not losses:
        return
    texts = [f"schema change {loss.change}: {loss.message}{_statement(loss)}, of {told(loss)}" for loss in losses]
    raise ProblemError(
        "loss_not_allowed",
        f"{what} can lose rows of nodes: {listed(texts, SHOWN, len(texts), '; ')}. Go on with allow_loss "
        "(--allow-loss) if that is meant",
        field="allow_loss",
    )


def told(loss: LostRows) -> str:
    """The nodes of a loss and their rows, as text."""
    total = "an unknown number of rows" if loss.rows is None else f"{loss.rows} rows"
    named = [f"{node.name}: {_number(node.rows)}" for node in loss.most]
    names = f" ({listed(named, SHOWN, max(loss.nodes, len(named)))})" if named else ""
    return f"{loss.nodes} {'nodes' if loss.nodes > 1 else 'node'} with {total}{names}"


def _statement(loss: LostRows) -> str:
    return f" ({' '.join(loss.statement[:200].split())})" if loss.statement else ""


def _number(rows: int | None) -> str:
    return "unknown" if rows is None else "more than 10,000" if rows > 10_000 else str(rows)


def _key(number: int, loss: Mapping[str, str]) -> tuple[int, str, str]:
    return number, loss["table"], loss["statement"]


def _lost(number: int, loss: Mapping[str, str], nodes: int, rows: int | None, most: Sequence[NamedRows]) -> LostRows:
    named = [NodeRows(node.name, None if node.rows < 0 else node.rows) for node in most]
    return LostRows(number, loss["statement"], loss["table"], loss["message"], nodes, rows, named)
