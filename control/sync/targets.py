"""Releases and schema changes as plans need them. A release is immutable, so it is read once."""

from collections.abc import Collection
from typing import Any

from control.storage import queries
from control.sync import plan

SQL = queries.load("poll")

KEPT = 256
"""Releases in memory."""


class Targets:
    """The releases that this replica has read."""

    def __init__(self) -> None:
        self._releases: dict[str, plan.Release] = {}

    async def releases(self, conn: Any, ids: Collection[str]) -> dict[str, plan.Release]:
        """The releases of these ids; those that don't exist are missing."""
        # What is known now, before the first wait: another transaction may make room meanwhile.
        found = {id: self._releases[id] for id in ids if id in self._releases}
        unknown = [id for id in ids if id not in found]
        if unknown:
            functions: dict[str, list[plan.TargetFunction]] = {}
            for release_id, *values in await conn.fetch(SQL["release_functions"], unknown):
                functions.setdefault(release_id, []).append(plan.TargetFunction(*values))
            for id, number, floor in await conn.fetch(SQL["releases"], unknown):
                found[id] = plan.Release(id, number, floor, tuple(functions.get(id, ())))
            if len(self._releases.keys() | found.keys()) > KEPT:
                self._releases.clear()
            self._releases.update(found)
        return found


async def revisions(conn: Any) -> plan.Revisions:
    """Every schema change, without its text."""
    return plan.by_number([plan.Revision(*row) for row in await conn.fetch(SQL["revisions"])])


async def texts(conn: Any, numbers: Collection[int]) -> dict[tuple[int, int], str]:
    """The SQL of the schema changes between the smallest and the largest of `numbers`, by number and revision."""
    if not numbers:
        return {}
    rows = await conn.fetch(SQL["texts"], min(numbers), max(numbers))
    return {(number, revision): sql for number, revision, sql in rows}
