"""A node that fails again and again at once: its lines in the log of syncs are bounded, and the others counted."""

import asyncio
from typing import Any

from control.protocol import wire
from control.sync import reconciler
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site, TestNode

TRIES = 40


async def log(replica: Replica, node: str = "one") -> list[Any]:
    """A node's syncs, oldest first."""
    items: list[Any] = (await replica.call("GET", f"/v1/syncs?node={node}&limit=1000")).json()["items"]
    return items[::-1]


async def fail(node: TestNode, message: str = "no room") -> wire.Plan:
    """One try that fails at once."""
    plan = await node.plan()
    answer = await node.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", message))
    assert answer.json()["status"] == "failed"
    return plan


async def test_failures_at_once_are_folded_into_the_newest_line(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        for number in range(TRIES):
            await fail(node, f"try {number}")
        lines = await log(replica)
        assert len(lines) == reconciler.LINES
        assert [line["folded"] for line in lines] == [0] * (reconciler.LINES - 1) + [TRIES - reconciler.LINES]
        assert (lines[-1]["status"], lines[-1]["error"]["message"]) == ("failed", f"try {TRIES - 1}")
        shown = await replica.node("one")
        assert (shown["failures"], shown["syncs_folded"]) == (TRIES, TRIES - reconciler.LINES)

        # A new target has lines of its own.
        await seeds.function(replica, "more")
        await seeds.release(replica, functions={"more": 1})
        await fail(node)
        assert len(await log(replica)) == reconciler.LINES + 1
        # Folded or not, a sync that succeeds is one that succeeded.
        for _ in range(reconciler.LINES):
            await fail(node)
        plan = await node.sync()
        last = next(line for line in await log(replica) if line["id"] == plan.sync_id)
        assert (last["status"], last["error"], last["folded"]) == ("succeeded", None, 2)
        assert (await replica.node("one"))["at_target"]
        assert len(await log(replica)) == 2 * reconciler.LINES


async def test_after_a_while_there_are_lines_again(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        for _ in range(reconciler.LINES + 3):
            clock.advance(1)
            await fail(node)
        assert len(await log(replica)) == reconciler.LINES
        clock.advance(reconciler.WINDOW.total_seconds())
        await fail(node)
        assert len(await log(replica)) == reconciler.LINES + 1


async def test_a_flapping_history_is_folded_too(control_site: Site) -> None:
    """Now a database of another fleet, now its own: no plan can be right for the first."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.release(replica)
        own = node.inventory
        foreign = wire.Inventory(1, [wire.AppliedChange(1, 1, "0" * 64)], [], own.database_id)
        for _ in range(TRIES // 2):
            node.inventory = foreign
            assert (await node.ask(report=True)).json()["code"] == "history_mismatch"
            # That it isn't at its target any more was announced: a reading from before must not be believed after it.
            await replica.services.fleet.refresh()
            node.inventory = own
            assert (await node.ask(report=True)).status == 204
        lines = await log(replica)
        assert len(lines) == reconciler.LINES
        assert sum(line["folded"] for line in lines) == TRIES // 2 - reconciler.LINES
        assert {line["error"]["code"] for line in lines} == {"history_mismatch"}


async def test_nodes_are_folded_apart(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 5)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        for _ in range(reconciler.LINES + 2):
            await fail(nodes[0])
        await asyncio.gather(*(fail(node) for node in nodes))
        counts = [len(await log(replica, f"seed-{number}")) for number in range(5)]
        assert counts == [reconciler.LINES, 1, 1, 1, 1]


async def test_a_report_that_comes_twice_ends_the_sync_that_took_its_line(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        for _ in range(reconciler.LINES):
            last = await fail(node)
        plan = await node.plan()
        assert plan.sync_id == last.sync_id
        # The report of the attempt before, whose answer was lost.
        await node.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
        node.apply(plan)
        assert (await node.report(plan.sync_id, "succeeded")).json() == {"status": "failed", "lease": 0, "late": True}
        assert (await node.ask()).status == 204
        assert (await replica.node("one"))["at_target"]
