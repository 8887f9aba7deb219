"""Transactions on a real server: conflicts, cut connections, and what isn't there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from control import database
from control.database import Database, UnknownCommit
from control.problems import ProblemError
from control.settings import SettingsError
from tests.support.cutting import Cutter, cutting


@pytest.fixture
async def table(database_url: str) -> str:
    """A database with the table counters, of which row 1 counts 0."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("CREATE TABLE counters (id int8 PRIMARY KEY, value int8 NOT NULL)")
    await conn.execute("INSERT INTO counters VALUES (1, 0)")
    await conn.close()
    return database_url


@pytest.fixture
async def db(table: str) -> AsyncIterator[Database]:
    found = await database.connect(table, connections=12)
    yield found
    await found.close()


@pytest.fixture
async def cutter(table: str) -> AsyncIterator[Cutter]:
    async with cutting(table) as found:
        yield found


async def count(conn: Any) -> int:
    """Add one, by reading and writing, as a transaction that isn't serializable would get wrong."""
    value: int = await conn.fetchval("SELECT value FROM counters WHERE id = 1")
    await conn.execute("UPDATE counters SET value = $1 WHERE id = 1", value + 1)
    return value + 1


async def value(db: Database) -> int:
    found: int = await db.read(lambda conn: conn.fetchval("SELECT value FROM counters WHERE id = 1"))
    return found


async def test_many_writers_of_one_row_lose_nothing(table: str) -> None:
    retries = 0

    def retried() -> None:
        nonlocal retries
        retries += 1

    db = await database.connect(table, connections=12, on_retry=retried)
    try:

        async def writer() -> list[int]:
            return [await db.transaction(count) for _ in range(10)]

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(writer()) for _ in range(8)]
        got = sorted(number for task in writers for number in task.result())
        assert got == list(range(1, 81))
        assert await value(db) == 80
        assert retries > 0, "there was no conflict: this test shows nothing"
    finally:
        await db.close()


async def test_write_skew_is_refused_by_the_database_and_retried(db: Database) -> None:
    """Two transactions that read what the other one writes: only SERIALIZABLE finds it."""
    await db.transaction(lambda conn: conn.execute("INSERT INTO counters VALUES (2, 0)"))
    met = asyncio.Barrier(2)
    runs = {1: 0, 2: 0}

    def work(mine: int, other: int) -> Any:
        async def run(conn: Any) -> None:
            runs[mine] += 1
            seen = await conn.fetchval("SELECT value FROM counters WHERE id = $1", other)
            if runs[mine] == 1:
                await met.wait()
            if seen == 0:
                await conn.execute("UPDATE counters SET value = 1 WHERE id = $1", mine)

        return run

    await asyncio.gather(db.transaction(work(1, 2)), db.transaction(work(2, 1)))
    total = await db.read(lambda conn: conn.fetchval("SELECT sum(value) FROM counters"))
    assert total == 1
    assert sorted(runs.values()) == [1, 2]


async def test_a_conflict_without_end_becomes_busy(db: Database) -> None:
    runs = 0

    async def work(conn: Any) -> None:
        nonlocal runs
        runs += 1
        raise asyncpg.SerializationError("as ever")

    with pytest.raises(ProblemError) as refused:
        await db.transaction(work)
    assert refused.value.code == "database_busy"
    assert refused.value.retry_after
    assert runs == database.ATTEMPTS


async def test_an_error_of_the_work_undoes_it_and_is_not_retried(db: Database) -> None:
    runs = 0

    async def work(conn: Any) -> None:
        nonlocal runs
        runs += 1
        await count(conn)
        raise ProblemError("name_taken", "no")

    with pytest.raises(ProblemError, match="name_taken"):
        await db.transaction(work)
    assert (runs, await value(db)) == (1, 0)


async def test_two_who_insert_one_key_both_end_with_a_reason(db: Database) -> None:
    met = asyncio.Barrier(2)
    first = True

    async def work(conn: Any) -> str:
        nonlocal first
        if await conn.fetchval("SELECT 1 FROM counters WHERE id = 7"):
            return "taken"
        if first:
            await met.wait()
            first = False
        await conn.execute("INSERT INTO counters VALUES (7, 0)")
        return "made"

    assert sorted(await asyncio.gather(db.transaction(work), db.transaction(work))) == ["made", "taken"]


@pytest.mark.parametrize("saved", [False, True])
async def test_a_connection_cut_at_commit_is_unknown(cutter: Cutter, saved: bool) -> None:
    db = await database.connect(cutter.url)
    try:
        cutter.before, cutter.after = (0, 1) if saved else (1, 0)
        with pytest.raises(UnknownCommit) as unknown:
            await db.transaction(count)
        assert unknown.value.code == "commit_unknown"
        assert cutter.cuts == 1
        # And the pool goes on.
        assert await value(db) == (1 if saved else 0)
        assert await db.transaction(count) == (2 if saved else 1)
    finally:
        await db.close()


async def test_a_connection_lost_before_commit_is_run_again_on_another(cutter: Cutter) -> None:
    db = await database.connect(cutter.url)
    runs = 0

    async def work(conn: Any) -> int:
        nonlocal runs
        runs += 1
        found = await count(conn)
        if runs == 1:
            cutter.cut_all()
        await conn.fetchval("SELECT 1")
        return found

    try:
        assert await db.transaction(work) == 1
        assert (runs, await value(db)) == (2, 1)
    finally:
        await db.close()


async def test_a_database_that_is_away_is_said_to_be(cutter: Cutter) -> None:
    db = await database.connect(cutter.url)
    try:
        cutter.refusing = True
        cutter.cut_all()
        with pytest.raises(ProblemError) as away:
            await db.transaction(count)
        assert (away.value.code, away.value.status) == ("database_unavailable", 503)
        cutter.refusing = False
        assert await db.transaction(count) == 1
    finally:
        await db.close()


async def test_a_statement_that_takes_too_long_is_given_up(table: str) -> None:
    db = await database.connect(table, statement_timeout=0.2)
    try:
        with pytest.raises(ProblemError) as slow:
            await db.read(lambda conn: conn.fetchval("SELECT pg_sleep(30)"))
        assert slow.value.code == "database_unavailable"
        assert await value(db) == 0
    finally:
        await db.close()


async def test_a_cancelled_transaction_leaves_nothing_and_gives_its_connection_back(table: str) -> None:
    db = await database.connect(table, connections=1)

    async def work(conn: Any) -> None:
        await count(conn)
        await conn.fetchval("SELECT pg_sleep(30)")

    try:
        task = asyncio.create_task(db.transaction(work))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            assert await value(db) == 0
    finally:
        await db.close()


async def test_a_mistake_of_ours_is_not_taken_for_a_lost_connection(db: Database) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        await db.read(lambda conn: conn.fetchval("SELECT $1::int8", 1, 2))
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.read(lambda conn: conn.fetchval("SELECT 1 FROM nowhere"))


async def test_plain_connections_leave_this_machine_never() -> None:
    with pytest.raises(SettingsError, match="encrypted"):
        await database.connect("postgresql://u:p@192.0.2.1/x")
    with pytest.raises(ProblemError) as away:
        await database.connect("postgresql://u:p@127.0.0.1:9/x")
    assert away.value.code == "database_unavailable"


async def test_jsonb_goes_in_and_out_as_values(db: Database) -> None:
    given = {"a": [1, 2.5, None, "ü\u2028"], "b": {"c": True}}
    assert await db.read(lambda conn: conn.fetchval("SELECT $1::jsonb", given)) == given
