"""Registered schema changes with what their check found, and which of them a release, a move or an amendment brings to
which nodes.
"""

from typing import Any, NamedTuple
from uuid import UUID

from control.storage import queries
from control.storage.connection import Connection


class StoredFindings(NamedTuple):
    """A schema change and what the check of its newest revision found; None where that isn't known."""

    number: int
    losses: list[dict[str, str]] | None
    stalls: list[dict[str, Any]] | None


class RegisteredFindings(NamedTuple):
    """A schema change and what the check of its newest revision found; that it isn't known is among its losses."""

    number: int
    losses: list[dict[str, str]]
    stalls: list[dict[str, Any]]
    known: bool


class GroupFloor(NamedTuple):
    """A group, the floor of its release, 0 without one, and the number of the newest schema change."""

    id: str
    schema_floor: int
    newest_change: int


class MovingNode(NamedTuple):
    """A node that may be moved to a group: its name, its schema version, and the floor of the group's release."""

    name: str
    schema_version: int
    schema_floor: int


NOT_KNOWN = {
    "statement": "",
    "table": "",
    "message": "an earlier version of control registered it without looking for losses and stalls, and its check fails "
    "or hasn't come to it (control's log says why; --plan tries again): what it does to rows and calls isn't known",
}

SQL = queries.load("registered_changes")
FOUND = SQL.rows("found", StoredFindings)
GROUP_FLOOR = SQL.rows("group_floor", GroupFloor)
GROUPS_WITH = SQL.value("groups_with", str)
MOVING = SQL.rows("moving", MovingNode)


async def between(conn: Connection, above: int, upto: int) -> list[RegisteredFindings]:
    """The changes above one number, up to another, whose check found something or isn't known."""
    found = []
    for number, losses, stalls in await conn.fetch(FOUND, above, upto) if upto > above else []:
        known = None not in (losses, stalls)
        found.append(
            RegisteredFindings(number, [*(losses or []), *([] if known else [NOT_KNOWN])], stalls or [], known)
        )
    return found


async def group_floor(conn: Connection, group: str) -> GroupFloor | None:
    """The group of this name; None where there is none."""
    return await conn.fetchrow(GROUP_FLOOR, group)


async def groups_with(conn: Connection, number: int) -> list[str]:
    """The ids of the groups whose releases include a change."""
    return await conn.column(GROUPS_WITH, number)


async def moving(conn: Connection, node_id: UUID, group_id: UUID) -> MovingNode:
    """A node, and the floor of a group's release."""
    return await conn.one(MOVING, node_id, group_id)
