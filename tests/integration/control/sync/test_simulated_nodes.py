"""Simulated nodes do what nodes do, as far as control sees."""

from collections.abc import AsyncIterator

import pytest

from control.protocol import wire
from tests.support import seeds
from tests.support.programs import until
from tests.support.replica import Replica, Site
from tests.support.simulated_nodes import Nature, SimulatedNodes


@pytest.fixture
async def fleet(control_site: Site) -> AsyncIterator[tuple[Replica, SimulatedNodes]]:
    """Three nodes that have joined a replica and are at a release with a function."""
    async with control_site.running() as replica:
        nodes = SimulatedNodes(Nature(sync_seconds=0.0, calls=50.0), replica.session, [replica.url])
        try:
            for name in ("a", "b", "c"):
                token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
                await nodes.add(name, token, {"region": name})
            await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})
            await at_release(replica, nodes, 1)
            yield replica, nodes
            nodes.check()
        finally:
            await nodes.end()


async def at_release(replica: Replica, nodes: SimulatedNodes, number: int, *names: str) -> None:
    """Wait until these nodes, or all, run the release, and control knows it."""

    async def there() -> bool:
        nodes.check()
        seen = [await replica.node(name) for name in names or nodes.nodes]
        return all(node["at_target"] and nodes.nodes[node["name"]].release == number for node in seen)

    await until(there, f"{names or 'all'} are at release {number}")


async def test_they_join_sync_and_count(fleet: tuple[Replica, SimulatedNodes]) -> None:
    replica, nodes = fleet
    seen = await replica.node("a")
    assert seen["labels"] == {"region": "a"}
    assert seen["state"] == "online"
    assert [f.name for f in nodes.nodes["a"].inventory.functions] == ["hello"]

    async def counted() -> bool:
        return replica.services.numbers.taken > 3

    await until(counted, "their numbers are counted")
    assert not replica.services.numbers.refused


async def test_a_node_whose_rows_dont_fit_fails_and_the_others_go_on(fleet: tuple[Replica, SimulatedNodes]) -> None:
    replica, nodes = fleet
    nodes.nature.unfit["b", 1] = "orders id=7"
    await seeds.schema_change(replica, 1, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    await seeds.release(replica, schema=1)
    await at_release(replica, nodes, 2, "a", "c")

    async def failed() -> bool:
        return bool((await replica.node("b"))["standing"] == "failing")

    await until(failed, "b fails")
    assert nodes.nodes["b"].release == 1
    nodes.nature.unfit.clear()
    await at_release(replica, nodes, 2, "b")
    assert [number for _, number in nodes.nodes["b"].flips] == [1, 2]


async def test_a_killed_node_is_still_at_one_whole_release(fleet: tuple[Replica, SimulatedNodes]) -> None:
    replica, nodes = fleet
    nodes.nature.sync_seconds = 60.0
    await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})

    async def syncing() -> bool:
        return bool((await replica.node("a"))["standing"] == "syncing")

    await until(syncing, "a is in a sync")
    nodes.kill("a")
    assert nodes.nodes["a"].release == 1
    nodes.nature.sync_seconds = 0.0
    nodes.start("a")
    await at_release(replica, nodes, 2, "a")


async def test_a_revoked_node_stays_where_it_is(fleet: tuple[Replica, SimulatedNodes]) -> None:
    replica, nodes = fleet
    answer = await replica.call("POST", "/v1/nodes/c/revoke")
    assert answer.status < 300, answer
    await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})
    await at_release(replica, nodes, 2, "a", "b")

    async def refused() -> bool:
        return bool(nodes.nodes["c"].refused)

    await until(refused, "c is refused")
    assert nodes.nodes["c"].release == 1


async def test_a_rehearsal_finds_what_a_sync_would(fleet: tuple[Replica, SimulatedNodes]) -> None:
    _, nodes = fleet
    nodes.nature.unfit["b", 2] = "orders id=7"
    changes = [wire.PlannedChange(n, 1, f"change {n}", wire.schema_checksum(str(n)), str(n)) for n in (1, 2)]
    plan = wire.Plan("", 60.0, 2, "", 2, 2, changes)
    found = nodes.nodes["b"].would_find(plan)
    assert (found.outcome, found.row, [change.number for change in found.changes]) == ("failed", "orders id=7", [1])
    others = [nodes.nodes[name].would_find(plan) for name in ("a", "c")]
    assert [each.outcome for each in others] == ["passed", "passed"]
    assert others[0].schema_digest == others[1].schema_digest != ""
