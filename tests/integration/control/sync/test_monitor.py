"""What happens by the clock, which the test sets: states, warnings, retention, and who does it."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from control.storage import audit_log
from control.sync import monitor
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site


async def look(replica: Replica) -> Any:
    """Heartbeats written, one pass of the monitor; what operators then see of the node called one."""
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())
    return await replica.node("one")


async def test_a_node_that_never_polled_is_offline_after_75_seconds_and_overdue_after_300(control_site: Site) -> None:
    """To the second. What becomes of nodes that poll is in `tests/acceptance`: R1.4 and R5.2."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await replica.join("one")
        joined = (await look(replica))["state_since"]
        clock.advance(75)
        shown = await look(replica)
        assert (shown["state"], shown["state_since"]) == ("online", joined)
        clock.advance(1)
        shown = await look(replica)
        assert shown["state"] == "offline"
        since = shown["state_since"]
        assert since > joined
        clock.advance(224)
        shown = await look(replica)
        assert (shown["state_since"], shown["warnings"]) == (since, [])
        clock.advance(1)
        assert [warning["kind"] for warning in (await look(replica))["warnings"]] == ["overdue"]


async def test_many_nodes_at_once(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await seeds.nodes(replica, 600)
        clock.advance(301)
        for _ in range(2):
            await replica.services.monitor().look(clock.now())
        count = await replica.services.db.read(
            lambda conn: conn.fetchrow(
                "SELECT (SELECT count(*) FROM nodes WHERE state = 'offline'), (SELECT count(*) FROM warnings)"
            )
        )
        assert tuple(count) == (600, 600)


async def test_one_replica_at_a_time_and_another_when_it_ends(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        first, second = replica.services.monitor(), replica.services.monitor()
        assert await first.tick()
        assert not await second.tick()
        clock.advance(9)
        assert await first.tick()
        clock.advance(9)
        assert not await second.tick()
        clock.advance(1)  # the first one was killed, ten seconds ago
        assert await second.tick()
        assert not await first.tick()
        ending = asyncio.create_task(second.run())
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        assert await first.tick()


async def test_what_is_left_of_old_logs_goes_in_the_next_passes(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "RETENTION_FOR", 0.0)
    monkeypatch.setattr(monitor, "LIMIT", 2)
    clock = SetClock()
    async with control_site.running(clock=clock, log_retention=86400.0) as replica:
        for number in range(7):
            assert (await replica.call("POST", "/v1/groups", {"name": f"group-{number}"})).status == 201
            await replica.call("POST", "/v1/join-tokens", {})

        async def counts() -> tuple[int, int]:
            query = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM join_tokens)"
            found = await replica.services.db.read(lambda conn: conn.fetchrow(query))
            return found[0], found[1]

        audit, tokens = await counts()
        assert tokens == 7
        monkeypatch.setattr(audit_log, "ROWS_OF_SEAL", 2)
        passes = replica.services.monitor()
        assert await passes.seal(clock.now())
        clock.advance(timedelta(days=3).total_seconds())
        assert await passes.tick()
        # Some of each kind, so that none waits for another.
        assert await counts() == (audit - 2, tokens - 2)
        while await counts() != (0, 0):
            before = await counts()
            assert await passes.tick()
            assert await counts() < before


async def test_old_logs_go_and_open_syncs_stay(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock, sync_lease=1e8, log_retention=86400.0) as replica:
        node = await replica.join("one")
        other = await replica.join("other")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        open_sync = (await other.plan()).sync_id
        await replica.call("POST", "/v1/poll", {}, token="wrong")
        await replica.services.failures.flush()

        async def counts() -> dict[str, int]:
            tables = ("syncs", "audit", "auth_failures", "join_tokens", "idempotency")
            return {
                table: await replica.services.db.read(
                    lambda conn, table=table: conn.fetchval(f"SELECT count(*) FROM {table}")
                )
                for table in tables
            }

        key = {"idempotency-key": str(uuid4())}
        async with replica.session.post(
            replica.url + "/v1/groups",
            json={"name": "g"},
            headers={"authorization": f"Bearer {replica.admin}", **key},
        ) as answer:
            assert answer.status == 201
        await replica.services.monitor().seal(clock.now())
        before = await counts()
        assert before["syncs"] == 2
        assert all(before.values())
        await replica.services.monitor().retention(clock.now())
        assert await counts() == before
        clock.advance(timedelta(days=3).total_seconds())
        await replica.services.monitor().retention(clock.now())
        after = await counts()
        assert after == {"syncs": 1, "audit": 0, "auth_failures": 0, "join_tokens": 0, "idempotency": 0}
        (left,) = (await replica.call("GET", "/v1/syncs")).json()["items"]
        assert left["id"] == open_sync
