"""How often a small release asks the metadata database, from its request until a node has reported it: each statement
is a way there and back, and most of what a release takes at control.
"""

import asyncio

from control.api import release_making
from control.protocol import wire
from edge_runtime.sync import capabilities
from tests.support import seeds
from tests.support.asked_statements import asking
from tests.support.control import until
from tests.support.replica import Replica, Site, TestNode

MAKING = 23
"""Statements of the request, with BEGIN and COMMIT: what it goes by, the release, and reading what it announced."""
PLAN = 10
REPORT = 9


async def test_a_small_release_asks_few_statements(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await _released(replica)
        with asking("WriteBatches.run") as deciding:
            held = await _held(replica, node)
            with asking("ControlApp.__call__") as making:
                answer = await replica.call("POST", "/v1/releases", {"functions": {"hello": 2}})
            assert answer.status == 201, answer
            plan = await held
        node.apply(plan)
        with asking("WriteBatches.run") as keeping:
            answer = await node.report(plan.sync_id, "succeeded")
        assert answer.json()["status"] == "succeeded"
    assert 0 < len(making) <= MAKING, making
    assert 0 < len(deciding) <= PLAN, deciding
    assert 0 < len(keeping) <= REPORT, keeping


async def _released(replica: Replica) -> TestNode:
    """A node at a release with a schema change; version 2 of the release's function is there."""
    for _ in range(2):
        await seeds.function(replica, "hello")
    change = {"name": "first", "sql": "CREATE TABLE greetings (text TEXT)"}
    assert (await replica.call("POST", "/v1/schema-changes", change)).status == 201
    node = await replica.join("one")
    node.capabilities, node.protocol = capabilities.document(), wire.PROTOCOL
    assert (await replica.call("POST", "/v1/releases", {"functions": {"hello": 1}, "now": True})).status == 201
    await node.sync()
    return node


async def _held(replica: Replica, node: TestNode) -> "asyncio.Task[wire.Plan]":
    """A poll of the node that is held."""
    polling = asyncio.create_task(node.plan(30))

    async def is_held() -> bool:
        return node.id in replica.services.fleet.waiters

    await until(is_held)
    return polling


async def test_manifests_of_a_release_that_is_too_large_are_not_read(control_site: Site) -> None:
    async with control_site.running() as replica:
        for _ in range(2):
            await seeds.function(replica, "hello")

        async def read(most: int) -> list[release_making.FoundVersion]:
            columns = ["hello", "hello", "gone"], ["1", "2", "1"], ["false", "true", "true"]
            found = await replica.services.db.read(lambda conn: conn.fetch(release_making.VERSIONS, *columns, most))
            return sorted(found)

        one, two = await read(release_making.MANIFEST_BYTES)
        assert one.manifest == two.manifest == {}
        # Those of the second alone are counted.
        assert (one.version, two.version, one.bytes, two.bytes) == (1, 2, len("{}"), len("{}"))
        assert [row.manifest for row in await read(two.bytes)] == [one.manifest, two.manifest]
        assert [row.manifest for row in await read(two.bytes - 1)] == [None, None]
