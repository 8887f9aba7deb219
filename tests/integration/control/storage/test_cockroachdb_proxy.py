"""The proxy that stands for CockroachDB refuses what CockroachDB refuses, and Skerry's connections never ask for it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from control.clock import SystemClock
from control.storage import database, migrations, queries
from control.storage.connection import AsyncpgConnection
from tests.support import cockroachdb, cockroachdb_rules, every_statement
from tests.support.cockroachdb import Proxy


@pytest.fixture
async def through(empty_database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before an empty database, and the URL through it."""
    async with cockroachdb.proxied(empty_database_url) as found:
        yield found


@pytest.fixture
async def plain(through: tuple[Proxy, str]) -> AsyncIterator[asyncpg.Connection]:
    """asyncpg's own connection, with a table of three rows."""
    connection = await asyncpg.connect(through[1])
    await connection.execute("CREATE TABLE numbers (n INT8 PRIMARY KEY)")
    await connection.execute("INSERT INTO numbers VALUES (1), (2), (3)")
    yield connection
    await connection.close()


async def test_asyncpg_takes_it_for_cockroachdb(plain: asyncpg.Connection) -> None:
    assert plain.get_settings().crdb_version == cockroachdb_rules.VERSION
    assert plain.get_server_version()[0] == 13
    assert not plain._server_caps.sql_reset
    assert await plain.fetchval("SELECT version()") == cockroachdb_rules.VERSION


async def test_the_process_notes_what_was_carried_out_and_not_what_was_prepared(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(every_statement.FILE, str(tmp_path / "statements"))
    database_sql = queries.load("database")
    with cockroachdb.process(empty_database_url) as url:
        connection = await asyncpg.connect(url)
        await connection.prepare(database_sql["no_time_limit"])
        await connection.execute(database_sql["usual_time_limit"])
        await (await connection.prepare(queries.load("migrate")["server"])).fetch()
        await connection.close()
    assert (tmp_path / "statements").read_text().splitlines() == ["database.usual_time_limit", "migrate.server"]


async def first(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval("SELECT n FROM numbers ORDER BY n")
    return found


@pytest.mark.parametrize("how", ["a prepared statement", "a new one", "text alone", "a cursor"])
async def test_any_statement_after_a_suspended_portal_is_refused(plain: asyncpg.Connection, how: str) -> None:
    prepared = await plain.prepare("SELECT count(*) FROM numbers WHERE n > $1")
    transaction = plain.transaction()
    await transaction.start()
    assert await first(plain) == 1

    async def another() -> None:
        if how == "a prepared statement":
            await prepared.fetch(0)
        elif how == "a new one":
            await plain.fetch("SELECT n FROM numbers")
        elif how == "text alone":
            await plain.execute("INSERT INTO numbers VALUES (4)")
        else:
            async for _ in plain.cursor("SELECT n FROM numbers"):
                pass

    with pytest.raises(asyncpg.FeatureNotSupportedError, match="multiple active portals"):
        await another()
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await plain.fetch("SELECT 1")
    await transaction.rollback()
    assert await plain.fetch("SELECT count(*) FROM numbers") == [(3,)]


async def test_rollback_is_refused_too_and_takes_the_place_of_the_error(plain: asyncpg.Connection) -> None:
    async def failing() -> None:
        async with plain.transaction():
            await first(plain)
            raise ValueError("ours")

    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await failing()
    await plain.execute("ROLLBACK")
    assert await first(plain) == 1


async def test_commit_and_the_end_of_an_implicit_transaction_are_not_refused(plain: asyncpg.Connection) -> None:
    async with plain.transaction():
        await plain.execute("INSERT INTO numbers VALUES (4)")
        assert await first(plain) == 1
    assert await first(plain) == 1
    assert await first(plain) == 1
    assert await plain.fetch("SELECT count(*) FROM numbers") == [(4,)]


async def test_skerrys_connections_leave_no_portal_suspended(through: tuple[Proxy, str]) -> None:
    """Fails where `Connection` asks for one row as asyncpg does."""
    connection = await asyncpg.connect(through[1], connection_class=AsyncpgConnection)
    try:
        await connection.execute("CREATE TABLE numbers (n INT8 PRIMARY KEY)")
        await connection.execute("INSERT INTO numbers VALUES (1), (2), (3)")

        async def failing() -> None:
            async with connection.transaction():
                assert await first(connection) == 1
                row = await connection.fetchrow("SELECT n, n + 1 AS next FROM numbers WHERE n > $1 ORDER BY n", 1)
                assert row is not None
                assert dict(row) == {"n": 2, "next": 3}
                assert await connection.fetchval("SELECT n, n + 1 FROM numbers ORDER BY n", column=1) == 2
                assert await connection.fetchrow("SELECT n FROM numbers WHERE n > 9") is None
                assert await connection.fetchval("SELECT n FROM numbers WHERE n > 9") is None
                raise ValueError("ours")

        with pytest.raises(ValueError, match="ours"):
            await failing()
    finally:
        await connection.close()


async def test_the_schema_is_made_and_an_operator_is(through: tuple[Proxy, str]) -> None:
    """Fails where a portal is left suspended: the first operator takes several rows in one transaction."""
    db = await database.connect(through[1])
    try:
        wanted = [m.name for m in migrations.migrations(cockroachdb=True)]
        assert await migrations.migrate(db, SystemClock()) == wanted
        assert await migrations.migrate(db, SystemClock()) == []
        await migrations.check(db)
        assert await migrations.make_admin(db, SystemClock()) is not None
    finally:
        await db.close()


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("CREATE DATABASE other TEMPLATE numbers", "0A000"),
        ("DROP DATABASE other WITH (FORCE)", "42601"),
        ("ALTER SYSTEM SET fsync = off", "42601"),
        ("EXPLAIN (FORMAT JSON) SELECT 1", "42601"),
        ("VACUUM numbers", "42601"),
        ("LISTEN something", "0A000"),
        ("SELECT pg_terminate_backend(1)", "42883"),
        ("SELECT ctid FROM numbers", "42703"),
        ("SET jit = off", "42704"),
        ("ALTER TABLE numbers SET (ttl_nonsense = 1)", "22023"),
        ("ALTER TABLE numbers CONFIGURE ZONE USING gc.ttl = 1", "22023"),
        ("ALTER TABLE missing CONFIGURE ZONE USING gc.ttlseconds = 1", "42P01"),
    ],
)
async def test_what_cockroachdb_refuses(plain: asyncpg.Connection, statement: str, code: str) -> None:
    for run in (plain.execute, plain.fetch):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await run(statement)
        assert refused.value.sqlstate == code
    async with plain.transaction():
        await plain.execute("INSERT INTO numbers VALUES (4)")
    assert await plain.fetch("SELECT 'VACUUM; ctid', count(*) FROM numbers") == [("VACUUM; ctid", 4)]


