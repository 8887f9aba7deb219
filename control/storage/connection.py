"""Connections to the metadata database: rows of declared types, and no suspended portals."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import asyncpg

from control import tracing
from control.storage.queries import Rows, Value

R = TypeVar("R")

LINES: ContextVar[list[tuple[int, str]] | None] = ContextVar("lines", default=None)
"""Level and text of each line to log when the current transaction is committed; None outside a transaction."""

log = logging.getLogger("skerry.control")


def log_at_commit(text: str, level: int = logging.INFO) -> None:
    """Log a line once the current transaction is committed, and not if it is rolled back.

    The text is logged as one line.
    """
    line = level, " ".join(text.split())
    lines = LINES.get()
    if lines is None:
        tell([line])
    else:
        lines.append(line)


@contextmanager
def lines_at_commit() -> Iterator[list[tuple[int, str]]]:
    """Collect the lines that `log_at_commit` is given in the block."""
    lines: list[tuple[int, str]] = []
    told = LINES.set(lines)
    try:
        yield lines
    finally:
        LINES.reset(told)


def tell(lines: list[tuple[int, str]], prefix: str = "") -> None:
    """Log the collected lines."""
    for level, text in lines:
        log.log(level, "%s%s", prefix, text)


class Connection(Protocol):
    """What a transaction's work may do with its connection."""

    async def fetch(self, query: Rows[R], *args: object) -> list[R]:
        """Return all rows."""

    async def fetchrow(self, query: Rows[R], *args: object) -> R | None:
        """Return the first row, or None if there is none."""

    async def one(self, query: Rows[R], *args: object) -> R:
        """Return the row of a query that always has one."""

    async def fetchval(self, query: Value[R], *args: object) -> R:
        """Return the first row's value, or None if there is no row."""

    async def column(self, query: Value[R], *args: object) -> list[R]:
        """Return the values of all rows."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement without rows, and return its tag: ``UPDATE 3``."""


class Transaction(Protocol):
    """A transaction of a pooled connection."""

    async def start(self) -> None:
        """BEGIN."""

    async def commit(self) -> None:
        """COMMIT."""

    async def rollback(self) -> None:
        """ROLLBACK."""


class PooledConnection(Connection, Protocol):
    """What the database does with a connection that it has taken from the pool."""

    def transaction(self, *, isolation: str, readonly: bool) -> Transaction:
        """Prepare a transaction, which isn't begun yet."""

    def is_closed(self) -> bool:
        """Return whether the connection has ended."""

    def terminate(self) -> None:
        """End the connection at once."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Run a statement without rows, within `timeout` seconds instead of the pool's limit."""


class AsyncpgConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """asyncpg's connection, with rows of the declared classes, that always fetches all rows.

    asyncpg's own `fetchrow` and `fetchval` request at most one row, after which the server keeps the rest ready (a
    suspended portal). CockroachDB then refuses every other statement of the transaction, even ROLLBACK. So a query of
    which only the first row is needed must say LIMIT 1. SQL given as text returns asyncpg's records.
    """

    __slots__ = ()

    async def fetch(
        self,
        query: Any,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109
        record_class: Any = None,
    ) -> list[Any]:
        """Return all rows."""
        if type(query) is Rows:
            return [query.row(*record) for record in await super().fetch(query.text, *args, timeout=timeout)]
        found: list[Any] = await super().fetch(query, *args, timeout=timeout, record_class=record_class)
        return found

    async def fetchrow(
        self,
        query: Any,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109
        record_class: Any = None,
    ) -> Any:
        """Return the first row, or None if there is none."""
        rows = await self.fetch(query, *args, timeout=timeout, record_class=record_class)
        return rows[0] if rows else None

    async def fetchval(
        self,
        query: Any,
        *args: Any,
        column: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Any:
        """Return the value of the first row's `column`, or None if there is no row."""
        text = query.text if type(query) is Value else query
        records = await super().fetch(text, *args, timeout=timeout)
        return records[0][column] if records else None

    async def one(self, query: Rows[R], *args: Any) -> R:
        """Return the row of a query that always has one. Raises: IndexError, when it has none."""
        rows: list[R] = await self.fetch(query, *args)
        return rows[0]

    async def column(self, query: Value[R], *args: Any) -> list[R]:
        """Return the values of all rows of a query that has one column."""
        return [record[0] for record in await super().fetch(query.text, *args)]


def is_gone(conn: PooledConnection) -> bool:
    """Return whether the connection has ended."""
    try:
        return bool(conn.is_closed())
    except asyncpg.InterfaceError:
        # The pool has taken it back because it was lost.
        return True


def terminate(conn: PooledConnection) -> None:
    """End the connection unless it has ended."""
    if not is_gone(conn):
        conn.terminate()


class TracedConnection:
    """The connection of a request that is traced: each statement is a span."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def fetch(self, query: Rows[R], *args: object) -> list[R]:
        """Return all rows."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetch(query, *args)

    async def fetchrow(self, query: Rows[R], *args: object) -> R | None:
        """Return the first row, or None if there is none."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetchrow(query, *args)

    async def one(self, query: Rows[R], *args: object) -> R:
        """Return the row of a query that always has one."""
        with tracing.statement(query.name, query.text):
            return await self._conn.one(query, *args)

    async def fetchval(self, query: Value[R], *args: object) -> R:
        """Return the first row's value, or None if there is no row."""
        with tracing.statement(query.name, query.text):
            return await self._conn.fetchval(query, *args)

    async def column(self, query: Value[R], *args: object) -> list[R]:
        """Return the values of all rows."""
        with tracing.statement(query.name, query.text):
            return await self._conn.column(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement without rows, and return its tag. Its span is named after its first word."""
        with tracing.statement(query.split(None, 1)[0].upper(), query):
            return await self._conn.execute(query, *args)
