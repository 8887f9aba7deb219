"""A node that two machines are, with one credential: known by its polls, told, and given no new credential."""

from dataclasses import replace
from typing import Any

from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.console import page
from tests.support.replica import Replica, Site, TestNode


async def passes(replica: Replica, clock: SetClock, seconds: float, *polling: TestNode) -> Any:
    """Let so much time pass, in which these processes poll, one after the other; return how the node is shown."""
    for _ in range(10):
        clock.advance(seconds / 10)
        for process in polling:
            assert (await process.ask()).status == 204
            # Each by a batch of its own, as those that two replicas write.
            await replica.services.heartbeats.flush()
    await replica.services.monitor().look(clock.now())
    return await replica.node("seed-0")


async def rotated(replica: Replica, process: TestNode) -> tuple[int, str]:
    answer = await replica.call("POST", "/v1/nodes/self/credential", token=process.credential)
    return answer.status, answer.json().get("code", "")


async def test_two_processes_that_poll_in_turn(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        (node,) = await seeds.nodes(replica, 1)
        one, copy = replace(node, boot_id="one"), replace(node, boot_id="copy")
        # For a moment it may be a poll of the process before, which has ended.
        assert (await passes(replica, clock, 40, one, copy))["warnings"] == []
        shown = await passes(replica, clock, 40, one, copy)
        (warning,) = shown["warnings"]
        assert warning["kind"] == "cloned"
        assert "another machine has a copy of its state directory" in warning["message"]
        assert (shown["state"], shown["standing"]) == ("online", "at_target")
        metrics = (await replica.call("GET", "/metrics")).body.decode()
        assert 'skerry_cloned_nodes{group="default"} 1' in metrics
        assert "1 node Cloned" in (await page(replica, "/")).part("wrong")
        assert "another machine has a copy" in (await page(replica, "/nodes/seed-0")).words
        # Whichever of them asks: the other one would be shut out.
        for process in (one, copy):
            assert await rotated(replica, process) == (409, "node_cloned")
            assert (await process.ask()).status == 204
        # One of them has been stopped.
        assert (await passes(replica, clock, 200, one))["warnings"] != []
        assert (await passes(replica, clock, 200, one))["warnings"] == []
        assert await rotated(replica, one) == (201, "")


async def test_a_process_that_is_started_again_and_again_is_one(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        (node,) = await seeds.nodes(replica, 1)
        for number in range(6):
            before, after = replace(node, boot_id=f"{number}"), replace(node, boot_id=f"{number + 1}")
            # A poll of the one that has ended comes late, and one of a report says nothing of its process.
            assert (await passes(replica, clock, 60, before))["warnings"] == []
            for process in (after, before, node, after):
                assert (await process.ask()).status == 204
                await replica.services.heartbeats.flush()
