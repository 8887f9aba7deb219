"""What nodes tell of what they can run, by their polls: stored once, asked for where it isn't known."""

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from control.protocol import wire
from control.sync import requirements
from control.sync.reconciler import NodeRequest, Reconciler
from edge_runtime.sync import capabilities as told
from tests.support import seeds
from tests.support.replica import Answered, Replica, Site, TestNode

OLD = {"abi": ["wagi"], "python": "3.11.2"}
NEW = {"abi": ["wagi", "direct"], "python": "3.13.5"}


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        yield replica


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes of each poll that went to the database."""
    nodes: list[str] = []
    real = Reconciler.write

    async def counted(self: Reconciler, requests: list[NodeRequest], *more: Any) -> Any:
        nodes.extend(request.node_id for request in requests)
        return await real(self, requests, *more)

    monkeypatch.setattr(Reconciler, "write", counted)
    return nodes


async def joined(replica: Replica, name: str = "one") -> TestNode:
    """A node that has joined with `OLD`, and polls."""
    token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
    join = wire.Join(name, "00000000-0000-4000-8000-000000000001", capabilities=OLD)
    answer = (await replica.call("POST", "/v1/nodes", join, token=token)).json()
    node = TestNode(replica, answer["node_id"], answer["credential"], capabilities=OLD)
    assert (await node.poll()).status == 204
    return node


def wanted(answer: Answered) -> bool:
    return answer.status == 200 and bool(answer.json() == {"type": "report"})


async def test_what_changed_is_told_at_the_first_poll_and_once(replica: Replica, decided: list[str]) -> None:
    node = await joined(replica)
    assert (await replica.node("one"))["capabilities"] == OLD
    decided.clear()
    assert (await node.ask()).status == 204
    assert decided == [], "a poll at target touches no database"
    # Its software was upgraded.
    node.capabilities = NEW
    assert wanted(await node.ask())
    assert wanted(await node.ask()), "and its answer may have been lost"
    assert (await replica.node("one"))["capabilities"] == OLD
    assert (await node.ask(report=True)).status == 204
    assert (await replica.node("one"))["capabilities"] == NEW
    assert (await node.ask()).status == 204, "also where that answer was lost"
    decided.clear()
    for _ in range(3):
        assert (await node.ask()).status == 204
    assert decided == []


async def test_the_protocol_is_stored_with_it(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await joined(replica)
    assert (await replica.node("one"))["protocol"] == 1
    poll = wire.Poll(0, wire.digest(node.inventory), capabilities_digest="later", capabilities=NEW, protocol=2)
    assert (await replica.call("POST", "/v1/poll", poll, token=node.credential)).status == 204
    shown = await replica.node("one")
    assert (shown["capabilities"], shown["protocol"]) == (NEW, 2)


async def test_every_replica_knows_what_one_was_told(control_site: Site, decided: list[str]) -> None:
    async with control_site.running() as one, control_site.running() as two:
        node = await joined(one)
        node.replica = two
        assert (await node.ask()).status == 204
        node.capabilities = NEW
        assert wanted(await node.ask())
        # It is told to the other one, and the first one's memory has the old digest.
        node.replica = one
        assert (await node.ask(report=True)).status == 204
        node.replica = two
        assert (await node.ask()).status == 204
        decided.clear()
        assert (await node.ask()).status == 204
        assert decided == []
    async with control_site.running() as later:
        node.replica = later
        assert (await node.ask()).status == 204
        assert decided == [], "a replica that starts needs no node to tell it again"


async def test_a_node_of_an_older_version_tells_nothing_and_goes_on(replica: Replica) -> None:
    node = await joined(replica)
    node.capabilities = None
    assert (await node.ask()).status == 204
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    await node.sync()
    assert (await node.ask()).status == 204
    shown = await replica.node("one")
    assert (shown["at_target"], shown["capabilities"]) == (True, OLD)


async def test_a_plan_waits_until_they_are_told(replica: Replica) -> None:
    node = await joined(replica)
    node.capabilities = NEW
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    assert wanted(await node.ask())
    await node.sync()
    shown = await replica.node("one")
    assert (shown["at_target"], shown["capabilities"]) == (True, NEW)
    assert (await node.ask()).status == 204


async def test_an_upgrade_in_the_middle_of_a_sync_is_told(replica: Replica) -> None:
    node = await joined(replica)
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    plan = await node.plan()
    node.capabilities = NEW
    assert wanted(await node.ask())
    assert (await node.plan()).sync_id == plan.sync_id
    shown = await replica.node("one")
    assert (shown["state"], shown["capabilities"]) == ("syncing", NEW)


async def test_a_lost_disk_has_to_tell_anew(replica: Replica) -> None:
    node = await joined(replica)
    node.capabilities = NEW
    await node.poll()
    token = (await replica.call("POST", "/v1/join-tokens", {"rejoin": "one"})).json()["token"]
    join = wire.Join("one", "00000000-0000-4000-8000-000000000002", capabilities=OLD)
    node.credential = (await replica.call("POST", "/v1/nodes", join, token=token)).json()["credential"]
    assert (await replica.node("one"))["capabilities"] == OLD
    await node.poll()
    assert (await replica.node("one"))["capabilities"] == NEW


async def test_what_is_wrong_with_them_is_said_and_changes_nothing(replica: Replica) -> None:
    node = await joined(replica)
    before = await replica.node("one")
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for document, more, field, said in (
        ({"a": "x" * requirements.LIMIT}, {}, "capabilities", "16384 bytes at most"),
        ({"a": deep}, {}, "capabilities", "nested too deeply"),
        ({"a": ["\0"]}, {}, "capabilities.a[0]", "NUL"),
        ([], {}, "capabilities", "Expected `object"),
        (NEW, {"capabilities_digest": ""}, "capabilities_digest", "come with their digest"),
        (NEW, {"capabilities_digest": "x" * 65}, "capabilities_digest", "64"),
        (NEW, {"protocol": 0}, "protocol", ">= 1"),
        (NEW, {"protocol": 2**63}, "protocol", "<= 2147483647"),
    ):
        poll = {"generation": 0, "digest": wire.digest(node.inventory), "capabilities_digest": "other"}
        body = poll | {"capabilities": document} | more
        answer = await replica.call("POST", "/v1/poll", json.dumps(body).encode(), token=node.credential)
        assert answer.status == 422, (answer.body, field)
        problem = answer.json()
        assert (problem["code"], problem["field"]) == ("invalid_body", field)
        assert said in problem["detail"]
    after = await replica.node("one")
    assert {**after, "last_seen_at": None, "last_sync_at": None} == {
        **before,
        "last_seen_at": None,
        "last_sync_at": None,
    }
    assert (await node.ask()).status == 204


async def test_a_join_says_the_same_of_what_is_wrong(replica: Replica) -> None:
    token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for field, value in (("capabilities", {"a": deep}), ("protocol", 2**63)):
        body = {"name": "one", "attempt": "00000000-0000-4000-8000-000000000001", field: value}
        # `Replica.call` writes nothing that is nested so deeply.
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        async with replica.session.post(f"{replica.url}/v1/nodes", data=json.dumps(body), headers=headers) as answer:
            assert (answer.status, orjson.loads(await answer.read())["field"]) == (422, field)


def test_a_real_nodes_document_fits() -> None:
    document = told.document()
    poll = wire.Poll(2**31, "0" * 64, "x" * 36, 25.0, capabilities_digest=told.digest(document))
    assert len(wire.canonical(document)) < requirements.LIMIT / 4
    assert len(wire.canonical(poll)) < 512, "each poll has the digest alone"
