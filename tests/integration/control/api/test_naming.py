"""What operators call nodes and groups: other names, labels, and the end of a group."""

import asyncio
from typing import Any
from uuid import uuid4

from control.protocol import wire
from tests.support import deploy
from tests.support.control import Control, module, until
from tests.support.deadlines import deadline
from tests.support.replica import Site

POLL = {"generation": 0, "digest": wire.digest(wire.Inventory()), "inventory": {}}


async def audited(control: Control, action: str) -> list[Any]:
    return await control.items(f"/v1/audit?action={action}")


async def test_a_node_gets_another_name_and_keeps_everything_else(control: Control) -> None:
    node = await control.join("edge-7", labels={"site": "tokyo"})
    renamed = await control.ok("POST", "/v1/nodes/edge-7/rename", {"name": "tokyo-1"}, key="once")
    assert (renamed["name"], renamed["id"], renamed["labels"]) == ("tokyo-1", node.id, {"site": "tokyo"})
    assert [n["name"] for n in await control.items("/v1/nodes")] == ["tokyo-1"]
    assert (await control.call("GET", "/v1/nodes/edge-7")).code == "unknown_node"
    # The same again is the same, and changes nothing.
    assert await control.ok("POST", "/v1/nodes/edge-7/rename", {"name": "tokyo-1"}, key="once") == renamed
    await control.ok("POST", "/v1/nodes/tokyo-1/rename", {"name": "tokyo-1"})
    [row] = await audited(control, "node.rename")
    assert (row["target"], row["before"], row["after"]) == (
        "edge-7",
        {"name": "edge-7"},
        {"name": "tokyo-1", "id": node.id},
    )
    # The old name is free, the new one isn't.
    await control.join("edge-7")
    refused = await control.call("POST", "/v1/nodes/edge-7/rename", {"name": "tokyo-1"})
    assert (refused.status, refused.code) == (409, "name_taken")
    assert (await control.call("POST", "/v1/nodes/edge-7/rename", {"name": "No"})).status == 422


async def test_a_node_learns_its_name_by_a_poll_that_is_held(control: Control) -> None:
    node = await control.join("edge-7")
    poll = {**POLL, "name": "edge-7"}
    assert (await control.call("POST", "/v1/poll", poll, token=node.credential)).status == 204
    held = asyncio.create_task(control.call("POST", "/v1/poll", {**poll, "wait": 60}, token=node.credential))
    async with deadline(60):
        while node.id not in control.services.fleet.waiters:
            await asyncio.sleep(0.01)
    await control.ok("POST", "/v1/nodes/edge-7/rename", {"name": "tokyo-1"})
    told = await held
    assert (told.status, told.body) == (200, {"type": "renamed", "name": "tokyo-1"})
    known = await control.call("POST", "/v1/poll", {**poll, "name": "tokyo-1"}, token=node.credential)
    # A node of an earlier version says no name, and is told none.
    silent = await control.call("POST", "/v1/poll", POLL, token=node.credential)
    assert (known.status, silent.status) == (204, 204)


async def test_a_token_to_join_again_has_the_new_name(control: Control) -> None:
    node = await control.join("edge-7")
    token = (await control.ok("POST", "/v1/join-tokens", {"rejoin": "edge-7"}))["token"]
    await control.ok("POST", "/v1/nodes/edge-7/labels", {"set": {"site": "tokyo"}})
    await control.ok("POST", "/v1/nodes/edge-7/rename", {"name": "tokyo-1"})
    body = {"name": "edge-7", "attempt": str(uuid4())}
    refused = await control.call("POST", "/v1/nodes", body, token=token)
    assert (refused.code, "tokyo-1" in refused.body["detail"]) == ("name_taken", True)
    joined = await control.ok("POST", "/v1/nodes", {**body, "name": "tokyo-1"}, token=token)
    assert joined["node_id"] == node.id
    # Without labels it keeps those that it has.
    assert (await control.ok("GET", "/v1/nodes/tokyo-1"))["labels"] == {"site": "tokyo"}


