"""Schema changes that an earlier version of control registered, without looking for what is looked for now: they are
checked when a release, a move or a plan first comes to them, and what is found is kept.
"""

import logging
from typing import NamedTuple
from uuid import UUID

from control.edge_check import OperatorChecks
from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.effects import registered_changes

log = logging.getLogger("skerry.checks")

MOST = 20
"""Changes that are checked at once; each takes a process for some tenths of a second."""


class UncheckedRevision(NamedTuple):
    """The newest revision of a schema change, whose check isn't known."""

    number: int
    revision: int


class ChangeText(NamedTuple):
    """The newest text of a schema change."""

    number: int
    sql: str


class Unchecked(NamedTuple):
    """The first `MOST` changes that aren't checked yet, and the texts of all changes up to them."""

    changes: list[UncheckedRevision]
    texts: list[ChangeText]


NONE = Unchecked([], [])

SQL = queries.load("registered_changes")
UNCHECKED = SQL.rows("unchecked", UncheckedRevision)
TEXTS = SQL.rows("texts", ChangeText)


async def check_for_group(db: Database, checks: OperatorChecks, group: str) -> None:
    """Check the changes above the floor of a group's release that aren't checked yet."""

    async def read(conn: Connection) -> Unchecked:
        floor = await registered_changes.group_floor(conn, group)
        return NONE if floor is None else await _between(conn, floor.schema_floor, 2**31)

    await _check(db, checks, await db.read(read))


async def check_for_move(db: Database, checks: OperatorChecks, node_id: UUID, group_id: UUID) -> None:
    """Check the changes that the move to a group brings to a node and that aren't checked yet."""

    async def read(conn: Connection) -> Unchecked:
        node = await registered_changes.moving(conn, node_id, group_id)
        return await _between(conn, node.schema_version, node.schema_floor) if node.schema_version else NONE

    await _check(db, checks, await db.read(read))


async def _between(conn: Connection, above: int, upto: int) -> Unchecked:
    found = await conn.fetch(UNCHECKED, above, upto, MOST)
    return Unchecked(found, await conn.fetch(TEXTS, found[-1].number) if found else [])


async def _check(db: Database, checks: OperatorChecks, found: Unchecked) -> None:
    """Check changes; one whose check fails stays unchecked."""
    for change in found.changes:
        earlier = [(text.number, text.sql) for text in found.texts if text.number < change.number]
        sql = next(text.sql for text in found.texts if text.number == change.number)
        try:
            checked = await checks.schema(earlier, sql)
        except ProblemError as error:
            log.warning(
                "schema change %d was registered by an earlier version, and its check fails: %s [%s]",
                change.number,
                error.detail,
                error.code,
            )
            continue
        values = *change, checked.losses, checked.stalls
        await db.transaction(lambda conn: conn.execute(SQL["keep"], *values))  # noqa: B023
