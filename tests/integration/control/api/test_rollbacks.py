"""Which release a group is rolled back to, where nobody says which: the last that a node has run and none failed on."""

from typing import Any

from control.protocol import wire
from tests.support import deploy, seeds
from tests.support.replica import Replica, Site, TestNode
from tests.support.rollouts import open_rollout


async def release(replica: Replica, version: int) -> int:
    """A release with this version of the function."""
    number: int = (await seeds.release(replica, functions={"hello": version}))["number"]
    return number


async def fail(node: TestNode) -> str:
    """The node fails at its target; return the sync."""
    plan = await node.plan()
    await node.report(plan.sync_id, "failed", error=wire.SyncError("probe_failed", "no"))
    return plan.sync_id


async def shown(replica: Replica, number: int) -> Any:
    """What the release's page has as the one to go back to."""
    return (await deploy.ok(replica, "GET", f"/v1/releases/default/{number}"))["rolls_back_to"]


async def back(replica: Replica) -> int:
    """Roll back; return to which release."""
    planned = await deploy.ok(replica, "POST", "/v1/releases?plan=true", {"rollback": True})
    made = await deploy.ok(replica, "POST", "/v1/releases", {"rollback": True, "plan_digest": planned["plan_digest"]})
    assert made["rollback_to"] == planned["rollback_to"]
    assert made["functions"] == planned["functions"]
    number: int = made["rollback_to"]
    return number


async def test_the_last_release_that_ran_and_none_failed_on(control_site: Site) -> None:
    async with control_site.running() as replica:
        one, two = await replica.join("one"), await replica.join("two")
        for _ in range(6):
            await seeds.function(replica, "hello")
        await release(replica, 1)
        await one.sync()
        await two.sync()
        await release(replica, 2)
        await one.sync()  # The other one hasn't come to it: one is enough.
        await release(replica, 3)
        await one.sync()
        await fail(two)
        await release(replica, 4)  # No node has run it.
        await release(replica, 5)
        await fail(one)
        assert await shown(replica, 5) == 2
        assert await shown(replica, 4) is None
        assert await back(replica) == 2
        # A second one goes further back, not forth to what the first one has left.
        assert await shown(replica, 6) == 1
        assert await back(replica) == 1
        for body, code in (
            ({"rollback": True}, "release_not_possible"),
            ({"rollback": True, "rollback_to": 1}, "invalid_body"),
            ({"rollback": True, "functions": {"hello": 1}}, "release_not_possible"),
        ):
            answer = await replica.call("POST", "/v1/releases", body)
            assert (answer.status, deploy.code(answer)) == (422 if code == "invalid_body" else 409, code), body
        assert "skerry release list" in answer.json()["detail"]
        # What came after a rollback goes back to it.
        await one.sync()
        await release(replica, 6)
        assert await back(replica) == 7


async def test_what_never_was_the_groups_isnt_gone_back_to(control_site: Site) -> None:
    """Nodes have run it, and none has failed: its rollout was aborted all the same."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(3):
            await seeds.function(replica, "hello")
        await release(replica, 1)
        await node.sync()
        rollout = await open_rollout(replica, functions={"hello": 2})
        await rollout.start(replica, [node])
        await node.sync()
        await rollout.give_back(replica)
        await release(replica, 3)
        assert await back(replica) == 1


async def test_a_node_that_failed_and_then_ran_it_is_no_failure(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(3):
            await seeds.function(replica, "hello")
        await release(replica, 1)
        await node.sync()
        await release(replica, 2)
        late = await fail(node)
        await node.sync()
        await release(replica, 3)
        assert await shown(replica, 3) == 2

        # What is known of a failure stays when its line in the log of syncs is deleted.
        async def work(conn: Any) -> None:
            await conn.execute("UPDATE releases SET failed_at = $1 WHERE number = 2", replica.services.clock.now())
            await conn.execute("DELETE FROM syncs WHERE id = $1::text::uuid", late)

        await replica.services.db.transaction(work)
        assert await shown(replica, 3) == 1


async def test_a_release_that_changes_nothing_for_a_node_is_run_by_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(2):
            await seeds.function(replica, "hello")
        await release(replica, 1)
        await node.sync()
        await seeds.release(replica, reason="nothing new")
        assert (await node.poll()).status == 204
        await release(replica, 2)
        assert await shown(replica, 3) == 2


async def test_a_group_without_such_a_release(control_site: Site) -> None:
    async with control_site.running() as replica:
        answer = await replica.call("POST", "/v1/releases", {"rollback": True})
        assert (answer.status, deploy.code(answer)) == (409, "release_not_possible")
        await seeds.function(replica, "hello")
        await release(replica, 1)
        assert await shown(replica, 1) is None
        answer = await replica.call("POST", "/v1/releases", {"rollback": True, "group": "nope"})
        assert deploy.code(answer) == "unknown_group"


async def test_the_floor_that_a_rollback_lowered_stays_until_somebody_raises_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(3):
            await seeds.function(replica, "hello")
        for number in (1, 2):
            await seeds.schema_change(replica, number, f"CREATE TABLE t{number} (id INTEGER)")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        await seeds.schema_change(replica, 3, "CREATE TABLE t3 (id INTEGER)")
        await release(replica, 2)
        await fail(node)
        assert await back(replica) == 1

        async def planned(**body: Any) -> tuple[int, int, int | None]:
            """The floor before, the floor, and above which newest change it stays, of a release that would be made."""
            found = await deploy.ok(replica, "POST", "/v1/releases?plan=true", body)
            return found["floor_before"], found["schema_floor"], found["held_below"]

        assert await planned(functions={"hello": 3}) == (2, 2, 3)
        assert await planned(functions={"hello": 3}, schema=3) == (2, 3, None)
        # It stays over further releases, and for a group that it wasn't lowered in, the newest change is the floor.
        assert (await seeds.release(replica, functions={"hello": 3}))["schema_floor"] == 2
        assert await planned() == (2, 2, 3)
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "other"})
        assert await planned(group="other") == (0, 3, None)
        # Once it is raised, later ones follow the newest change again.
        await seeds.release(replica, schema=3)
        await seeds.schema_change(replica, 4, "CREATE TABLE t4 (id INTEGER)")
        assert await planned() == (3, 4, None)


async def test_a_schema_change_with_its_release_raises_a_lowered_floor(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, "CREATE TABLE a (id INTEGER)", "a")
        await seeds.release(replica)
        assert (await seeds.release(replica, schema=0))["schema_floor"] == 0
        body = {"name": "b", "sql": "CREATE TABLE b (id INTEGER)", "release": {"group": "default"}}
        made = await deploy.ok(replica, "POST", "/v1/schema-changes", body)
        assert (made["release"]["schema_floor"], made["release"]["held_below"]) == (2, None)
