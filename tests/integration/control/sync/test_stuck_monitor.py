"""A transaction of somebody else's that doesn't end: the monitor does what isn't locked, for everybody else."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.locks import locked
from tests.support.replica import Site

NODE = "UPDATE nodes SET name = name WHERE name = $1"


async def test_a_locked_node_holds_up_no_other_ones_state(control_site: Site) -> None:
    """The monitor: a node that is locked isn't set offline for now, the others are."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.nodes(replica, 5)
        stuck, *others = nodes

        async def states() -> dict[str, Any]:
            rows = await replica.services.db.read(lambda conn: conn.fetch("SELECT id::text AS id, state FROM nodes"))
            return {row["id"]: row["state"] for row in rows}

        statement = "UPDATE nodes SET name = name WHERE id = $1::text::uuid"
        async with locked(control_site.settings.metadata_url, statement, stuck.id):
            clock.advance(control_site.settings.offline_after + 1)
            await replica.services.monitor().look(clock.now())
            assert await states() == {stuck.id: "online", **{node.id: "offline" for node in others}}


@pytest.mark.parametrize("table", ["nodes", "syncs"])
async def test_a_locked_row_holds_up_no_other_ones_expiry(control_site: Site, table: str) -> None:
    """The monitor: the sync of a node that is locked doesn't expire for now, the others' do, and states are kept."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.behind(replica, 3)
        plans = [await node.plan() for node in nodes]

        async def statuses() -> list[str]:
            items = (await replica.call("GET", "/v1/syncs")).json()["items"]
            found = {item["id"]: item["status"] for item in items}
            return [found[plan.sync_id] for plan in plans]

        id = nodes[0].id if table == "nodes" else plans[0].sync_id
        statement = f"SELECT id FROM {table} WHERE id = $1::text::uuid FOR UPDATE"
        async with locked(control_site.settings.metadata_url, statement, id):
            clock.advance(control_site.settings.sync_lease + 1)
            await replica.services.monitor().look(clock.now())
            assert await statuses() == ["running", "expired", "expired"]
        await replica.services.monitor().look(clock.now())
        assert await statuses() == ["expired"] * 3


async def test_a_locked_node_holds_up_no_other_ones_warning(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.nodes(replica, 3)
        clock.advance(3600)

        async def warned() -> set[str]:
            query = "SELECT node_id::text AS id FROM warnings WHERE cleared_at IS NULL"
            return {row["id"] for row in await replica.services.db.read(lambda conn: conn.fetch(query))}

        statement = "SELECT id FROM nodes WHERE id = $1::text::uuid FOR UPDATE"
        async with locked(control_site.settings.metadata_url, statement, nodes[0].id):
            await replica.services.monitor().look(clock.now())
            assert await warned() == {node.id for node in nodes[1:]}
        await replica.services.monitor().look(clock.now())
        assert await warned() == {node.id for node in nodes}


async def test_a_step_of_the_monitor_that_waits_in_vain_holds_up_no_other_one(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock, log_retention=86400.0) as replica:
        (node,) = await seeds.nodes(replica, 1)
        passes = replica.services.monitor()
        clock.advance(3600)
        await passes.look(clock.now())
        clock.advance(3 * 86400.0)
        replica.services.heartbeats.confirmed(node.id, clock.now())
        await replica.services.heartbeats.flush()
        old = "SELECT count(*) FROM idempotency"
        await replica.services.db.transaction(
            lambda conn: conn.execute(
                "INSERT INTO idempotency (operator, key, request_digest, status, created_at) "
                "VALUES ('', '', '', 1, $1)",
                clock.now() - timedelta(days=2),
            )
        )
        async with locked(control_site.settings.metadata_url, "SELECT id FROM warnings FOR UPDATE"):
            # It is to clear the warning, and then to forget what is old.
            assert await passes.tick()
            assert await replica.services.db.read(lambda conn: conn.fetchval(old)) == 0
            assert (await replica.node("seed-0"))["warnings"]
        await passes.look(clock.now())
        assert not (await replica.node("seed-0"))["warnings"]


@pytest.mark.parametrize("state", ["uploading", "ready", "deleting"])
async def test_a_locked_artifact_holds_up_no_other_ones_deletion(control_site: Site, state: str) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        for number in range(3):
            await seeds.function(replica, f"f-{number}")

        async def left() -> int:
            query = "SELECT count(*) FROM artifacts"
            found: int = await replica.services.db.read(lambda conn: conn.fetchval(query))
            return found

        async def unused(conn: Any) -> None:
            await conn.execute("DELETE FROM function_versions")
            await conn.execute("UPDATE artifacts SET state = $1", state)

        async def sweep() -> None:
            clock.advance(2 * 3600)
            await replica.services.deletions.sweep()
            # What was marked only now.
            clock.advance(120)
            await replica.services.deletions.sweep()

        await replica.services.db.transaction(unused)
        statement = "SELECT id FROM artifacts WHERE id = (SELECT min(id::text)::uuid FROM artifacts) FOR UPDATE"
        async with locked(control_site.settings.metadata_url, statement):
            await sweep()
            assert await left() == 1
        await sweep()
        assert await left() == 0


WRONG_CLOCK = {
    "node_presence": "UPDATE node_presence SET last_seen_at = $1",
    "nodes": "UPDATE nodes SET joined_at = $1",
    "syncs": "UPDATE syncs SET lease_until = $1",
    "join_tokens": "UPDATE join_tokens SET created_at = $1, expires_at = $1",
}


@pytest.mark.parametrize("table", WRONG_CLOCK)
async def test_a_locked_row_of_a_wrong_clock_holds_up_no_other_one(control_site: Site, table: str) -> None:
    """The monitor: the row is put right later, the others are now, and the pass goes on to what comes after that."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        nodes = await seeds.behind(replica, 3)
        await asyncio.gather(*(node.plan() for node in nodes))
        for _ in nodes:
            await replica.call("POST", "/v1/join-tokens", {})
        await replica.services.heartbeats.flush()
        wrong = clock.now() + timedelta(days=1)
        passes = replica.services.monitor()

        async def ahead() -> int:
            column = WRONG_CLOCK[table].partition(" SET ")[2].partition(" ")[0]
            query = f"SELECT count(*) FROM {table} WHERE {column} = $1"
            found: int = await replica.services.db.read(lambda conn: conn.fetchval(query, wrong))
            return found

        await replica.services.db.transaction(lambda conn: conn.execute(WRONG_CLOCK[table], wrong))
        assert await ahead() == 3
        key = "node_id" if table == "node_presence" else "id"
        statement = f"SELECT {key} FROM {table} WHERE {key} = (SELECT min({key}::text)::uuid FROM {table}) FOR UPDATE"
        async with locked(control_site.settings.metadata_url, statement):
            await passes.look(clock.now())
            assert await ahead() == 1
        await passes.look(clock.now())
        assert await ahead() == 0
