"""The audit log on real servers: a row for each change, with its actor, address, call id, and what it changed."""

from typing import Any
from uuid import uuid4

from tests.support.control import Control, module


def secret(token: str) -> str:
    """The part of a token that only its owner knows."""
    return token.split("_", 2)[2].partition(".")[0]


async def newest(control: Control, action: str) -> Any:
    """The newest row of an action."""
    return next(entry for entry in await control.items("/v1/audit") if entry["action"] == action)


async def test_writes_are_in_the_audit(control: Control) -> None:
    await control.push("hello", module("1"))
    await control.release(functions={"hello": 1})
    deployer = await control.operator("deployer", "deploy")
    reply = await control.call("POST", "/v1/groups", {"name": "east"}, token=deployer)
    entries = await control.items("/v1/audit?limit=2")
    assert [(e["actor_kind"], e["actor"], e["action"], e["target"]) for e in entries[:4]] == [
        ("operator", "deployer", "group.create", "east"),
        ("operator", "admin", "operator.create", "deployer"),
        ("operator", "admin", "release.create", "default/1"),
        ("operator", "admin", "function.push", "hello@1"),
    ]
    assert entries[0]["address"] == "127.0.0.1"
    assert entries[0]["call_id"] == reply.headers["x-request-id"]
    assert secret(deployer) not in str(entries)


async def test_joins_rejoins_and_rotations_are_in_the_audit(control: Control) -> None:
    made = await control.ok("POST", "/v1/join-tokens", {"group": "default"})
    body = {"name": "shop-1", "attempt": str(uuid4())}
    reply = await control.call("POST", "/v1/nodes", body, token=made["token"])
    joined = await newest(control, "node.join")
    first = reply.body["credential"]
    assert (joined["actor_kind"], joined["actor"], joined["target"]) == ("node", "shop-1", "shop-1")
    assert (joined["address"], joined["call_id"]) == ("127.0.0.1", reply.headers["x-request-id"])
    assert joined["details"] == {"join_token": made["id"]}
    [credential] = joined["after"].pop("credentials")
    assert joined["after"] == {"id": reply.body["node_id"], "group": "default"}
    assert joined["before"] == {}

    # The same attempt again, whose answer was lost: the first credential ends.
    second = (await control.ok("POST", "/v1/nodes", body, token=made["token"]))["credential"]
    again = await newest(control, "node.join-again")
    assert again["before"]["credentials"] == [credential]

    rotated = (await control.ok("POST", "/v1/nodes/self/credential", token=second))["credential"]
    rotation = await newest(control, "node.rotate")
    assert (rotation["actor_kind"], rotation["actor"], rotation["target"]) == ("node", "shop-1", "shop-1")
    assert rotation["before"]["credentials"] == again["after"]["credentials"]
    assert len(rotation["after"]["credentials"]) == 2

    made = await control.ok("POST", "/v1/join-tokens", {"rejoin": "shop-1"})
    third = await control.ok("POST", "/v1/nodes", {**body, "attempt": str(uuid4())}, token=made["token"])
    rejoined = await newest(control, "node.rejoin")
    assert rejoined["before"]["credentials"] == sorted(rotation["after"]["credentials"])
    assert rejoined["target"] == "shop-1"

    whole = str(await control.items("/v1/audit"))
    for token in (first, second, rotated, third["credential"], made["token"]):
        assert len(secret(token)) == 43
        assert secret(token) not in whole
