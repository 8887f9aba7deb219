"""The metadata are restored from a backup while control runs on: it goes by what the database says now."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from control.sync import fleet_cache
from control.sync.fleet_cache import ReplicaMark
from tests.support import deploy
from tests.support.backups import RowBackup
from tests.support.control import module, until
from tests.support.replica import Replica, Site, deaf
from tests.support.services import ServerUrls

HOLD = 50.0
"""Seconds; a poll that isn't closed is held for 37 s at least."""


@pytest.fixture
async def connections(services: ServerUrls, database_url: str) -> AsyncIterator[tuple[Any, Any]]:
    """Two to the database, past the proxy that plays CockroachDB: rows are put back by what PostgreSQL alone has."""
    url = services.past_proxy(database_url, "rows are put back by what PostgreSQL alone has")
    made = await asyncpg.connect(url), await asyncpg.connect(url)
    yield made
    for each in made:
        await each.close()


@pytest.fixture
def connection(connections: tuple[Any, Any]) -> Any:
    return connections[0]


async def marked(live: Replica) -> None:
    """Wait until the replica has written its mark after all that it has read so far."""
    mark = live.services.fleet.mark
    count = mark.committed

    async def written() -> bool:
        return mark.committed >= count + 2

    await until(written)


async def operator(live: Replica, name: str, role: str = "read") -> str:
    return str((await deploy.ok(live, "POST", "/v1/operators", {"name": name, "role": role}))["token"])


@pytest.mark.parametrize("passed", [0, 100], ids=["its epoch is lower", "its epoch has passed the replica's"])
async def test_a_running_replica_goes_by_the_restored_rows(control_site: Site, connection: Any, passed: int) -> None:
    async with control_site.running(hold=HOLD) as live:
        for text in ("1", "2"):
            await deploy.push(live, "f", module(text))
        await deploy.release(live, functions={"f": 1})
        revoked, node = await operator(live, "revoked"), await live.join("one")
        held = await live.join("held")
        for each in (node, held):
            await each.sync()
        assert (await live.call("GET", "/v1/nodes", token=revoked)).status == 200
        backup = RowBackup(connection)
        await backup.take()

        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        made, joined = await operator(live, "made", "admin"), await live.join("two")
        await deploy.release(live, functions={"f": 2})
        for each in (node, held, joined):
            await each.sync()
            assert (await each.poll()).status == 204
        await live.services.access.write()
        assert (await live.call("GET", "/v1/nodes", token=revoked)).status == 401
        assert (await live.call("GET", "/v1/nodes", token=made)).status == 200
        poll = asyncio.create_task(held.ask(wait=HOLD))

        async def is_held() -> bool:
            return held.id in live.services.fleet.waiters

        await until(is_held)
        await marked(live)
        async with backup.putting_back():
            await connection.execute(f"UPDATE epochs SET epoch = epoch + {passed}")

        async def answered(status: int, token: str) -> bool:
            return (await live.call("GET", "/v1/nodes", token=token)).status == status

        async def is_known() -> bool:
            return (await joined.ask()).status == 200

        # Who may come in is as it was before the restore.
        await until(lambda: answered(401, revoked))
        await until(lambda: answered(200, made))
        await until(is_known)
        assert (await poll).status == 503, "the held poll was closed"
        # What it runs is told again, since the database has forgotten it, and it goes back to the release of then.
        [planned] = (await node.plan()).functions
        assert planned.version == 1
        await until(lambda: _answers(live, 200))


async def test_a_mark_that_is_written_before_it_is_read_hides_nothing(control_site: Site, connection: Any) -> None:
    # Nobody looks and nobody else writes meanwhile.
    async with control_site.running(clock=deaf()) as live:
        mark = ReplicaMark(live.services.databases.cache, live.services.clock)
        for _ in range(3):
            await mark.write()
        assert mark.committed == 3
        await connection.execute("UPDATE leases SET holder = '1' WHERE name = $1", mark.name)
        await mark.write()
        assert mark.committed == 3
        assert await connection.fetchval("SELECT holder FROM leases WHERE name = $1", mark.name) == "1"
        await connection.execute("DELETE FROM leases WHERE name = $1", mark.name)
        await mark.write()
        assert await connection.fetchval("SELECT holder FROM leases WHERE name = $1", mark.name) is None
        mark.committed = 0  # as once the restore was seen
        await mark.write()
        assert mark.committed == 6


async def test_nothing_is_answered_until_all_is_read_anew(
    control_site: Site, connections: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is in memory is refused for one reason alone.
    monkeypatch.setattr(fleet_cache, "STALE_AFTER", 600.0)
    connection, holder = connections
    async with control_site.running() as live:
        node = await live.join("one")
        assert (await node.poll()).status == 204
        backup = RowBackup(connection)
        await backup.take()
        await deploy.ok(live, "POST", "/v1/nodes/one/retry")
        assert (await node.poll()).status == 204
        async with holder.transaction():
            async with backup.putting_back():
                # With this table locked, a replica sees that the database was restored, but not who its operators are.
                lock = asyncio.create_task(holder.execute("LOCK TABLE operators IN ACCESS EXCLUSIVE MODE"))

                async def waits() -> Any:
                    return await connection.fetchval(
                        "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND pid = $1",
                        holder.get_server_pid(),
                    )

                await until(waits)
            await lock

            async def refused() -> bool:
                return (await node.ask()).status == 503

            # Not by whether it is ready: it may be told in that moment that the database doesn't answer in time.
            await until(refused)
            assert (await live.call("GET", "/v1/nodes")).status == 503
            await until(lambda: _answers(live, 503))
            assert (await node.ask()).status == 503
        await until(lambda: _answers(live, 200))
        assert (await node.poll()).status == 204
        assert (await live.call("GET", "/v1/nodes")).status == 200


async def _answers(live: Replica, status: int) -> bool:
    return (await live.call("GET", "/readyz", token="")).status == status