async def test_what_postgresql_lacks(plain: asyncpg.Connection) -> None:
    statements = [
        "ALTER TABLE numbers SET (ttl_expiration_expression = 'now() - INTERVAL ''1 day''', ttl_job_cron = '@daily')",
        "CREATE INDEX IF NOT EXISTS by_n ON numbers (n) USING HASH",
        "ALTER TABLE numbers ALTER PRIMARY KEY USING COLUMNS (n) USING HASH",
    ]
    for statement in [*statements, "ALTER TABLE numbers CONFIGURE ZONE USING gc.ttlseconds = 600"]:
        await plain.execute(statement)
    shown = await plain.fetchrow("SHOW CREATE TABLE numbers")
    assert shown["table_name"] == "numbers"
    assert [line for line in shown["create_statement"].split("\n") if line] == statements
    zone = await plain.fetchrow("SHOW ZONE CONFIGURATION FROM TABLE numbers")
    assert dict(zone) == {
        "target": "TABLE numbers",
        "raw_config_sql": "ALTER TABLE numbers CONFIGURE ZONE USING gc.ttlseconds = 600",
    }
    await plain.execute("SET default_int_size = 4")
    assert await plain.fetchval("SHOW default_int_size") == "4"


async def test_parameters_that_postgresql_lacks_may_be_in_the_url(through: tuple[Proxy, str]) -> None:
    connection = await asyncpg.connect(f"{through[1]}?default_int_size=8&cockroachdb_errors=0")
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_errors_at_a_rate_come_at_commit_and_at_statements(through: tuple[Proxy, str], plain: Any) -> None:
    proxy, _ = through
    proxy.errors.rate = 0.5
    told: dict[str, int] = {}
    saved: dict[str, set[bool]] = {}
    for n in range(100, 160):
        code = ""
        try:
            async with plain.transaction():
                await plain.execute("INSERT INTO numbers VALUES ($1)", n)
                code = "at COMMIT "
        except asyncpg.PostgresError as error:
            code += error.sqlstate
        told[code] = told.get(code, 0) + 1
        assert not plain.is_in_transaction()
        proxy.errors.rate = 0.0
        saved.setdefault(code, set()).add(bool(await plain.fetch("SELECT 1 FROM numbers WHERE n = $1", n)))
        proxy.errors.rate = 0.5
    assert saved == {
        "at COMMIT ": {True},
        "at COMMIT 40001": {False},
        "at COMMIT 40003": {False, True},
        "40003": {False},
    }, told


@pytest.mark.parametrize("cut_at", range(1, 12))
async def test_a_connection_is_cut_at_a_message(through: tuple[Proxy, str], plain: Any, cut_at: int) -> None:
    proxy, _ = through
    proxy.messages, proxy.cut_at = 0, cut_at

    async def fetch_again_and_again() -> None:
        for _ in range(4):
            await plain.fetch("SELECT n FROM numbers")

    with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
        await fetch_again_and_again()
    assert proxy.cuts == 1
