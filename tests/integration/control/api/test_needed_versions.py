"""A version that a rollback would need isn't deleted by mistake."""

from tests.support import seeds
from tests.support.replica import Replica, Site
from tests.support.rollouts import open_rollout


async def delete(replica: Replica, path: str) -> str:
    """Delete; return the detail of the refusal `version_needed`, or ''."""
    answer = await replica.call("DELETE", f"/v1/functions/{path}")
    if answer.status == 204:
        return ""
    problem = answer.json()
    assert (answer.status, problem["code"]) == (409, "version_needed"), problem
    return str(problem["detail"])


async def test_the_versions_of_the_last_good_release_are_kept(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(4):
            await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        await seeds.release(replica, functions={"hello": 2})
        await node.sync()
        # Nodes fail at this one: they run release 2 on.
        await seeds.release(replica, functions={"hello": 3})
        plan = await node.plan()
        await node.report(plan.sync_id, "failed", error={"code": "probe_failed", "message": "no"})
        # No release that a rollback would go to has these.
        assert await delete(replica, "hello/versions/1") == ""
        assert await delete(replica, "hello/versions/4") == ""
        told = await delete(replica, "hello/versions/2")
        assert "release 2 of group default (hello@2)" in told
        assert "force=true" in told
        # Bad input, or what is refused, changes nothing.
        assert (await replica.call("POST", "/v1/releases", {"rollback_to": 2})).status == 201
        await node.poll()
        # It is the target now, and nothing runs release 3 or 1, so nothing is needed but it.
        assert await delete(replica, "hello/versions/3") == ""


async def test_what_the_release_before_had_is_kept_until_a_newer_one_is_good(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(3):
            await seeds.function(replica, "hello")
        await seeds.function(replica, "other")
        await seeds.release(replica, functions={"hello": 1, "other": 1})
        await node.sync()
        await seeds.release(replica, functions={"hello": 2}, remove=["other"])
        await node.sync()
        assert "release 1 of group default (hello@1)" in await delete(replica, "hello/versions/1")
        # A whole function, too.
        assert "release 1 of group default (other@1)" in await delete(replica, "other")
        assert await delete(replica, "other?force=true") == ""
        await seeds.release(replica, functions={"hello": 3})
        await node.sync()
        assert await delete(replica, "hello/versions/1") == ""
        # Out of the target, and needed all the same by the release before.
        assert "release 2 of group default (hello@2)" in await delete(replica, "hello?release=true")
        assert await delete(replica, "hello?release=true&force=true") == ""


async def test_what_skerry_rollback_goes_to_is_kept(control_site: Site) -> None:
    """Also where the newest release that a node has run is another one, on which a node has failed."""
    async with control_site.running() as replica:
        one, two = await replica.join("one"), await replica.join("two")
        for _ in range(3):
            await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await one.sync()
        await seeds.release(replica, functions={"hello": 2})
        await one.sync()
        plan = await two.plan()
        await two.report(plan.sync_id, "failed", error={"code": "probe_failed", "message": "no"})
        await seeds.release(replica, functions={"hello": 3})
        assert "release 1 of group default (hello@1)" in await delete(replica, "hello/versions/1")
        assert "release 2 of group default (hello@2)" in await delete(replica, "hello/versions/2")


async def test_other_groups_need_versions_too(control_site: Site) -> None:
    async with control_site.running() as replica:
        for name in ("east", "west"):
            assert (await replica.call("POST", "/v1/groups", {"name": name})).status == 201
        for _ in range(2):
            await seeds.function(replica, "hello")
        for name in ("east", "west"):
            node = await replica.join(name, group=name)
            for version in (1, 2):
                await seeds.release(replica, group=name, functions={"hello": version})
                if name == "west" or version == 2:
                    await node.sync()
        told = await delete(replica, "hello/versions/1")
        # No node of the east has run its first release.
        assert "group west" in told
        assert "group east" not in told


async def test_what_a_second_rollback_goes_to_is_kept(control_site: Site) -> None:
    """It goes further back than the first one, and not to what that one has left."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        for version in (1, 2, 3):
            await seeds.function(replica, "hello")
            await seeds.release(replica, functions={"hello": version})
            await node.sync()
        assert (await replica.call("POST", "/v1/releases", {"rollback": True})).json()["rollback_to"] == 2
        await node.sync()
        assert "release 1 of group default (hello@1)" in await delete(replica, "hello/versions/1")
        assert (await replica.call("POST", "/v1/releases", {"rollback": True})).json()["rollback_to"] == 1


async def test_what_a_rollout_gives_is_kept(control_site: Site) -> None:
    """While it is open, and while nodes have it that it has started."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        for _ in range(2):
            await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        rollout = await open_rollout(replica, functions={"hello": 2}, step=0)

        async def kept(path: str) -> bool:
            answer = await replica.call("DELETE", f"/v1/functions/{path}")
            if answer.status == 204:
                return False
            problem = answer.json()
            assert (answer.status, problem["code"]) == (409, "version_in_target"), problem
            assert "release 2 of group default (hello@2)" in problem["detail"]
            return True

        assert await kept("hello/versions/2?force=true&release=true")
        await rollout.start(replica, [node])
        await node.sync()
        await rollout.give_back(replica)
        assert await kept("hello/versions/2?force=true")
        # A release of the whole group ends that.
        await seeds.release(replica, functions={"hello": 1})
        assert not await kept("hello/versions/2")
