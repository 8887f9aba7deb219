"""Copies of a metadata database, or of its rows, which take its place later: a restore from a dump."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from tests.support.deadlines import deadline
from tests.support.services import drop_database
from tests.support.spare_databases import APPLICATION


class Backups:
    """Copies of a database, which take its place later, as a dump does."""

    def __init__(self, maintenance_url: str, url: str) -> None:
        self._maintenance_url = maintenance_url
        self._url = url
        self.copies: list[str] = []

    async def take(self) -> str:
        """Copy the database as it is now, and return the copy's name, for `restore`; the test drops the copies."""
        name = f"test_{uuid4().hex}"
        await self._copy(_name(self._url), name)
        self.copies.append(urlunsplit(urlsplit(self._url)._replace(path=f"/{name}")))
        return name

    async def restore(self, backup: str) -> None:
        """Replace the database with a copy of this backup."""
        await drop_database(self._maintenance_url, self._url)
        await self._copy(backup, _name(self._url))

    async def _copy(self, template: str, name: str) -> None:
        conn = await asyncpg.connect(self._maintenance_url)
        try:
            # A database that is copied has no connection to it.
            await conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE datname = '{template}' AND application_name = '{APPLICATION}'"
            )
            await conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        finally:
            await conn.close()


class RowBackup:
    """The rows of all tables, copied, and put back in one transaction while control runs: none of its connections
    breaks."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's own, of a superuser of PostgreSQL."""
        self._connection = connection
        self._tables: list[str] = []

    async def take(self) -> None:
        """Copy all rows as they are now."""
        rows = await self._connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        self._tables = [row["tablename"] for row in rows]
        async with self._connection.transaction(isolation="repeatable_read"):
            await self._connection.execute("DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept")
            for table in self._tables:
                await self._connection.execute(f"CREATE TABLE kept.{table} AS TABLE public.{table}")

    @asynccontextmanager
    async def putting_back(self) -> AsyncIterator[None]:
        """Have the copied rows and no others; COMMIT is at the end of the block."""
        async with self._connection.transaction():
            # Constraints between tables don't have to hold between two of these statements.
            await self._connection.execute("SET LOCAL session_replication_role = replica")
            await self._lock()
            for table in self._tables:
                await self._connection.execute(f"DELETE FROM {table}; INSERT INTO {table} TABLE kept.{table}")
            yield

    async def _lock(self) -> None:
        """Have all tables alone, also where control's transactions, which take them in another order, are in the way.

        A savepoint's end gives up the tables that an attempt had when it met one of those.
        """
        statement = f"LOCK TABLE {', '.join(self._tables)} IN ACCESS EXCLUSIVE MODE"
        async with deadline(60):
            while True:
                with suppress(asyncpg.DeadlockDetectedError):
                    async with self._connection.transaction():
                        await self._connection.execute(statement)
                    return


def _name(url: str) -> str:
    return urlsplit(url).path.strip("/")
