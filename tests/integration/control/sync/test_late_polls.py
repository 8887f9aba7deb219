"""A copy of an old poll comes late, with what the node ran then: control must not believe it for good."""

import asyncio
from typing import Any

import pytest

from control.protocol import wire
from control.storage.database import UnknownCommit
from control.sync.reconciler import NodeRequest
from tests.support import seeds
from tests.support.deadlines import deadline
from tests.support.replica import Replica, Site, TestNode

SOON = 20.0


async def at_target(replica: Replica) -> tuple[TestNode, wire.Inventory]:
    """A node at its second target, by what it asks of this replica; and what it ran at the first."""
    for name in ("one", "two"):
        await seeds.function(replica, name)
    node = await replica.join("late")
    await replica.call("POST", "/v1/releases", {"functions": {"one": 1}})
    await node.sync()
    old = node.inventory
    await replica.call("POST", "/v1/releases", {"functions": {"two": 1}})
    await node.sync()
    assert (await node.ask()).status == 204
    return node, old


async def stored_digest(replica: Replica, node: TestNode) -> str:
    """The digest of what control says that the node runs."""

    async def work(conn: Any) -> str:
        digest: str = await conn.fetchval("SELECT digest FROM nodes WHERE id = $1::text::uuid", node.id)
        return digest

    return await replica.services.db.read(work)


async def until_believed(replica: Replica, node: TestNode) -> None:
    """Have the node ask until control says that it runs what it runs."""
    async with deadline(SOON):
        while await stored_digest(replica, node) != wire.digest(node.inventory):
            assert (await node.poll()).status in (200, 204)
            await asyncio.sleep(0.05)


async def test_a_late_poll_at_another_replica_is_corrected_by_the_next_poll(control_site: Site) -> None:
    async with control_site.running() as replica, control_site.running() as other:
        node, old = await at_target(replica)
        late = TestNode(other, node.id, node.credential, old, generation=1)
        assert (await late.ask(report=True)).status == 200
        assert await stored_digest(replica, node) == wire.digest(old)
        await until_believed(replica, node)


async def test_a_late_poll_whose_commit_is_unknown_is_corrected_by_the_next_poll(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as replica:
        node, old = await at_target(replica)
        decisions = replica.services.decisions
        transaction = decisions._db.transaction

        async def unanswered(work: Any) -> None:
            await transaction(work)
            raise UnknownCommit

        monkeypatch.setattr(decisions._db, "transaction", unanswered)
        with pytest.raises(UnknownCommit):
            await decisions.ask(NodeRequest(node.id, wire.digest(old), old, None))
        monkeypatch.undo()
        assert await stored_digest(replica, node) == wire.digest(old)
        await until_believed(replica, node)
