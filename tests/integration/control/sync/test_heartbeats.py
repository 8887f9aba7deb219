"""Heartbeats: in batches, apart from syncs; and a poll at target leaves the database alone."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from control.problems import ProblemError
from control.sync import fleet_cache, heartbeats
from control.sync.heartbeats import Heartbeats
from control.telemetry.watching import relay
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Replica, Site


class Statements:
    """What a replica's connections are asked to do, as asyncpg tells it."""

    def __init__(self, replica: Replica) -> None:
        self._pools = [database._pool for database in (replica.services.db, replica.services.databases.background)]
        self.texts: list[str] = []

    async def __aenter__(self) -> "Statements":
        await self._each(lambda connection: connection.add_query_logger(self._log))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._each(lambda connection: connection.remove_query_logger(self._log))

    async def _each(self, do: Callable[[Any], None]) -> None:
        for pool in self._pools:
            connections = [await pool.acquire() for _ in range(pool.get_max_size())]
            for connection in connections:
                do(connection)
                await pool.release(connection)

    def _log(self, query: asyncpg.connection.LoggedQuery) -> None:
        self.texts.append(query.query)

    def about(self, text: str) -> list[str]:
        return [statement for statement in self.texts if text in statement]


async def test_a_poll_at_target_touches_no_database(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 50)
        await asyncio.gather(*(node.ask() for node in nodes))  # looked up once
        await replica.services.heartbeats.flush()
        async with Statements(replica) as statements:
            for _ in range(20):
                answers = await asyncio.gather(*(node.ask() for node in nodes))
                assert {answer.status for answer in answers} == {204}
            beside = {text for text in statements.texts if not text.startswith(("BEGIN", "COMMIT"))}
            # The last one comes once, soon after the start.
            assert beside <= {fleet_cache.SQL["epoch"], fleet_cache.SQL["write_mark"], relay.SQL["clean"]}
            await replica.services.heartbeats.flush()
        assert len(statements.about("UPDATE node_presence")) == 1
        polls = (await replica.call("GET", "/metrics")).body.decode()
        assert 'skerry_polls_total{answer="at_target"} 1050.0' in polls


async def test_heartbeats_are_written_together_with_their_times(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.nodes(replica, 1200)
        heard = Heartbeats(replica.services.db, clock, replica.services.metrics)
        clock.advance(10)
        early = clock.now()
        for node in nodes[:1100]:
            heard.seen(node.id, clock.now())
        heard.confirmed(nodes[0].id, clock.now())
        clock.advance(10)
        for node in nodes[1000:1100]:
            heard.seen(node.id, clock.now())
        async with Statements(replica) as statements:
            await heard.flush()
            await heard.flush()
        # 500, 500 and 100 that were seen, and the one that was confirmed
        assert len(statements.about("UPDATE node_presence")) == 4
        rows = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT node_id::text, last_seen_at, last_sync_at FROM node_presence")
        )
        found = {row["node_id"]: (row["last_seen_at"], row["last_sync_at"]) for row in rows}
        assert found[nodes[0].id] == (early, early)
        assert found[nodes[1].id] == (early, None)
        assert found[nodes[1050].id] == (clock.now(), None)
        assert found[nodes[1150].id][0] < early


@pytest.mark.parametrize("heard_as", ["seen", "confirmed"])
async def test_time_never_goes_back(control_site: Site, heard_as: str) -> None:
    """Two replicas may write a node's heartbeats in any order."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        (node,) = await seeds.nodes(replica, 1)
        one, two = (Heartbeats(replica.services.db, clock, replica.services.metrics) for _ in range(2))
        clock.advance(1)
        getattr(one, heard_as)(node.id, clock.now())
        clock.advance(1)
        getattr(two, heard_as)(node.id, clock.now())
        await two.flush()
        await one.flush()
        row = await replica.services.db.read(lambda conn: conn.fetchrow("SELECT * FROM node_presence"))
        confirmed = clock.now() if heard_as == "confirmed" else None
        assert (row["last_seen_at"], row["last_sync_at"]) == (clock.now(), confirmed)


async def test_what_could_not_be_written_is_kept(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "STATEMENT", 2)
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.nodes(replica, 5)
        clock.advance(1)
        heard = Heartbeats(replica.services.db, clock, replica.services.metrics)
        for node in nodes:
            heard.seen(node.id, clock.now())
        calls = 0
        real = heard._db.transaction

        async def second_fails(work: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise ProblemError("database_unavailable", "gone")
            return await real(work)

        monkeypatch.setattr(heard._db, "transaction", second_fails)
        with pytest.raises(ProblemError):
            await heard.flush()
        await heard.flush()
        monkeypatch.undo()
        assert calls == 4  # 2 nodes, none, 2 nodes, 1 node
        seen = await real(
            lambda conn: conn.fetchval("SELECT count(*) FROM node_presence WHERE last_seen_at = $1", clock.now())
        )
        assert seen == 5


async def test_a_flush_waits_for_what_another_has_in_hand(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        (node,) = await seeds.nodes(replica, 1)
        heard = Heartbeats(replica.services.db, clock, replica.services.metrics)
        clock.advance(1)
        heard.seen(node.id, clock.now())
        begun, may_go_on = asyncio.Event(), asyncio.Event()

        class Held:
            async def transaction(self, work: Any) -> Any:
                begun.set()
                await may_go_on.wait()
                return await replica.services.db.transaction(work)

        heard._db = Held()  # type: ignore[assignment]
        first = asyncio.create_task(heard.flush())
        async with deadline(60):
            await begun.wait()
        second = asyncio.create_task(heard.flush())
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
        async with deadline(60):
            await second
            row = await replica.services.db.read(lambda conn: conn.fetchrow("SELECT * FROM node_presence"))
            assert row["last_seen_at"] == clock.now()
            await first


async def test_heartbeats_never_conflict_with_syncs(control_site: Site) -> None:
    """The same nodes' heartbeats and syncs, as fast as they go: no transaction of heartbeats is ever run again."""
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 30)
        await seeds.function(replica, "hello")
        heard = Heartbeats(replica.services.db, replica.services.clock, replica.services.metrics)
        done = asyncio.Event()
        attempts = flushes = 0

        class Counting:
            async def transaction(self, work: Any) -> Any:
                async def counted(conn: Any) -> Any:
                    nonlocal attempts
                    attempts += 1
                    return await work(conn)

                return await replica.services.db.transaction(counted)

        heard._db = Counting()  # type: ignore[assignment]

        async def beat() -> None:
            nonlocal flushes
            while not done.is_set():
                for node in nodes:
                    heard.confirmed(node.id, replica.services.clock.now())
                await heard.flush()
                flushes += 1

        beating = asyncio.create_task(beat())
        for _ in range(5):
            await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})
            await asyncio.gather(*(node.sync() for node in nodes))
        done.set()
        await beating
        print(f"{flushes} flushes beside {5 * len(nodes)} syncs")
        assert flushes > 20
        assert attempts == flushes
