"""`skerry migrate`: repeatable, refuses what it doesn't know, and makes the first admin once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from control import tokens
from control.clock import SystemClock
from control.storage import database, migrations
from control.storage.database import Database
from control.storage.migrations import SchemaError
from tests.support.services import is_cockroachdb

CLOCK = SystemClock()


@pytest.fixture
async def db(empty_database_url: str) -> AsyncIterator[Database]:
    found = await database.connect(empty_database_url)
    yield found
    await found.close()


async def execute(db: Database, sql: str, *values: Any) -> Any:
    return await db.transaction(lambda conn: conn.fetch(sql, *values))


async def test_it_applies_everything_once(db: Database) -> None:
    with pytest.raises(SchemaError, match="run `skerry migrate`"):
        await migrations.check(db)
    wanted = migrations.migrations(cockroachdb=await db.read(is_cockroachdb))
    assert await migrations.migrate(db, CLOCK) == [m.name for m in wanted]
    await migrations.check(db)
    assert await migrations.migrate(db, CLOCK) == []
    assert [row["name"] for row in await execute(db, "SELECT name FROM groups")] == ["default"]
    [row] = await execute(db, "SELECT epoch, generation FROM epochs CROSS JOIN generations")
    assert (row["epoch"], row["generation"]) == (0, 0)


async def test_it_goes_on_after_a_kill_between_any_two_statements(db: Database) -> None:
    [first, *_] = migrations.migrations(cockroachdb=False)
    for statement in first.statements[: len(first.statements) // 2]:
        await execute(db, statement)
    assert first.name in await migrations.migrate(db, CLOCK)
    await migrations.check(db)


async def test_another_text_of_a_file_is_refused(db: Database) -> None:
    await migrations.migrate(db, CLOCK)
    await execute(db, "UPDATE migrations SET checksum = 'x'")
    for refuse in (migrations.check(db), migrations.migrate(db, CLOCK)):
        with pytest.raises(SchemaError, match="another text"):
            await refuse


async def test_a_newer_schema_is_refused(db: Database) -> None:
    await migrations.migrate(db, CLOCK)
    await execute(db, "INSERT INTO migrations VALUES ('schema/9999_future.sql', 'x', $1)", CLOCK.now())
    for refuse in (migrations.check(db), migrations.migrate(db, CLOCK)):
        with pytest.raises(SchemaError, match="newer"):
            await refuse


async def test_the_first_admin_is_made_once_and_can_be_made_again(db: Database) -> None:
    await migrations.migrate(db, CLOCK)
    token = await migrations.make_admin(db, CLOCK)
    assert token is not None
    parsed = tokens.parse("operator", token)
    [row] = await execute(db, "SELECT id::text AS id, name, role, secret_hash FROM operators")
    assert parsed == (row["id"], row["secret_hash"])
    assert (row["name"], row["role"]) == ("admin", "admin")
    assert await migrations.make_admin(db, CLOCK) is None
    again = await migrations.make_admin(db, CLOCK, again=True)
    assert again is not None
    assert again != token
    [row] = await execute(db, "SELECT id::text AS id, secret_hash FROM operators")
    assert tokens.parse("operator", again) == (row["id"], row["secret_hash"])


async def test_what_cockroachdb_alone_knows_is_for_it_alone(db: Database) -> None:
    both = [m.name for m in migrations.migrations(cockroachdb=False)]
    names = [m.name for m in migrations.migrations(cockroachdb=True)]
    assert names[: len(both)] == both
    assert names[len(both) :]
    assert all(name.startswith("cockroachdb/") for name in names[len(both) :])
    assert await migrations.migrate(db, CLOCK) == (names if await db.read(is_cockroachdb) else both)
