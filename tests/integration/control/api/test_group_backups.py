"""How a group's nodes are backed up: set and seen by operators, and told to nodes with their polls."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from control.protocol import wire
from tests.support import programs, seeds
from tests.support.deadlines import deadline
from tests.support.deploy import ok
from tests.support.replica import Replica, Site, TestNode

HOLD = 50.0


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        yield replica


async def at_target(replica: Replica, name: str) -> TestNode:
    node = await replica.join(name)
    node.protocol, node.capabilities = wire.PROTOCOL, {}
    await node.sync()
    return node


async def group(replica: Replica, name: str = "default") -> Any:
    groups = (await ok(replica, "GET", "/v1/groups"))["items"]
    return next(group for group in groups if group["name"] == name)


async def test_nodes_are_told_at_once_and_once(replica: Replica) -> None:
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    node = await at_target(replica, "shop-1")
    held = asyncio.create_task(node.poll(HOLD))
    async with deadline(30):
        while node.id not in replica.services.fleet.waiters:
            await asyncio.sleep(0.01)
    made = await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 2.5})
    assert made == {"interval": 2.5, "retention": 30 * 86_400}
    answer = await held
    assert (answer.status, answer.json()) == (200, {"type": "back_up", "interval": 2.5})
    node.backup = 2.5
    assert (await node.poll()).status == 204
    # A node that doesn't know this answer gets none.
    node.protocol, node.backup = wire.BACKUP_PROTOCOL - 1, 0.0
    assert (await node.poll()).status == 204
    node.protocol, node.backup = wire.PROTOCOL, 2.5
    await ok(replica, "DELETE", "/v1/groups/default/backup")
    assert (await node.poll()).json() == {"type": "back_up", "interval": 0.0}
    node.backup = 0.0
    assert (await node.poll()).status == 204


async def test_a_setting_is_seen_checked_and_audited(replica: Replica) -> None:
    assert (await group(replica))["backup"] is None
    for wrong in ({"interval": 0.5}, {"interval": 100_000}, {"retention": 60}, {"retension": 86_400}):
        answer = await replica.call("PUT", "/v1/groups/default/backup", wrong)
        assert answer.status == 422, answer
    answer = await replica.call("PUT", "/v1/groups/none/backup", {})
    assert answer.json()["code"] == "unknown_group"
    await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 60, "retention": 7 * 86_400})
    assert (await group(replica))["backup"] == {"interval": 60.0, "retention": 7 * 86_400}
    await ok(replica, "DELETE", "/v1/groups/default/backup")
    rows = (await ok(replica, "GET", "/v1/audit?action=group.backup"))["items"]
    stored = {"backup": {"interval": 60.0, "retention": 7 * 86_400}}
    assert [(row["target"], row["before"], row["after"]) for row in rows] == [
        ("default", stored, {"backup": None}),
        ("default", {"backup": None}, stored),
    ]


async def test_a_command_sets_it(replica: Replica) -> None:
    async def skerry(*arguments: str) -> str:
        done = await programs.skerry(replica, "group", "backup", "default", *arguments)
        assert done.status == 0, done
        return done.out.decode()

    assert "aren't backed up" in await skerry()
    assert "every 10 s" in await skerry("--interval", "10s")
    await skerry("--retention", "7d")
    assert json.loads(await skerry("--json"))["backup"] == {"interval": 10.0, "retention": 7 * 86_400}
    assert "aren't backed up" in await skerry("--off")
