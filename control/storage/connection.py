"""A connection to the metadata database that leaves no portal suspended."""

from typing import Any

import asyncpg


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """asyncpg's connection, but that one row is asked for as all rows are.

    asyncpg's own `fetchrow` and `fetchval` ask for one row at most, after which the server keeps the rest ready (a
    suspended portal). CockroachDB then refuses every other statement of the transaction, ROLLBACK too. So a query
    whose first row alone is wanted must say LIMIT 1.
    """

    __slots__ = ()

    async def fetchrow(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109
        record_class: Any = None,
    ) -> asyncpg.Record | None:
        """Return the first row, or None where there is none."""
        rows = await self.fetch(query, *args, timeout=timeout, record_class=record_class)
        return rows[0] if rows else None

    async def fetchval(
        self,
        query: str,
        *args: Any,
        column: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Any:
        """Return the value of the first row's `column`, or None where there is no row."""
        row = await self.fetchrow(query, *args, timeout=timeout)
        return None if row is None else row[column]
