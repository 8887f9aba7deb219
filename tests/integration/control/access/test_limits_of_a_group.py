"""An admin of one group and what isn't that group's: nodes by their ids, other operators, lists, and what was sent
before."""

from typing import Any

import asyncpg

from tests.support.control import Control, Joined
from tests.support.operation_rules import RULES

NORTH_ADMIN = [{"role": "admin", "group": "north"}]
BOTH = [{"role": "read", "group": group} for group in ("north", "south")]


async def north_admin(control: Control, **more: Any) -> str:
    """The token of an admin of the group north, which is made with the group south."""
    for group in ("north", "south"):
        await control.ok("POST", "/v1/groups", {"name": group})
    made = await control.ok("POST", "/v1/operators", {"name": "north-admin", "grants": NORTH_ADMIN, **more})
    return str(made["token"])


async def test_a_node_of_another_group_isnt_there_by_its_id_either(control: Control) -> None:
    token = await north_admin(control)
    node = await control.join("s1", "south")
    by_id = Joined(id=node.id, name=node.id, credential=node.credential)
    before = await control.ok("GET", "/v1/nodes/s1")
    asked = 0
    for (method, pattern), rule in RULES.items():
        if "{node}" not in pattern:
            continue
        for named in (node, by_id):
            reply = await control.call(method, rule.path("north", named), rule.body("north", named), token=token)
            assert (reply.status, reply.code) == (404, "unknown_node"), (method, pattern)
            assert "south" not in str(reply.body)
            asked += 1
    assert asked >= 16
    reply = await control.call("POST", "/v1/join-tokens", {"rejoin": node.id}, token=token)
    assert (reply.status, reply.code) == (404, "unknown_node")
    assert await control.ok("GET", "/v1/nodes/s1") == before


async def test_only_an_admin_of_all_groups_deletes_one(control: Control) -> None:
    token = await north_admin(control)
    for group in ("north", "south", "nowhere"):
        reply = await control.call("DELETE", f"/v1/groups/{group}", token=token)
        assert (reply.status, reply.code) == (403, "role_insufficient")
    assert {group["name"] for group in await control.items("/v1/groups")} == {"default", "north", "south"}


async def test_an_operator_of_another_group_too_is_left_alone(control: Control) -> None:
    token = await north_admin(control)
    made = await control.ok("POST", "/v1/operators", {"name": "both", "grants": BOTH})
    for method, path, body in (
        ("POST", "/rotate", {"keep_old": 0}),
        ("POST", "/change", {"endless": True}),
        ("DELETE", "", None),
    ):
        # As one that there isn't: nobody learns by asking who else is an operator.
        told = []
        for name in ("both", "none"):
            reply = await control.call(method, f"/v1/operators/{name}{path}", body, token=token)
            told.append((reply.status, reply.code, reply.body["detail"].replace(name, "")))
        assert told[0] == told[1]
        assert told[0][:2] == (404, "unknown_operator"), path
    assert (await control.call("GET", "/v1/operators/both", token=token)).code == "unknown_operator"
    assert (await control.call("GET", "/v1/groups", token=made["token"])).status == 200


async def test_who_may_nothing_at_present_is_for_an_admin_of_all_groups(control: Control, database_url: str) -> None:
    """As somebody whom a provider tells of in no group any more: a revocation would keep them out for good."""
    token = await north_admin(control)
    await control.operator("anna", "read")
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE operators SET grants = '[]'::jsonb WHERE name = 'anna'")
    await connection.close()
    assert {o["name"] for o in (await control.ok("GET", "/v1/operators", token=token))["items"]} == {"north-admin"}
    assert (await control.call("GET", "/v1/operators/anna", token=token)).code == "unknown_operator"
    reply = await control.call("DELETE", "/v1/operators/anna", token=token)
    assert (reply.status, reply.code) == (404, "unknown_operator")
    assert "anna" in {operator["name"] for operator in await control.items("/v1/operators")}
    await control.ok("DELETE", "/v1/operators/anna")


async def test_a_request_again_gives_no_token_that_is_good_for_longer(control: Control) -> None:
    """An operator was made endless since by somebody else: who made it ends, so it gets no token of it again."""
    token = await north_admin(control, expires_in=3600)
    body = {"name": "brief", "grants": [{"role": "read", "group": "north"}], "expires_in": 600}
    made = await control.ok("POST", "/v1/operators", body, token=token, key="made-once")
    assert (await control.call("POST", "/v1/operators", body, token=token, key="made-once")).status == 201
    await control.ok("POST", "/v1/operators/brief/change", {"endless": True})
    reply = await control.call("POST", "/v1/operators", body, token=token, key="made-once")
    assert (reply.status, reply.code) == (403, "role_insufficient")
    assert made["token"] not in str(reply.body)


async def test_what_is_counted_of_nodes_is_of_the_operators_groups(control: Control) -> None:
    token = await north_admin(control)
    for name, group in (("n1", "north"), ("s1", "south")):
        await control.join(name, group)
    trust = await control.ok("GET", "/v1/certificates/nodes", token=token)
    assert (trust["nodes"], {node["name"] for node in trust["lacking"]}) == (1, {"n1"})
    assert {group["name"] for group in (await control.ok("GET", "/v1/fleet", token=token))["groups"]} == {"north"}
