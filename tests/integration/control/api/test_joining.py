"""Nodes: joining, their credentials, and what operators do to them."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from control.protocol import wire
from tests.support.control import Control, module

EMPTY = {"generation": 0, "digest": wire.digest(wire.Inventory())}


async def token(control: Control, **body: Any) -> str:
    return str((await control.ok("POST", "/v1/join-tokens", body))["token"])


async def poll(control: Control, credential: str) -> int:
    return (await control.call("POST", "/v1/poll", {**EMPTY, "inventory": {}}, token=credential)).status


async def test_joining_saves_the_node_and_gives_it_an_id_and_a_credential(control: Control) -> None:
    join = await token(control)
    body = {"name": "n1", "attempt": str(uuid4()), "labels": {"city": "Oslo"}, "capabilities": {"cpu": 2}}
    joined = await control.ok("POST", "/v1/nodes", body, token=join)
    assert joined["group"] == "default"
    node = await control.ok("GET", "/v1/nodes/n1")
    assert node == await control.ok("GET", f"/v1/nodes/{joined['node_id']}")
    assert (node["id"], node["labels"], node["state"], node["at_target"]) == (
        joined["node_id"],
        {"city": "Oslo"},
        "online",
        True,
    )
    assert await poll(control, joined["credential"]) == 204


async def test_the_token_carries_the_fingerprint(control: Control) -> None:
    assert (await token(control)).endswith("." + control.services.certificates.trust.fingerprint)


async def test_a_lost_answer_loses_nothing(control: Control) -> None:
    join = await token(control)
    body = {"name": "n1", "attempt": str(uuid4())}
    first = await control.ok("POST", "/v1/nodes", body, token=join)
    second = await control.ok("POST", "/v1/nodes", body, token=join)
    assert first["node_id"] == second["node_id"]
    assert await poll(control, first["credential"]) == 401
    assert await poll(control, second["credential"]) == 204
    # It was used: the token is of no more use, to this attempt or another.
    for attempt in (body, {"name": "n1", "attempt": str(uuid4())}, {"name": "n2", "attempt": str(uuid4())}):
        reply = await control.call("POST", "/v1/nodes", attempt, token=join)
        assert (reply.status, reply.code) == (401, "token_used")
    assert len(await control.items("/v1/nodes")) == 1


async def test_a_token_is_good_for_one_of_two_at_once(control: Control) -> None:
    join = await token(control)
    replies = await asyncio.gather(
        *(control.call("POST", "/v1/nodes", {"name": f"n{i}", "attempt": str(uuid4())}, token=join) for i in range(4))
    )
    assert sorted(reply.status for reply in replies) == [201, 401, 401, 401]
    assert len(await control.items("/v1/nodes")) == 1


async def test_a_name_is_one_nodes(control: Control) -> None:
    await control.join("n1")
    join = await token(control)
    reply = await control.call("POST", "/v1/nodes", {"name": "n1", "attempt": str(uuid4())}, token=join)
    assert (reply.status, reply.code, reply.body["field"]) == (409, "name_taken", "name")
    # The token wasn't used up by that.
    await control.ok("POST", "/v1/nodes", {"name": "n2", "attempt": str(uuid4())}, token=join)


async def test_tokens_that_are_no_good(control: Control) -> None:
    join = await token(control, expires_in=60)
    body = {"name": "n1", "attempt": str(uuid4())}
    secret = join.partition(".")[0]
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for bad, code in (
        (wrong, "credentials_invalid"),
        (control.token, "credentials_invalid"),
        ("", "credentials_missing"),
    ):
        assert (await control.call("POST", "/v1/nodes", body, token=bad)).code == code
    control.clock.advance(seconds=61)
    assert (await control.call("POST", "/v1/nodes", body, token=join)).code == "token_expired"
    assert await control.items("/v1/nodes") == []


async def test_what_a_node_says_of_itself_is_bounded(control: Control) -> None:
    join = await token(control)
    for field in ("labels", "capabilities"):
        body = {"name": "n1", "attempt": str(uuid4()), field: {"a": "x" * 20_000}}
        reply = await control.call("POST", "/v1/nodes", body, token=join)
        assert (reply.code, reply.body["field"]) == ("invalid_body", field)
    assert await control.items("/v1/nodes") == []


async def test_a_lost_disk_joins_again_as_the_same_node(control: Control) -> None:
    node = await control.join("n1")
    assert await poll(control, node.credential) == 204
    join = await token(control, rejoin="n1")
    wrong = await control.call("POST", "/v1/nodes", {"name": "n2", "attempt": str(uuid4())}, token=join)
    assert (wrong.code, wrong.body["field"]) == ("name_taken", "name")
    assert await poll(control, node.credential) == 204, "nothing has happened yet"
    again = await control.ok("POST", "/v1/nodes", {"name": "n1", "attempt": str(uuid4())}, token=join)
    assert again["node_id"] == node.id
    assert await poll(control, again["credential"]) == 204
    control.services.fleet.nudge()
    await control.services.fleet.refresh()
    assert await poll(control, node.credential) == 401
    assert (await control.call("POST", "/v1/join-tokens", {"rejoin": "n9"})).code == "unknown_node"
    await control.ok("POST", "/v1/groups", {"name": "east"})
    await control.ok("POST", "/v1/nodes/n1/move", {"group": "east"})
    assert (await control.ok("POST", "/v1/join-tokens", {"rejoin": "n1"}))["group"] == "east"


@pytest.mark.parametrize("before", ["syncing", "offline"])
async def test_a_node_that_joins_again_is_online_from_then_on(control: Control, before: str) -> None:
    """Whatever its old disk was about: of that nothing comes any more."""
    node = await control.join("n1")
    await control.push("hello", module("1"))
    await control.release(functions={"hello": 1})
    assert await poll(control, node.credential) == 200
    if before == "offline":
        control.clock.advance(minutes=5)
        await control.services.monitor().look(control.clock.now())
    assert (await control.ok("GET", "/v1/nodes/n1"))["state"] == before
    join, since = await token(control, rejoin="n1"), control.clock.now()
    await control.ok("POST", "/v1/nodes", {"name": "n1", "attempt": str(uuid4())}, token=join)
    shown = await control.ok("GET", "/v1/nodes/n1")
    assert shown["state"] == "online"
    assert since <= datetime.fromisoformat(shown["state_since"]) <= control.clock.now()
    # The new disk never polls.
    control.clock.advance(minutes=5)
    await control.services.monitor().look(control.clock.now())
    assert (await control.ok("GET", "/v1/nodes/n1"))["state"] == "offline"


async def test_a_rotated_credential_takes_over_at_its_first_use(control: Control) -> None:
    node = await control.join("n1")
    assert await poll(control, node.credential) == 204
    lost = (await control.ok("POST", "/v1/nodes/self/credential", token=node.credential))["credential"]
    new = (await control.ok("POST", "/v1/nodes/self/credential", token=node.credential))["credential"]
    assert await poll(control, node.credential) == 204, "the new one wasn't used yet"
    assert await poll(control, new) == 204
    await control.services.fleet.refresh()
    assert await poll(control, node.credential) == 401
    assert await poll(control, lost) == 401
    assert await poll(control, new) == 204


async def test_a_move_changes_the_target(control: Control) -> None:
    await control.ok("POST", "/v1/groups", {"name": "east"})
    await control.push("f", module("f"))
    await control.release(group="east", functions={"f": 1})
    node = await control.join("n1")
    moved = await control.ok("POST", "/v1/nodes/n1/move", {"group": "east"})
    assert (moved["group"], moved["target_generation"], moved["at_target"]) == ("east", 2, False)
    again = await control.ok("POST", "/v1/nodes/n1/move", {"group": "east"})
    assert again["target_generation"] == 2, "it is there already"
    reply = await control.call("POST", "/v1/poll", {**EMPTY, "inventory": {}}, token=node.credential)
    assert (reply.body["type"], reply.body["generation"]) == ("plan", 2)
    assert (await control.call("POST", "/v1/nodes/n1/move", {"group": "west"})).code == "unknown_group"
    assert [n["name"] for n in await control.items("/v1/nodes?group=east&state=syncing")] == ["n1"]
    assert await control.items("/v1/nodes?group=default") == []


async def test_a_revoked_node_is_refused_and_stays_in_the_lists(control: Control) -> None:
    node = await control.join("n1")
    assert await poll(control, node.credential) == 204
    await control.ok("POST", f"/v1/nodes/{node.id}/revoke")
    assert await poll(control, node.credential) == 401
    assert [n["name"] for n in await control.items("/v1/nodes")] == ["n1"]


async def test_a_removed_node_is_gone_and_its_name_is_free(control: Control) -> None:
    node = await control.join("n1")
    await control.push("f", module("f"))
    await control.release(functions={"f": 1})
    reply = await control.call("POST", "/v1/poll", {**EMPTY, "inventory": {}}, token=node.credential)
    sync = reply.body["sync_id"]
    await control.ok("DELETE", "/v1/nodes/n1")
    assert await poll(control, node.credential) == 401
    assert await control.items("/v1/nodes") == []
    assert (await control.call("GET", "/v1/nodes/n1")).code == "unknown_node"
    assert (await control.call("GET", f"/v1/nodes/{node.id}")).code == "unknown_node"
    [logged] = await control.items("/v1/syncs")
    assert (logged["id"], logged["status"]) == (sync, "superseded")
    assert (await control.join("n1")).id != node.id


async def test_nodes_are_paged_by_name(control: Control) -> None:
    for name in ("c", "a", "b"):
        await control.join(name)
    assert [n["name"] for n in await control.items("/v1/nodes?limit=1")] == ["a", "b", "c"]


async def test_unknown_nodes(control: Control) -> None:
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/move", {"group": "default"}),
        ("POST", "/revoke", None),
        ("POST", "/retry", None),
    ]
    for node in ("nobody", "00000000-0000-0000-0000-000000000000"):
        for method, path, body in calls:
            reply = await control.call(method, f"/v1/nodes/{node}{path}", body)
            assert (reply.status, reply.code, reply.body["field"]) == (404, "unknown_node", "node")
