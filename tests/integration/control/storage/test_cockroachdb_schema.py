"""What the schema has on CockroachDB alone, as CockroachDB's own SHOW statements tell it, and how it plans."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from control.clock import SystemClock
from control.storage import database, migrations
from control.storage.database import Database
from tests.support import cockroachdb, cockroachdb_rules
from tests.support.services import LIKE_COCKROACHDB, is_cockroachdb


@pytest.fixture
async def url(empty_database_url: str) -> AsyncIterator[str]:
    """An empty database of CockroachDB, or of what behaves as it does."""
    connection = await asyncpg.connect(empty_database_url)
    real = await is_cockroachdb(connection) and not LIKE_COCKROACHDB
    await connection.close()
    if real:
        yield empty_database_url
        return
    async with cockroachdb.proxied(empty_database_url) as (_, through):
        yield through


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    """A migrated one."""
    found = await database.connect(url)
    await migrations.migrate(found, SystemClock())
    yield found
    await found.close()


@pytest.mark.parametrize("table", ["node_presence", "leases", "epochs", "generations"])
async def test_old_versions_of_what_is_written_again_and_again_go_soon(db: Database, table: str) -> None:
    rows = await db.read(lambda conn: conn.fetch(f"SHOW ZONE CONFIGURATION FROM TABLE {table}"))
    assert "gc.ttlseconds = 600" in rows[0]["raw_config_sql"]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("syncs", "(started_at, id)"),
        ("syncs", "(lease_until)"),
        ("audit", "(at, id)"),
        ("auth_failures", "(minute, address, reason)"),
    ],
)
async def test_keys_that_begin_with_a_time_are_spread(db: Database, table: str, key: str) -> None:
    made = (await db.read(lambda conn: conn.fetch(f"SHOW CREATE TABLE {table}")))[0]["create_statement"]
    plain = made.replace(" ASC", "")
    assert f"{key} USING HASH" in plain


async def test_retention_is_the_monitors_alone(db: Database) -> None:
    """Its time is a setting; the server's row TTL would be another truth about it."""
    for table in ("syncs", "auth_failures", "audit", "idempotency"):
        rows = await db.read(lambda conn, t=table: conn.fetch(f"SHOW CREATE TABLE {t}"))  # type: ignore[misc]
        assert "ttl" not in (rows[0]["create_statement"] or "")


async def test_the_schema_can_be_made_again_over_itself(url: str, db: Database) -> None:
    """Each statement may be repeated, as after a kill between two of them."""
    await db.transaction(lambda conn: conn.execute("DELETE FROM migrations WHERE name LIKE 'cockroachdb/%'"))
    names = [m.name for m in migrations.migrations(cockroachdb=True)]
    assert await migrations.migrate(db, SystemClock()) == [name for name in names if name.startswith("cockroachdb/")]
    await migrations.check(db)


async def test_every_statement_is_planned_with_its_values(db: Database) -> None:
    assert await db.read(lambda conn: conn.fetchval("SHOW plan_cache_mode")) == "force_custom_plan"


async def test_a_server_that_does_not_know_the_variable_is_served_all_the_same(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cockroachdb_rules, "UNKNOWN_VARIABLES", frozenset({"plan_cache_mode"}))
    cockroachdb_rules.translate.cache_clear()
    try:
        db = await database.connect(url)
        assert await db.read(lambda conn: conn.fetchval("SELECT 1")) == 1
        await db.close()
    finally:
        cockroachdb_rules.translate.cache_clear()


async def test_postgresql_plans_as_it_likes(empty_database_url: str) -> None:
    db = await database.connect(empty_database_url)
    try:
        if await db.read(is_cockroachdb):
            pytest.skip("the server is CockroachDB, or behaves as it does")
        assert await db.read(lambda conn: conn.fetchval("SHOW plan_cache_mode")) == "auto"
    finally:
        await db.close()
