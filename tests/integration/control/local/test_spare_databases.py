"""A test's database is given again with its template's rows alone, and not at all where more than rows was changed."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support import spare_databases
from tests.support.services import ServerUrls, drop_database

CHANGES = {
    "a table": "CREATE TABLE left_here (id INT PRIMARY KEY)",
    "a table less": "DROP TABLE idempotency",
    "a column": "ALTER TABLE nodes ADD COLUMN left_here INT",
    "a default": "ALTER TABLE groups ALTER COLUMN name SET DEFAULT 'left'",
    "a constraint": "ALTER TABLE groups ADD CHECK (name <> 'left')",
    "a constraint less": "ALTER TABLE nodes DROP CONSTRAINT nodes_name_key",
    "an index": "CREATE INDEX left_here ON nodes (state_since)",
    "an index less": "DROP INDEX nodes_by_group",
    "a function": "CREATE FUNCTION left_here() RETURNS INT LANGUAGE SQL RETURN 1",
    "a trigger that is off": "ALTER TABLE nodes DISABLE TRIGGER ALL",
    "a view": "CREATE VIEW left_here AS SELECT 1",
    "a schema": "CREATE SCHEMA left_here",
    "a sequence": "CREATE SEQUENCE left_here; SELECT nextval('left_here')",
    "a right": "GRANT SELECT ON nodes TO PUBLIC",
    "statistics": "ANALYZE groups",
    "a setting": "ALTER DATABASE {name} SET default_transaction_read_only = on",
    "nobody may come in": "ALTER DATABASE {name} ALLOW_CONNECTIONS false",
    "many pages": f"INSERT INTO groups (name, created_at) SELECT 'a' || i, now() FROM generate_series(1, {2**11}) i",
}


@pytest.fixture
async def given(services: ServerUrls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """Two databases, of which the first would be given again, and whatever else the test adds; dropped at its end."""
    services.past_proxy(services.metadata_url, "copies of a database are PostgreSQL's")
    monkeypatch.setattr(spare_databases, "_spares", {})
    made = [await services.fresh_database() for _ in range(2)]
    yield made
    maintenance = await asyncpg.connect(services.postgresql_url)
    there = {row["datname"] for row in await maintenance.fetch("SELECT datname FROM pg_database")}
    await maintenance.close()
    for url in set(made):
        if name(url) in there:
            await drop_database(services.metadata_url, url)


def name(url: str) -> str:
    return urlsplit(url).path.strip("/")


async def to(services: ServerUrls, url: str) -> Any:
    return await asyncpg.connect(services.past_proxy(url, ""))


async def rows(services: ServerUrls, url: str) -> set[str]:
    """All rows of all tables, as text."""
    connection = await to(services, url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = " UNION ALL ".join(f"SELECT '{table} ' || t::text FROM {table} AS t" for (table,) in tables)
        return {row for (row,) in await connection.fetch(found)}
    finally:
        await connection.close()


async def next_one(services: ServerUrls, given: list[str]) -> str:
    """Give both back, and return what the next test would get."""
    for url in given[:2]:
        await services.give_back(url)
    given.append(await services.fresh_database())
    return given[-1]


async def test_one_is_given_again_with_the_rows_of_the_template_alone(services: ServerUrls, given: list[str]) -> None:
    fresh = await rows(services, given[1])
    assert any(row.startswith("migrations ") for row in fresh)
    assert any(row.startswith("operators ") for row in fresh)
    connection = await to(services, given[0])
    await connection.execute("UPDATE migrations SET checksum = 'changed'")
    await connection.execute("DELETE FROM operators")
    await connection.execute("INSERT INTO groups (name, created_at) VALUES ('left', now())")
    await connection.execute(
        "INSERT INTO nodes (name, group_id, state, state_since, joined_at)"
        " SELECT 'left', id, 'online', now(), now() FROM groups"
        " WHERE name = 'left'"
    )
    await connection.execute("CREATE TABLE gone_again (id INT); DROP TABLE gone_again")
    await connection.close()
    assert await rows(services, given[0]) != fresh
    assert await next_one(services, given) == given[0]
    assert await rows(services, given[0]) == fresh


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_one_that_is_not_as_it_was_is_removed(services: ServerUrls, given: list[str], change: str) -> None:
    fresh = await rows(services, given[1])
    connection = await to(services, given[0])
    maintenance = await asyncpg.connect(services.postgresql_url)
    try:
        # A database's own settings can't be changed for itself alone.
        await (maintenance if "{name}" in change else connection).execute(change.format(name=name(given[0])))
        await connection.close()
        other = await next_one(services, given)
        assert other not in given[:2]
        there = {row["datname"] for row in await maintenance.fetch("SELECT datname FROM pg_database")}
        assert name(given[0]) not in there
        assert name(given[1]) in there
    finally:
        await maintenance.close()
    assert await rows(services, other) == fresh


async def test_one_that_somebody_is_connected_to_is_taken_from_them(services: ServerUrls, given: list[str]) -> None:
    connection = await to(services, given[0])
    assert await next_one(services, given) not in given[:2]
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        await connection.execute("SELECT 1")


async def test_one_that_a_test_has_dropped_is_not_given_again(services: ServerUrls, given: list[str]) -> None:
    await drop_database(services.metadata_url, given[0])
    assert await next_one(services, given) not in given[:2]


async def test_the_last_one_rests(services: ServerUrls, given: list[str]) -> None:
    await services.give_back(given[0])
    given.append(await services.fresh_database())
    assert given[2] not in given[:2]
