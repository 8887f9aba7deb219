"""Transactions on a real server: conflicts, cut connections, and what isn't there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from control.problems import ProblemError
from control.settings import ControlSettingsError
from control.storage import database
from control.storage.database import Database, Locked, UnknownCommit
from tests.support.cutting import Cutter, cutting
from tests.support.deadlines import deadline, scaled
from tests.support.locks import locked
from tests.support.services import is_cockroachdb


@pytest.fixture
async def table(database_url: str) -> AsyncIterator[str]:
    """A database with the table counters, of which row 1 counts 0."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("CREATE TABLE counters (id int8 PRIMARY KEY, value int8 NOT NULL)")
    await conn.execute("INSERT INTO counters VALUES (1, 0)")
    await conn.close()
    yield database_url
    # So that the next test can have the database.
    conn = await asyncpg.connect(database_url)
    await conn.execute("DROP TABLE counters")
    await conn.close()


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

        async def counted() -> int:
            while True:
                try:
                    return await db.transaction(count)
                except ProblemError as problem:
                    # By chance one may be in the others' way each time that it tries: nothing was changed then.
                    if problem.code != "database_busy":
                        raise

        async def writer() -> list[int]:
            return [await counted() for _ in range(10)]

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
    # The one that is refused may meet the other's COMMIT once more.
    assert min(runs.values()) == 1
    assert max(runs.values()) > 1


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


@pytest.mark.never_retry
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
    db = await database.connect(table, statement_timeout=2.0)
    try:
        with pytest.raises(ProblemError) as slow:
            await db.read(lambda conn: conn.fetchval("SELECT pg_sleep(30)"))
        assert slow.value.code == "database_unavailable"
        assert await value(db) == 0
    finally:
        await db.close()


async def test_a_change_of_the_schema_may_take_longer_than_a_statement(table: str) -> None:
    db = await database.connect(table, connections=1, statement_timeout=1.0)
    try:
        await db.alone("SELECT pg_sleep(3)")
        # The limit holds again for what comes after it on the same connection, also after a failure.
        with pytest.raises(asyncpg.UndefinedTableError):
            await db.alone("ALTER TABLE nothing ADD COLUMN x INT8")
        with pytest.raises(ProblemError) as slow:
            await db.read(lambda conn: conn.fetchval("SELECT pg_sleep(30)"))
        assert slow.value.code == "database_unavailable"
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
        async with asyncio.timeout(25):
            assert await value(db) == 0
    finally:
        await db.close()


async def test_a_cancelled_transaction_does_not_wait_for_a_server_that_stands(cutter: Cutter) -> None:
    # Were a server that stands waited for, it would be for a quarter of an hour.
    db = await database.connect(cutter.url, connections=1, statement_timeout=1000.0)
    begun = asyncio.Event()

    async def work(conn: Any) -> None:
        await count(conn)
        cutter.frozen = True
        begun.set()
        await conn.fetchval("SELECT value FROM counters WHERE id = 1")

    try:
        task = asyncio.create_task(db.transaction(work))
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=scaled(30))
        assert task.cancelled()
        cutter.frozen = False
        assert await value(db) == 0
    finally:
        await db.close()


async def test_a_cancelled_transaction_keeps_its_connection(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients leave often, and a new connection takes long."""
    # A busy machine may need longer for the ROLLBACK than it gets.
    monkeypatch.setattr(database, "CANCEL_TIMEOUT", 60.0)
    db = await database.connect(table, connections=1)

    async def connection() -> int:
        found: int = await db.read(lambda conn: conn.fetchval("SELECT pg_backend_pid()"))
        return found

    try:
        conn = await asyncpg.connect(table)
        like_cockroachdb = await is_cockroachdb(conn)
        await conn.close()
        if like_cockroachdb:
            pytest.skip("CockroachDB has no pg_backend_pid")
        before, begun = await connection(), asyncio.Event()

        async def work(conn: Any) -> None:
            await count(conn)
            begun.set()
            await conn.fetchval("SELECT pg_sleep(30)")

        task = asyncio.create_task(db.transaction(work))
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await connection() == before
        assert await value(db) == 0
    finally:
        await db.close()


async def test_a_transaction_that_the_server_ended_is_run_again(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose process was stopped for too long: the first run of the work stands still."""
    monkeypatch.setattr(database, "IDLE_TIMEOUT", 4.0)
    db = await database.connect(table, connections=1)
    watch = await asyncpg.connect(table)
    runs = 0

    async def work(conn: Any) -> int:
        nonlocal runs
        runs += 1
        counted = await count(conn)
        if runs == 1:
            pid = await conn.fetchval("SELECT pg_backend_pid()")
            async with deadline(20):
                while await watch.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
                    await asyncio.sleep(0.05)
        await conn.execute("SELECT 1")
        return counted

    try:
        if await is_cockroachdb(watch):
            pytest.skip("CockroachDB has no pg_backend_pid")
        assert await db.transaction(work) == 1
        # More than once again, where this process, too, was stopped for so long.
        assert runs > 1
        assert await value(db) == 1
    finally:
        await watch.close()
        await db.close()


async def test_a_change_of_the_schema_waits_for_a_locked_table(db: Database, table: str) -> None:
    async with locked(table, "UPDATE counters SET value = value"):
        change = asyncio.create_task(db.alone("ALTER TABLE counters ADD COLUMN IF NOT EXISTS more int8"))
        await asyncio.sleep(database.LOCK_TIMEOUT + 0.5)
        assert not change.done()
    async with deadline(30):
        await change


async def test_a_locked_row_is_said_to_be_and_not_waited_for_again(table: str) -> None:
    db = await database.connect(table, lock_timeout=0.1)
    runs = 0

    async def work(conn: Any) -> int:
        nonlocal runs
        runs += 1
        return await count(conn)

    try:
        async with locked(table, "UPDATE counters SET value = value"):
            with pytest.raises(Locked, match="a row of counters is locked by another transaction"):
                await db.transaction(work)
            # Who only reads doesn't wait.
            assert await value(db) == 0
        assert runs == 1
        assert await db.transaction(work) == 1
    finally:
        await db.close()


async def test_a_mistake_of_ours_is_not_taken_for_a_lost_connection(db: Database) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        await db.read(lambda conn: conn.fetchval("SELECT $1::int8", 1, 2))
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.read(lambda conn: conn.fetchval("SELECT 1 FROM nowhere"))


async def test_plain_connections_leave_this_machine_never() -> None:
    with pytest.raises(ControlSettingsError, match="encrypted"):
        await database.connect("postgresql://u:p@192.0.2.1/x")
    with pytest.raises(ProblemError) as away:
        await database.connect("postgresql://u:p@127.0.0.1:9/x")
    assert away.value.code == "database_unavailable"


async def test_jsonb_goes_in_and_out_as_values(db: Database) -> None:
    given = {"a": [1, 2.5, None, "ü\u2028"], "b": {"c": True}}
    assert await db.read(lambda conn: conn.fetchval("SELECT $1::jsonb", given)) == given
