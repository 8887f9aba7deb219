"""Releases and schema changes as plans need them. A release is immutable, so it is read once."""

from collections.abc import Collection
from typing import Any

from control import plan, queries

SQL = queries.load("poll")

KEPT = 256
"""Releases in memory."""


class Targets:
    """The releases that this replica has read."""

    def __init__(self) -> None:
        self._releases: dict[str, plan.Release] = {}

    async def releases(self, conn: Any, ids: Collection[str]) -> dict[str, plan.Release]:
        """The releases of these ids; those that don't exist are missing."""
        unknown = [id for id in ids if id not in self._releases]
        if unknown:
            if len(self._releases) + len(unknown) > KEPT:
                self._releases.clear()
                unknown = list(ids)
            functions: dict[str, list[plan.TargetFunction]] = {}
            for release_id, *values in await conn.fetch(SQL["release_functions"], unknown):
                functions.setdefault(release_id, []).append(plan.TargetFunction(*values))
            for id, number, floor in await conn.fetch(SQL["releases"], unknown):
                self._releases[id] = plan.Release(id, number, floor, tuple(functions.get(id, ())))
        return {id: self._releases[id] for id in ids if id in self._releases}


async def revisions(conn: Any) -> plan.Revisions:
    """Every schema change, without its text."""
    return plan.by_number([plan.Revision(*row) for row in await conn.fetch(SQL["revisions"])])


async def texts(conn: Any, numbers: Collection[int]) -> dict[tuple[int, int], str]:
    """The SQL of the schema changes between the smallest and the largest of `numbers`, by number and revision."""
    if not numbers:
        return {}
    rows = await conn.fetch(SQL["texts"], min(numbers), max(numbers))
    return {(number, revision): sql for number, revision, sql in rows}
