"""Nodes with a release of their own, which a rollout has started before their group has it."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from control.protocol import wire
from control.rollouts.runner import HELD
from control.sync.arrivals import Arrivals
from tests.support import numbers, seeds
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, Site, TestNode
from tests.support.rollouts import open_rollout


async def at_first_release(replica: Replica, *names: str) -> list[TestNode]:
    """Nodes that run the first release of their group; the function has a second version."""
    nodes = [await replica.join(name) for name in names]
    await seeds.function(replica, "hello")
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    for node in nodes:
        await node.sync()
    return nodes


def told(answer: Answered) -> str:
    """The release that a node at its target is told of, with its generation."""
    assert answer.status == 204, answer
    return answer.headers["x-skerry-release"]


async def test_only_a_started_node_gets_the_release(control_site: Site) -> None:
    async with control_site.running() as replica, control_site.running() as other:
        first, second = await at_first_release(replica, "first", "second")
        rollout = await open_rollout(replica, functions={"hello": 2})
        generation = await rollout.start(replica, [first])
        assert await rollout.started(replica) == {first.id: generation}
        assert told(await second.poll()).startswith("default 1 ")
        shown = await replica.node("first")
        assert (shown["release"], shown["target_release"], shown["at_target"]) == (1, 2, False)
        assert (shown["standing"], shown["target_generation"]) == ("behind", generation)
        plan = await first.sync()
        assert (plan.release_number, plan.generation, plan.functions[0].version) == (2, generation, 2)
        shown = await replica.node("first")
        assert (shown["release"], shown["target_release"], shown["at_target"]) == (2, 2, True)
        shown = await replica.node("second")
        assert (shown["release"], shown["target_release"], shown["at_target"]) == (1, 1, True)
        group = (await replica.call("GET", "/v1/groups")).json()["items"][0]
        assert group["release"]["number"] == 1
        # Another replica answers the same, from its memory.
        assert told(await first.poll()) == f"default 2 {generation}"
        first.replica = other
        await other.services.fleet.refresh()
        assert told(await first.poll()) == f"default 2 {generation}"


async def test_a_held_poll_gets_its_plan(control_site: Site) -> None:
    async with control_site.running() as replica, control_site.running() as other:
        first, second = await at_first_release(replica, "first", "second")
        rollout = await open_rollout(replica, functions={"hello": 2})
        first.replica = second.replica = other
        held = [asyncio.create_task(node.poll(60)) for node in (first, second)]
        async with deadline(60):
            while len(other.services.fleet.waiters) < 2:
                await asyncio.sleep(0.01)
            await rollout.start(replica, [first])
            assert (await held[0]).json()["release_number"] == 2
        assert not held[1].done()
        held[1].cancel()


async def test_the_groups_release_overrides(control_site: Site) -> None:
    async with control_site.running() as replica:
        first, second = await at_first_release(replica, "first", "second")
        rollout = await open_rollout(replica, functions={"hello": 2})
        await rollout.start(replica, [first])
        await first.sync()
        # A release at once, as a rollback makes one.
        made = await seeds.release(replica, functions={"hello": 1})
        for node in (first, second):
            if node is first:
                assert (await node.sync()).generation == made["generation"]
            assert told(await node.poll()) == f"default {made['number']} {made['generation']}"
        # One that has gone through all its steps.
        rollout = await open_rollout(replica, functions={"hello": 2})
        await rollout.start(replica, [first])
        await first.sync()
        generation = await rollout.finish(replica)
        assert told(await first.poll()) == f"default {rollout.number} {generation}"
        assert (await second.sync()).generation == generation
        shown = [await replica.node(name) for name in ("first", "second")]
        assert [node["release"] for node in shown] == [rollout.number] * 2
        assert [node["target_release"] for node in shown] == [rollout.number] * 2
        rows = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT release_id, moved_generation, generation FROM nodes")
        )
        assert [tuple(row) for row in rows] == [(None, None, 0)] * 2


async def test_giving_back_keeps_nodes_that_run_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        first, second, third = await at_first_release(replica, "first", "second", "third")
        rollout = await open_rollout(replica, functions={"hello": 2})
        generation = await rollout.start(replica, [first, second])
        await first.sync()
        begun = await second.plan()
        assert await rollout.give_back(replica) == [second.id]
        assert await rollout.started(replica) == {first.id: generation}
        # What it has begun is another target's now.
        second.apply(begun)
        await second.report(begun.sync_id, "succeeded")
        assert (await replica.node("second"))["at_target"] is False
        back = await second.sync()
        assert (back.release_number, back.functions[0].version) == (1, 1)
        assert back.generation > generation
        assert told(await first.poll()) == f"default 2 {generation}"
        assert [(await replica.node(name))["release"] for name in ("first", "second", "third")] == [2, 1, 1]
        assert await rollout.give_back(replica) == []
        # It goes on after all.
        again = await rollout.start(replica, [second, third], 2)
        assert await rollout.started(replica) == {first.id: generation, second.id: again, third.id: again}
        for node in (second, third):
            assert (await node.sync()).release_number == 2


async def test_the_first_release_of_a_group(control_site: Site) -> None:
    async with control_site.running() as replica:
        first, second = await replica.join("first"), await replica.join("second")
        for node in (first, second):
            assert (await node.poll()).status == 204
        await seeds.function(replica, "hello")
        rollout = await open_rollout(replica, functions={"hello": 1})
        generation = await rollout.start(replica, [first])
        assert (await replica.node("first"))["standing"] == "behind"
        assert (await first.sync()).release_number == 1
        assert told(await first.poll()) == f"default 1 {generation}"
        answer = await second.poll()
        assert (answer.status, "x-skerry-release" in answer.headers) == (204, False)
        shown = await replica.node("second")
        assert (shown["release"], shown["target_release"], shown["at_target"]) == (None, None, True)
        await rollout.finish(replica)
        assert (await second.sync()).release_number == 1


async def test_a_move_and_joining_again_end_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        moved, again, removed = await at_first_release(replica, "moved", "again", "removed")
        rollout = await open_rollout(replica, functions={"hello": 2})
        generation = await rollout.start(replica, [moved, again, removed])
        assert (await replica.call("POST", "/v1/groups", {"name": "other"})).status == 201
        assert (await replica.call("POST", "/v1/nodes/moved/move", {"group": "other"})).status == 200
        assert (await moved.poll()).status == 204
        shown = await replica.node("moved")
        assert (shown["release"], shown["target_release"], shown["at_target"]) == (None, None, True)
        await replica.call("POST", "/v1/nodes/moved/move", {"group": "default"})
        assert (await moved.poll()).headers["x-skerry-release"].startswith("default 1 ")
        await again.sync()
        token = (await replica.call("POST", "/v1/join-tokens", {"rejoin": "again"})).json()["token"]
        joined = await replica.call("POST", "/v1/nodes", wire.Join("again", str(uuid4())), token=token)
        # Where it has its disk still, it follows no plan of a generation that it has completed.
        again = TestNode(replica, again.id, joined.json()["credential"], again.inventory, again.generation)
        plan = await again.sync()
        assert (plan.release_number, plan.generation > generation) == (1, True)
        assert (await replica.call("DELETE", "/v1/nodes/removed")).status == 204
        # The rollout may start the node that has joined again; the others have left it.
        assert await rollout.started(replica) == {moved.id: generation, removed.id: generation}
        await rollout.start(replica, [again, removed])
        assert (await again.sync()).release_number == 2
        assert (await rollout.started(replica))[removed.id] == generation
        own = "SELECT name FROM nodes WHERE release_id IS NOT NULL"
        assert await replica.services.db.read(lambda conn: conn.fetchval(own)) == "again"


async def test_nodes_are_asked_to_rehearse(control_site: Site) -> None:
    async with control_site.running() as replica, control_site.running() as other:
        first, old, failing = await at_first_release(replica, "first", "old", "failing")
        first.protocol = failing.protocol = wire.REHEARSAL_PROTOCOL
        first.replica = other
        held = asyncio.create_task(first.poll(60))
        async with deadline(60):
            while not other.services.fleet.waiters:
                await asyncio.sleep(0.01)
            rollout = await open_rollout(replica, functions={"hello": 2}, step=0)
            assert (await held).json() == {"type": "rehearse", "id": f"{rollout.id}.1"}
        first.replica = replica
        assert (await first.poll()).status == 200
        first.rehearsal = f"{rollout.id}.1"
        assert (await first.poll()).status == 204
        # It has an order for each attempt.
        await rollout.at(replica, step=0, attempt=2)
        assert (await first.poll()).json()["id"] == f"{rollout.id}.2"
        # A version that doesn't know the message gets none, and a plan comes first.
        assert told(await old.poll()).startswith("default 1 ")
        old.generation = 0
        failing.inventory = wire.Inventory(database_id=failing.inventory.database_id)
        assert (await failing.plan()).release_number == 1
        counted = replica.services.metrics._counts.polls["rehearse"]
        assert counted == 2
        # Neither a paused rehearsal nor a step is one: a node that may still be at it is told so once.
        for state, step in (("paused", 0), ("running", 1)):
            first.rehearsal = f"{rollout.id}.2"
            await rollout.at(replica, state=state, step=step)
            assert (await first.poll()).json() == {"type": "rehearse", "id": ""}
            first.rehearsal = ""
            assert (await first.poll()).status == 204


async def test_nodes_fetch_what_a_rollout_gives_them(control_site: Site) -> None:
    """Each of them what it may rehearse, while the rollout is open; later those that it has started."""
    async with control_site.running() as replica:
        first, second = await at_first_release(replica, "first", "second")
        text = "SELECT sha256 FROM function_versions WHERE version = 2"
        sha256 = await replica.services.db.read(lambda conn: conn.fetchval(text))

        async def fetched(node: TestNode) -> int:
            return (await replica.call("GET", f"/v1/artifacts/{sha256}", token=node.credential)).status

        assert (await fetched(first), await fetched(second)) == (404, 404)
        rollout = await open_rollout(replica, functions={"hello": 2}, step=0)
        assert (await fetched(first), await fetched(second)) == (307, 307)
        await rollout.start(replica, [first])
        await first.sync()
        await rollout.give_back(replica)
        assert (await fetched(first), await fetched(second)) == (307, 404)
        page = (await replica.call("GET", "/v1/artifact-store/check?needed=true")).json()
        assert sha256 in str(page), "a node needs it"


async def test_failing_nodes_try_their_own_release_again(control_site: Site) -> None:
    async with control_site.running() as replica:
        first, second = await at_first_release(replica, "first", "second")
        rollout = await open_rollout(replica, functions={"hello": 2})
        await rollout.start(replica, [first])
        plan = await first.plan()
        await first.report(plan.sync_id, "failed", error=wire.SyncError("probe_failed", "no"))
        retried = {
            number: (await replica.call("POST", f"/v1/releases/default/{number}/retry")).json()["nodes"]
            for number in (1, rollout.number)
        }
        assert retried == {1: 0, 2: 1}
        assert (await replica.node("first"))["standing"] == "failing"
        # A failure of nodes that a rollout has started is none of their group's release.
        await second.poll()
        await Arrivals(replica.services.db, replica.services.clock).look(replica.services.clock.now())
        text = "SELECT failed_at, arrived_at IS NOT NULL AS arrived FROM releases WHERE number = 1"
        (row,) = await replica.services.db.read(lambda conn: conn.fetch(text))
        assert tuple(row) == (None, True)


async def test_numbers_of_nodes_on_their_way_count(control_site: Site) -> None:
    """They are of the release that the nodes run until they flip."""
    async with control_site.running() as replica:
        (node,) = await at_first_release(replica, "first")
        rollout = await open_rollout(replica, functions={"hello": 2})
        await rollout.start(replica, [node])
        for sequence, release in enumerate((1, rollout.number)):
            body = numbers.message([numbers.function(release=release, calls=3)], sequence=sequence)
            await numbers.tell(node, body)
        ingest = replica.services.numbers
        await ingest.resolve()
        (group_id,) = ingest.groups()
        past, now = ingest.totals(group_id)
        counted = {key: sum(tally.times.values()) for key, tally in (past | now).items()}
        assert (ingest.refused, counted) == (0, {("hello", 1): 3, ("hello", rollout.number): 3})


async def test_the_rollout_of_a_deleted_group_ends(control_site: Site) -> None:
    async with control_site.running() as replica:
        assert (await replica.call("POST", "/v1/groups", {"name": "other"})).status == 201
        await seeds.function(replica, "hello")
        rollout = await open_rollout(replica, "other", functions={"hello": 1})
        assert (await replica.call("DELETE", "/v1/groups/other")).status == 204
        text = "SELECT state FROM rollouts WHERE release_id = $1"
        assert await replica.services.db.read(lambda conn: conn.fetchval(text, rollout.id)) == "aborted"
        assert (await replica.call("DELETE", "/v1/functions/hello")).status == 204


@pytest.mark.background("rollouts")
async def test_no_node_is_started_beside_a_replica_that_doesnt_know_it(control_site: Site) -> None:
    """A replica of the version before would say of a started node that it is at its target."""
    async with control_site.running() as replica:
        (node,) = await at_first_release(replica, "first")
        db, until = replica.services.db, replica.services.clock.now() + timedelta(days=30)
        text = "INSERT INTO leases (name, holder, expires_at, version) VALUES ('mark of an old one', '1', $1, '0.1')"
        await db.transaction(lambda conn: conn.execute(text, until))
        policy = {"steps": ["100%"], "rehearse": False, "bake": "0s"}
        await seeds.release(replica, functions={"hello": 2}, rollout=policy)
        async with deadline(60):
            while await db.read(lambda conn: conn.fetchval("SELECT reason FROM rollouts")) != HELD:
                await asyncio.sleep(0.05)
        assert told(await node.poll()).startswith("default 1 ")
        # It has ended some seconds ago.
        text = "UPDATE leases SET expires_at = $1 WHERE name = 'mark of an old one'"
        await db.transaction(lambda conn: conn.execute(text, until - timedelta(seconds=60)))
        async with deadline(60):
            while (await node.poll()).status != 200:
                await asyncio.sleep(0.05)
        assert (await node.sync()).release_number == 2
