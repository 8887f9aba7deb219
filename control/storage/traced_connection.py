"""The connection of a request that is traced: each statement is a span."""

from typing import TypeVar

from control import tracing
from control.storage.connection import Connection
from control.storage.queries import Rows, Value

R = TypeVar("R")


class TracedConnection:
    """Does what a `Connection` does, by the one that it is given."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def fetch(self, query: Rows[R], *args: object) -> list[R]:
        """Return all rows."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetch(query, *args)

    async def fetchrow(self, query: Rows[R], *args: object) -> R | None:
        """Return the first row, or None where there is none."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetchrow(query, *args)

    async def one(self, query: Rows[R], *args: object) -> R:
        """Return the row of a query that always has one."""
        with tracing.statement(query.name, query.text):
            return await self._conn.one(query, *args)

    async def fetchval(self, query: Value[R], *args: object) -> R:
        """Return the first row's value, or None where there is no row."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetchval(query, *args)

    async def column(self, query: Value[R], *args: object) -> list[R]:
        """Return the values of all rows."""
        with tracing.statement(query.name, query.text):
            return await self._conn.column(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement without rows, and return its tag. Its span is named by its first word."""
        with tracing.statement(query.split(None, 1)[0].upper(), query):
            return await self._conn.execute(query, *args)
