"""Copies of a metadata database, which take its place later: a restore from a dump."""

from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from tests.support.services import drop_database


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
            await conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        finally:
            await conn.close()


def _name(url: str) -> str:
    return urlsplit(url).path.strip("/")