async def test_labels_are_set_and_taken_away(control: Control) -> None:
    await control.join("edge-7", labels={"site": "tokyo", "tier": "1"})
    path = "/v1/nodes/edge-7/labels"
    changed = await control.ok("POST", path, {"set": {"site": "osaka", "floor": "2"}, "remove": ["tier", "none"]})
    assert changed["labels"] == {"site": "osaka", "floor": "2"}
    assert [n["name"] for n in await control.items("/v1/nodes?label=site=osaka")] == ["edge-7"]
    assert (await control.ok("POST", path, {"set": {"floor": "2"}}))["labels"] == changed["labels"]
    [row] = await audited(control, "node.label")
    assert row["before"] == {"labels": {"site": "tokyo", "tier": "1"}}
    assert row["after"] == {"labels": {"site": "osaka", "floor": "2"}}
    for body in ({"set": {"a=b": ""}}, {"set": {"a": "x"}, "remove": ["a"]}, {"set": {"a-": "x"}}):
        assert (await control.call("POST", path, body)).code == "invalid_body"
    told = (await control.call("POST", path, {"set": {"si%te": "x"}})).body["detail"]
    assert "a label's key of letters and digits" in told
    assert "regex" not in told
    too_many = {"set": {f"k{n}": "x" * 200 for n in range(100)}}
    assert (await control.call("POST", path, too_many)).code == "invalid_body"
    assert (await control.ok("GET", "/v1/nodes/edge-7"))["labels"] == changed["labels"]


async def test_a_group_is_deleted_when_nothing_needs_it(control: Control) -> None:
    await control.push("orders", module("orders"))
    await control.ok("POST", "/v1/groups", {"name": "shops"})
    release = await control.release(group="shops", functions={"orders": 1})
    await control.join("edge-7", "shops")
    token = await control.ok("POST", "/v1/join-tokens", {"group": "shops"})
    grants = [{"role": "deploy", "group": "shops"}]
    await control.ok("POST", "/v1/operators", {"name": "ci", "grants": grants})

    async def refused() -> str:
        reply = await control.call("DELETE", "/v1/groups/shops")
        assert (reply.status, reply.code) == (409, "group_in_use")
        return str(reply.body["detail"])

    text = await refused()
    assert "edge-7" in text
    assert token["id"] in text
    assert "ci" in text
    await control.ok("DELETE", "/v1/nodes/edge-7")
    assert "edge-7" not in await refused()
    await control.ok("DELETE", f"/v1/join-tokens/{token['id']}")
    assert "join tokens" not in await refused()
    await control.ok("DELETE", "/v1/operators/ci")
    await control.ok("DELETE", "/v1/groups/shops", key="once")
    assert (await control.call("DELETE", "/v1/groups/shops", key="once")).status == 204
    assert (await control.call("DELETE", "/v1/groups/shops")).code == "unknown_group"

    assert [g["name"] for g in await control.items("/v1/groups")] == ["default"]
    assert [g["name"] for g in (await control.ok("GET", "/v1/fleet"))["groups"]] == ["default"]
    assert await control.items("/v1/releases") == []
    for path in ("/v1/releases/shops/1", "/v1/nodes?group=shops", "/v1/fleet?group=shops"):
        assert (await control.call("GET", path)).code == "unknown_group", path
    # Its release is still in the audit log, and holds no version.
    [row] = await audited(control, "release.create")
    assert (row["target"], row["after"]) == ("shops/1", {"functions": {"orders": 1}})
    assert [row["target"] for row in await audited(control, "group.delete")] == ["shops"]
    await control.ok("DELETE", "/v1/functions/orders/versions/1")
    # The name can be used again; generations go on.
    await control.ok("POST", "/v1/groups", {"name": "shops"})
    await control.push("stock", module("stock"))
    again = await control.release(group="shops", functions={"stock": 1})
    assert (again["number"], again["generation"] > release["generation"]) == (1, True)


async def test_the_group_that_is_meant_where_none_is_named_stays(control: Control) -> None:
    reply = await control.call("DELETE", "/v1/groups/default")
    assert (reply.status, reply.code) == (409, "group_in_use")


async def test_another_replica_hears_of_a_group_that_is_deleted(control_site: Site) -> None:
    """Else the calls of its nodes would count there as those of a later group of the same name."""
    async with control_site.running() as here, control_site.running() as there:
        await deploy.ok(here, "POST", "/v1/groups", {"name": "shops"})
        await deploy.push(here, "orders", module("orders"))
        await deploy.release(here, "shops", functions={"orders": 1})

        async def known() -> bool:
            return "shops" in {group.name for group in there.services.fleet.groups.values() if group.release_id}

        await until(known)
        await deploy.ok(here, "DELETE", "/v1/groups/shops")

        async def forgotten() -> bool:
            return "shops" not in {group.name for group in there.services.fleet.groups.values()}

        await until(forgotten)
