"""A metadata database that answers and can't write, or lets nobody in: 503 with the cause, and not ready."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from control.storage import readiness
from control.sync import monitor
from tests.support import seeds
from tests.support.control import until
from tests.support.deadlines import deadline, scaled
from tests.support.replica import UNASKED, Replica, Site
from tests.support.services import is_cockroachdb

SOON = 30.0


async def administer(url: str, *statements: str) -> None:
    """Run these beside control, on the server's own database, even where that is read-only or closed."""
    parts = urlsplit(url)
    connection = await asyncpg.connect(
        parts._replace(path="/postgres").geturl(), server_settings={"default_transaction_read_only": "off"}
    )
    try:
        if await is_cockroachdb(connection):
            pytest.skip("CockroachDB can't be set so")
        for statement in statements:
            await connection.execute(statement.format(name=parts.path.strip("/")))
    finally:
        await connection.close()


CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"


@asynccontextmanager
async def set_so(url: str, on: str, off: str) -> AsyncIterator[None]:
    """The database as the statement `on` makes it, for all connections, until the block ends."""
    await administer(url, on, CUT)
    try:
        yield
    finally:
        await administer(url, off, CUT)


async def ready(replica: Replica) -> str:
    """What isn't ready, or ''."""
    answer = await replica.call("GET", "/readyz", token="")
    return "" if answer.status == 200 else str(answer.json()["detail"])


async def well(replica: Replica) -> None:
    """Wait until it is ready: an answer doesn't wait long for the database and the store."""

    async def there() -> bool:
        return await ready(replica) == ""

    await until(there)


async def test_a_read_only_database(control_site: Site) -> None:
    async with control_site.running() as replica:
        (node,) = await seeds.nodes(replica, 1)
        assert (await node.poll()).status == 204
        await well(replica)
        async with (
            deadline(2 * SOON),
            set_so(
                control_site.settings.metadata_url,
                'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
                'ALTER DATABASE "{name}" RESET default_transaction_read_only',
            ),
        ):
            answer = await replica.call("POST", "/v1/groups", {"name": "other"})
            assert (answer.status, answer.json()["code"]) == (503, "database_read_only"), answer
            assert "read-only" in answer.json()["detail"]

            async def says_so() -> bool:
                return "takes no writes" in await ready(replica)

            await until(says_so)
            # What only reads is answered, and so is a node at its target.
            assert (await replica.call("GET", "/v1/nodes")).status == 200
            assert (await node.poll()).status == 204

        await well(replica)
        assert (await replica.call("POST", "/v1/groups", {"name": "other"})).status == 201


@pytest.mark.background(*UNASKED)
async def test_a_database_that_lets_nobody_in(control_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with control_site.running() as replica:
        await well(replica)
        caplog.clear()
        caplog.set_level(logging.INFO)
        async with (
            deadline(4 * SOON),
            set_so(
                control_site.settings.metadata_url,
                'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false',
                'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true',
            ),
        ):
            answers = await asyncio.gather(
                replica.call("POST", "/v1/groups", {"name": "other"}), replica.call("GET", "/v1/nodes")
            )
            for answer in answers:
                assert (answer.status, answer.json()["code"]) == (503, "database_unavailable"), answer
                assert "not currently accepting connections" in answer.json()["detail"]

            async def says_so() -> bool:
                return "not currently accepting connections" in await ready(replica)

            await until(says_so)
            # All at once: a minute later each would have another line.
            await asyncio.gather(*(replica.call("GET", "/v1/groups") for _ in range(20)))
        # However many failed: a line for each of those who noticed.
        lines = [
            r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "accepting" in r.getMessage()
        ]
        for who in ("skerry.database", "skerry.fleet", "skerry.presence", "skerry.monitor", "skerry.readiness"):
            of_it = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name == who]
            assert len(of_it) <= 2, (who, of_it)
        assert lines

        await well(replica)


FULL = (
    "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION"
    " 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
)


async def test_a_database_whose_disk_is_full(control_site: Site) -> None:
    """By triggers, since the disk isn't this test's alone: the server's error is what a full disk gives."""
    async with control_site.running() as replica:
        await well(replica)
        connection = await asyncpg.connect(control_site.settings.metadata_url)
        try:
            if await is_cockroachdb(connection):
                pytest.skip("CockroachDB has no such triggers")
            await connection.execute(FULL)
            for table in ("groups", "leases"):
                await connection.execute(
                    f"CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION disk_full()"
                )
        finally:
            await connection.close()
        answer = await replica.call("POST", "/v1/groups", {"name": "other"})
        assert (answer.status, answer.json()["code"]) == (503, "database_full")
        assert "No space left" in answer.json()["detail"]

        async def says_so() -> bool:
            return "disk of the metadata database is full" in await ready(replica)

        await until(says_so, scaled(readiness.KNOWN_FOR + SOON))
        assert (await replica.call("GET", "/v1/groups")).status == 200


async def test_what_readiness_writes_is_forgotten(control_site: Site) -> None:
    async with control_site.running() as replica:

        async def rows() -> int:
            found = await replica.services.db.read(lambda conn: conn.fetch("SELECT name FROM leases"))
            return len([row for row in found if row["name"].startswith("ready ")])

        await well(replica)
        assert await ready(replica) == ""
        assert await rows() == 1
        looking, now = replica.services.monitor(), replica.services.clock.now()
        await looking.retention(now)
        assert await rows() == 1
        await looking.retention(now + 2 * monitor.KEPT_LEASES)
        assert await rows() == 0
