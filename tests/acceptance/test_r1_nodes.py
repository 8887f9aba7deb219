"""Requirement 1: an administrator registers nodes and follows their state."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest

from control.protocol import wire
from tests.guests.version import version
from tests.support import deploy, repeating
from tests.support.clock import SetClock
from tests.support.deploy import code, ok
from tests.support.programs import join, skerry, until
from tests.support.replica import Advance, Replica, Site, TestNode


async def test_r1_1_a_registration_is_saved_in_the_metadata_db(
    control_site: Site, metadata: asyncpg.Connection, tmp_path: Path
) -> None:
    async with control_site.running() as replica:
        done = await join(replica, tmp_path / "node", "tokyo-1", "--label", "site=tokyo", "--label", "rack=7", "--json")
        told = done.json()
    row = await metadata.fetchrow(
        "SELECT n.*, g.name AS group_name FROM nodes AS n JOIN groups AS g ON g.id = n.group_id"
    )
    assert row is not None
    assert (str(row["id"]), row["name"], row["group_name"]) == (told["node_id"], "tokyo-1", "default")
    assert orjson.loads(row["labels"]) == {"site": "tokyo", "rack": "7"}
    assert orjson.loads(row["capabilities"])["abi"] == ["wagi", "extism", "direct"]
    assert row["joined_at"] is not None
    # Another control knows of it from the metadata DB alone.
    async with control_site.running() as other:
        [node] = (await skerry(other, "node", "list", "--json")).json()
        assert (node["id"], node["name"], node["group"]) == (told["node_id"], "tokyo-1", "default")
        assert node["labels"] == {"site": "tokyo", "rack": "7"}


async def test_r1_1_a_refused_registration_saves_nothing(replica: Replica, metadata: asyncpg.Connection) -> None:
    token = (await ok(replica, "POST", "/v1/join-tokens", {}))["token"]
    for body, status in (
        ({"name": "No Name", "attempt": str(uuid4())}, 422),
        ({"name": "one"}, 422),
        ([], 422),
        (b"{", 400),
    ):
        answer = await replica.call("POST", "/v1/nodes", body, token=token)
        # A body without its type is refused for that.
        assert answer.status == (415 if isinstance(body, bytes) else status), answer
    assert await metadata.fetchval("SELECT count(*) FROM nodes") == 0
    # The token wasn't used up by that.
    await ok(replica, "POST", "/v1/nodes", wire.Join("one", str(uuid4())), token=token)
    assert await metadata.fetchval("SELECT count(*) FROM nodes") == 1


async def test_r1_2_every_node_has_an_identifier_of_its_own(replica: Replica, metadata: asyncpg.Connection) -> None:
    nodes = await asyncio.gather(*(replica.join(f"node-{number}") for number in range(6)))
    ids = {UUID(node.id) for node in nodes}
    assert len(ids) == 6
    assert {row["id"] for row in await metadata.fetch("SELECT id FROM nodes")} == ids

    # A second registration isn't a second node: not under the same name, and not by the same attempt.
    token = (await ok(replica, "POST", "/v1/join-tokens", {}))["token"]
    taken = await replica.call("POST", "/v1/nodes", wire.Join("node-1", str(uuid4())), token=token)
    assert (taken.status, code(taken)) == (409, "name_taken")
    asked = wire.Join("lost-answer", str(uuid4()))
    first = await ok(replica, "POST", "/v1/nodes", asked, token=token)
    again = await ok(replica, "POST", "/v1/nodes", asked, token=token)
    assert first["node_id"] == again["node_id"]
    assert await metadata.fetchval("SELECT count(*) FROM nodes") == 7

    # A lost disk keeps its node's identifier, a removed node's is never another's.
    token = (await ok(replica, "POST", "/v1/join-tokens", {"rejoin": "node-2"}))["token"]
    rejoined = await ok(replica, "POST", "/v1/nodes", wire.Join("node-2", str(uuid4())), token=token)
    assert rejoined["node_id"] == nodes[2].id
    await ok(replica, "DELETE", "/v1/nodes/node-3")
    assert (await replica.join("node-3")).id not in {str(id) for id in ids}


@pytest.mark.background("heartbeats")
async def test_r1_3_a_health_check_updates_last_seen(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    node, other = await replica.join("one"), await replica.join("two")
    for one in (node, other):
        assert (await one.poll()).status == 204

    async def seen(which: TestNode) -> object:
        return await metadata.fetchval("SELECT last_seen_at FROM node_presence WHERE node_id = $1", which.id)

    async def both() -> bool:
        return [await seen(node), await seen(other)] == [clock.time] * 2

    await until(both, "both were seen")
    before = clock.time
    # At target, a poll is nothing but a heartbeat.
    for _ in range(2):
        await advance(20)
        assert (await node.ask()).status == 204

        async def updated() -> bool:
            return await seen(node) == clock.time

        await until(updated, "the heartbeat is in the metadata DB")
    assert (await replica.node("one"))["last_seen_at"] == clock.time.isoformat().replace("+00:00", "Z")
    assert await seen(other) == before

    # Reports of a sync are heartbeats too; what isn't the node's is none.
    await advance(20)
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    plan = await node.plan()
    await advance(20)
    assert (await node.report(plan.sync_id, "running")).status == 200
    await until(updated, "a report is in the metadata DB")
    reported = clock.time
    await advance(20)
    node.credential = node.credential[:-1] + ("A" if node.credential[-1] != "A" else "B")
    assert (await node.ask()).status == 401
    await repeating.saved(replica.services.heartbeats.flush)
    assert await seen(node) == reported


async def test_r1_4_the_state_is_online_syncing_or_offline(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    node = await replica.join("one")

    async def stored() -> tuple[str, object]:
        row = await metadata.fetchrow("SELECT state, state_since FROM nodes WHERE id = $1", node.id)
        assert row is not None
        return row["state"], row["state_since"]

    async def state() -> tuple[str, object]:
        before = await stored()
        shown = (await replica.node("one"))["state"]
        after = await stored()
        assert shown in (before[0], after[0])
        return after

    joined = clock.time
    await node.poll()
    assert await state() == ("online", joined)

    await advance(10)
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    plan = await node.plan()
    assert await state() == ("syncing", clock.time)
    await advance(10)
    node.apply(plan)
    await node.report(plan.sync_id, "succeeded")
    assert await state() == ("online", clock.time)
    online = clock.time

    # Heartbeats keep it online; 75 seconds without one, and it is offline.
    for _ in range(3):
        await advance(60)
        assert (await node.ask()).status == 204
    await advance(74)
    assert await state() == ("online", online)
    await advance(2)
    assert await state() == ("offline", clock.time)
    assert [n["name"] for n in await deploy.items(replica, "/v1/nodes?state=offline")] == ["one"]

    await advance(60)
    assert (await node.ask()).status == 204
    await advance(0)
    assert await state() == ("online", clock.time)

    # A node that goes away in the middle of a sync isn't syncing for ever.
    await deploy.push(replica, "show", version(2), sql="read")
    await deploy.release(replica, functions={"show": 2})
    await node.plan()
    assert (await state())[0] == "syncing"
    await advance(61)
    assert (await state())[0] == "online"
    await advance(76)
    assert (await state())[0] == "offline"
