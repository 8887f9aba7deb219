"""A poll tells a node who watches it: at once, also while it is held, and never in place of work."""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec

from control.protocol import wire
from control.storage.announcements import Changed
from tests.support import seeds
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, Site, TestNode

HOLD = 50.0
SOON = 35.0
"""Seconds; a poll that isn't woken is held for 37 s at least."""
INSERT = (
    "INSERT INTO watches (id, viewer, operator, node_id, group_ids, question, rate, made_at, expires_at) "
    "VALUES ($1, 'test', 'admin', $2, $3, $4, 5, $5, $6)"
)


async def begin(replica: Replica, node: str | None = None, groups: Collection[str] | None = None) -> str:
    """Have a watch announced, as the replica of an operator does; return its id."""
    id, now = str(uuid4()), datetime.now(UTC)
    question = {"since": now.isoformat()}
    values = (id, node, None if groups is None else list(groups), question, now, now + timedelta(minutes=5))

    async def work(conn: Any) -> None:
        await conn.execute(INSERT, *values)
        await Changed(watches=True).announce(conn)

    await replica.services.databases.background.transaction(work)
    return id


async def end(replica: Replica, id: str) -> None:
    async def work(conn: Any) -> None:
        await conn.execute("DELETE FROM watches WHERE id = $1", id)
        await Changed(watches=True).announce(conn)

    await replica.services.databases.background.transaction(work)


async def join(replica: Replica, name: str, group: str = "default") -> TestNode:
    node = await replica.join(name, group)
    node.protocol = 2
    await node.poll()
    return node


def questions(node: TestNode, answer: Answered) -> list[str]:
    """The ids of the watches that an answer tells; the node knows them now."""
    assert answer.status == 200, answer
    watch = msgspec.json.decode(answer.body, type=wire.Answer)
    assert isinstance(watch, wire.Watch), answer
    node.watching = watch.digest
    return [question.id for question in watch.questions]


async def held(replica: Replica, *nodes: TestNode) -> None:
    """Wait until control holds a poll of each."""
    async with deadline(SOON):
        while not {node.id for node in nodes} <= replica.services.fleet.waiters.keys():
            await asyncio.sleep(0.01)


async def test_held_polls_of_the_watched_nodes_alone_are_answered_by_every_replica(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as one, control_site.running(hold=HOLD) as other:
        watched, moved = await join(one, "watched"), await join(one, "other")
        old = await one.join("old")
        await old.poll()
        elsewhere = TestNode(other, watched.id, watched.credential, watched.inventory, protocol=2)
        first = asyncio.ensure_future(elsewhere.ask(HOLD))
        others = [asyncio.ensure_future(node.ask(HOLD)) for node in (moved, old)]
        await held(other, elsewhere)
        await held(one, moved, old)
        id = await begin(one, watched.id)
        async with asyncio.timeout(SOON):
            assert questions(elsewhere, await first) == [id]
        assert not any(poll.done() for poll in others)
        # It knows now, and its next poll is held; the end is told as the beginning was.
        poll = asyncio.ensure_future(elsewhere.ask(HOLD))
        await held(other, elsewhere)
        await end(one, id)
        async with asyncio.timeout(SOON):
            assert questions(elsewhere, await poll) == []
        assert elsewhere.watching == ""
        for poll in others:
            assert not poll.done()
            poll.cancel()


async def test_an_older_edge_is_told_nothing(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("old")
        await node.poll()
        await begin(replica)
        await replica.services.fleet.refresh()
        assert (await node.ask()).status == 204
        node.protocol = 2
        assert len(questions(node, await node.ask())) == 1


async def test_a_plan_goes_first(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await join(replica, "one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        id = await begin(replica)
        await replica.services.fleet.refresh()
        await node.sync()
        assert questions(node, await node.ask()) == [id]
        # A poll that comes with an old digest gets the plan that has come up, too.
        node.watching = ""
        await seeds.function(replica, "bye")
        await seeds.release(replica, functions={"bye": 1})
        await node.plan()


async def test_a_node_that_moves_to_another_group_is_told(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        node = await join(replica, "one")
        group = replica.services.fleet.nodes[node.id].group_id
        id = await begin(replica, node.id, [group])
        await replica.services.fleet.refresh()
        assert questions(node, await node.ask()) == [id]
        assert (await replica.call("POST", "/v1/groups", {"name": "apart"})).status == 201
        poll = asyncio.ensure_future(node.ask(HOLD))
        await held(replica, node)
        moved = await replica.call("POST", "/v1/nodes/one/move", {"group": "apart"})
        assert moved.status == 200, moved
        async with asyncio.timeout(SOON):
            assert questions(node, await poll) == []


async def test_a_watch_whose_lease_has_passed_is_none(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await join(replica, "one")
        id = await begin(replica)
        await replica.services.databases.background.transaction(
            lambda conn: conn.execute("UPDATE watches SET expires_at = $2 WHERE id = $1", id, datetime.now(UTC))
        )
        await replica.services.fleet.refresh_watches()
        assert replica.services.fleet.watches.alive == {}
        assert (await node.ask()).status == 204
