"""The way of a poll through control: it goes forward, through few modules (`tests.support.call_path`)."""

import pytest

from control.protocol import wire
from tests.support import seeds
from tests.support.call_path import recording
from tests.support.replica import Replica, Site, TestNode

MOST = 7
"""Stays of a poll in modules of control, of functions that call onward."""
OURS = ("ControlApp.__call__", "WriteBatches.run")
"""Where a poll's way begins, and the task that writes batches of polls."""


async def test_a_poll_at_target_passes_few_modules(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await node.poll()
        await node.ask()
        with recording("control", begins=OURS) as way:
            answer = await node.ask()
        print(way)
        assert answer.status == 204
        assert len(way.stays) <= MOST, way
        assert "control.storage.database" not in way.modules


@pytest.mark.parametrize("wait", [0.0, 0.2])
async def test_a_held_poll_passes_no_more(control_site: Site, wait: float) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await node.poll()
        with recording("control", begins=OURS) as way:
            answer = await node.ask(wait)
        assert answer.status == 204
        assert len(way.stays) <= MOST, way


async def test_a_poll_that_gets_a_plan_passes_few_modules(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await with_work(replica)
        with recording("control", begins=OURS) as way:
            answer = await node.ask()
        print(way)
        assert answer.status == 200
        assert answer.json()["type"] == "plan"
        assert len(way.stays) <= MOST, way
        assert way.returns <= 1, way


async def with_work(replica: Replica) -> TestNode:
    """A node with a release to sync, of which another node has got a plan before."""
    other, node = await replica.join("other"), await replica.join("one")
    await node.poll()
    await seeds.function(replica, "hello")
    await seeds.schema_change(replica, 1, "CREATE TABLE a (x)")
    await seeds.release(replica, functions={"hello": 1})
    assert isinstance(await other.plan(), wire.Plan)
    return node
