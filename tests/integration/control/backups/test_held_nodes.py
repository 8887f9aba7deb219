"""What a held node keeps from going on, which is nothing but itself: rollouts, arrivals, warnings of late nodes."""

from typing import Any
from uuid import UUID

from control.backups import restores
from control.backups.targets import RestorableState
from control.protocol import wire
from control.storage.announcements import Changed
from tests.integration.control.rollouts.test_runner import at_first, runner_of
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deploy import items, ok
from tests.support.replica import Replica, Site, TestNode

POLICY = {"steps": ["100%"], "bake": "0s", "rehearse": False}


async def hold(replica: Replica, node: TestNode) -> str:
    """Order a restore of a node, whose files nobody asks for; return its id."""
    now = replica.services.clock.now()

    async def work(conn: Any) -> str:
        changed, state = Changed(), RestorableState("0" * 32, 1, now, [], 0)
        row = await restores.order(conn, changed, now, "test", UUID(node.id), state)
        await changed.announce(conn)
        return str(row.id)

    id = await replica.services.db.transaction(work)
    await replica.services.fleet.announced()
    return id


async def look(replica: Replica) -> Any:
    """Heartbeats written, one pass of the monitor; what operators then see of the node called a."""
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())
    return await replica.node("a")


async def outcomes(replica: Replica, number: int) -> dict[str, str]:
    found = await items(replica, f"/v1/rollouts/default/{number}/nodes")
    return {node["name"]: node["outcome"] for node in found}


async def test_a_rollout_goes_on_without_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        a, b = await at_first(replica, "a", "b")
        await hold(replica, a)
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": POLICY})
        runner = runner_of(replica)
        for _ in range(3):
            await runner.tick()
        assert await outcomes(replica, 2) == {"a": "waiting", "b": "syncing"}
        await b.sync()
        for _ in range(3):
            await runner.tick()
        assert (await b.poll()).status == 204  # the group's generation is another one
        found = await ok(replica, "GET", "/v1/rollouts/default/2")
        assert (found["state"], found["counts"]["held"]) == ("done", 1)
        assert await outcomes(replica, 2) == {"a": "held", "b": "at_target"}
        await ok(replica, "POST", "/v1/nodes/a/resume")
        assert (await a.sync()).release_number == 2


async def test_a_rollout_waits_for_no_node_that_is_held_on_its_way(control_site: Site) -> None:
    async with control_site.running() as replica:
        a, b = await at_first(replica, "a", "b")
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": POLICY})
        runner = runner_of(replica)
        for _ in range(3):
            await runner.tick()
        begun = await a.plan()
        await b.sync()
        await runner.tick()
        assert (await ok(replica, "GET", "/v1/rollouts/default/2"))["state"] == "running"
        await hold(replica, a)
        # Its sync was given up; what it reports all the same is kept, and starts nothing.
        assert (await a.report(begun.sync_id, "running")).json()["status"] == "superseded"
        for _ in range(3):
            await runner.tick()
        assert (await b.poll()).status == 204
        found = await ok(replica, "GET", "/v1/rollouts/default/2")
        assert (found["state"], found["counts"]["held"], found["counts"]["at_target"]) == ("done", 1, 1)


async def test_a_rehearsal_asks_it_for_nothing(control_site: Site) -> None:
    async with control_site.running() as replica:
        a, _b = await at_first(replica, "a", "b")
        a.restore = await hold(replica, a)
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rehearsal_only": True})
        assert (await a.poll()).status == 204
        found = {node["name"]: node["code"] for node in await items(replica, "/v1/rollouts/default/2/rehearsal")}
        assert found == {"a": "held", "b": "pending"}


async def test_it_is_not_overdue_until_it_was_resumed_for_as_long(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:

        async def overdue() -> set[str]:
            await look(replica)
            listed = {node["name"] for node in await items(replica, "/v1/nodes?overdue=true")}
            warned = {node["name"] for node in await items(replica, "/v1/nodes") if node["warnings"]}
            assert listed == warned
            return listed

        a, b = await at_first(replica, "a", "b")
        a.restore = await hold(replica, a)
        clock.advance(301)
        assert await overdue() == {"b"}
        # What was expected of it before doesn't count any more.
        b.restore = await hold(replica, b)
        assert await overdue() == set()
        clock.advance(301)
        for node in (a, b):
            assert (await node.poll()).status == 204
        assert await overdue() == set()
        for name in "ab":
            await ok(replica, "POST", f"/v1/nodes/{name}/resume")
        clock.advance(299)
        assert await overdue() == set()
        clock.advance(2)
        assert await overdue() == {"a", "b"}


async def test_a_release_arrives_at_all_others_or_fails_there(control_site: Site) -> None:
    async with control_site.running(clock=SetClock()) as replica:
        a, b = await at_first(replica, "a", "b")
        await hold(replica, a)
        await seeds.release(replica, functions={"hello": 2})
        going = await b.plan()
        await b.report(going.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
        await look(replica)
        failed = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT number FROM releases WHERE failed_at IS NOT NULL")  # type: ignore[arg-type]
        )
        assert [row["number"] for row in failed] == [2]


async def test_a_node_that_is_removed_leaves_no_open_restore(control_site: Site) -> None:
    async with control_site.running() as replica:
        (a,) = await at_first(replica, "a")
        await hold(replica, a)
        await ok(replica, "DELETE", "/v1/nodes/a")
        rows = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT state FROM restores")  # type: ignore[arg-type]
        )
        assert [row["state"] for row in rows] == ["cancelled"]
