"""Join tokens: bound to their node, ended with it and with their operator, listed and revoked."""

import hashlib
from typing import Any
from uuid import uuid4

import pytest

from control.protocol import wire
from tests.support.control import Control, Reply, module
from tests.support.replica import Site, deaf

POLL = {"generation": 0, "digest": wire.digest(wire.Inventory()), "inventory": {}}


async def made(control: Control, **body: Any) -> Any:
    return await control.ok("POST", "/v1/join-tokens", body)


async def join(control: Control, token: str, name: str, attempt: str = "") -> Reply:
    body = {"name": name, "attempt": attempt or str(uuid4())}
    return await control.call("POST", "/v1/nodes", body, token=token)


async def states(control: Control) -> dict[str, str]:
    return {token["id"]: token["state"] for token in await control.items("/v1/join-tokens")}


@pytest.mark.parametrize("ended", ["replaced", "rejoined", "revoked", "removed"])
async def test_a_rejoin_token_ends_with_what_happens_to_its_node(control: Control, ended: str) -> None:
    await control.ok("POST", "/v1/groups", {"name": "east"})
    await control.join("n1")
    await control.join("n2")
    old = await made(control, rejoin="n1", expires_in=30 * 86400)
    kept = [(await made(control, **body))["id"] for body in ({}, {"rejoin": "n2"})]
    if ended == "revoked":
        await control.ok("POST", "/v1/nodes/n1/revoke")
    elif ended == "rejoined":
        other = await made(control, rejoin="n1")
        assert (await join(control, other["token"], "n1")).status == 201
    else:
        await control.ok("DELETE", "/v1/nodes/n1")
    if ended == "replaced":
        another = await control.join("n1", "east")
    refused = await join(control, old["token"], "n1")
    assert (refused.status, refused.code) == (401, "token_revoked")
    now = await states(control)
    assert (now[old["id"]], [now[id] for id in kept]) == ("revoked", ["open", "open"])
    if ended == "replaced":
        assert (await control.call("POST", "/v1/poll", POLL, token=another.credential)).status == 204


@pytest.mark.parametrize("ended", ["rejoined", "revoked", "removed"])
async def test_an_attempt_gets_no_further_credential_once_its_node_ended(control: Control, ended: str) -> None:
    """Its answer may have been read by somebody else: it is good only while nothing else has happened."""
    first, attempt = await made(control), str(uuid4())
    assert (await join(control, first["token"], "n1", attempt)).status == 201
    if ended == "rejoined":
        other = await made(control, rejoin="n1")
        assert (await join(control, other["token"], "n1")).status == 201
    elif ended == "revoked":
        await control.ok("POST", "/v1/nodes/n1/revoke")
    else:
        await control.ok("DELETE", "/v1/nodes/n1")
    again = await join(control, first["token"], "n1", attempt)
    assert (again.status, again.code) == (401, "token_revoked")
    assert (await states(control))[first["id"]] == "used"


async def test_a_rejoin_token_by_the_nodes_id_lets_it_join_again(control: Control) -> None:
    node = await control.join("n1")
    token = await made(control, rejoin=node.id)
    again = await join(control, token["token"], "n1")
    assert (again.status, again.body["node_id"]) == (201, node.id)


async def test_a_rejoin_token_without_a_node_is_refused(control: Control) -> None:
    """Control of an earlier version made it, which knew the name alone."""
    node = await control.join("n1")
    token = await made(control, rejoin="n1")
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE join_tokens SET rejoin_node = NULL WHERE id = $1", token["id"])
    )
    assert (await join(control, token["token"], "n1")).code == "token_revoked"
    assert (await states(control))[token["id"]] == "revoked"
    assert (await control.call("POST", "/v1/poll", POLL, token=node.credential)).status == 204


async def test_a_rejoin_token_is_for_its_node_alone_whoever_has_the_name_now(control: Control) -> None:
    """Control of an earlier version, which runs beside this one for a while, removes a node and ends no token."""
    await control.join("n1")
    token = await made(control, rejoin="n1")
    await control.ok("DELETE", "/v1/nodes/n1")
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE join_tokens SET revoked_at = NULL WHERE id = $1", token["id"])
    )
    another = await control.join("n1")
    refused = await join(control, token["token"], "n1")
    assert (refused.status, refused.code) == (401, "token_used")
    assert (await control.call("POST", "/v1/poll", POLL, token=another.credential)).status == 204


async def test_an_operators_tokens_end_with_the_operator(control: Control) -> None:
    anna = await control.operator("anna", "admin")
    await control.join("n1")
    tokens = [
        await control.ok("POST", "/v1/join-tokens", body, token=anna, key=f"k{n}")
        for n, body in enumerate(({}, {"rejoin": "n1"}))
    ]
    kept = await made(control)
    await control.ok("DELETE", "/v1/operators/anna")
    for token, name in zip(tokens, ("n2", "n1"), strict=True):
        refused = await join(control, token["token"], name)
        assert (refused.status, refused.code) == (401, "token_revoked")
    assert (await join(control, kept["token"], "n2")).status == 201


async def test_an_operators_tokens_end_where_it_ends_earlier_and_stay_where_it_ends_later(control: Control) -> None:
    made_by = await control.ok("POST", "/v1/operators", {"name": "anna", "role": "admin", "expires_in": 7200})
    token = await control.ok("POST", "/v1/join-tokens", {}, token=made_by["token"])
    for later in ({"expires_in": 9000}, {"endless": True}):
        await control.ok("POST", "/v1/operators/anna/change", later)
        assert (await states(control))[token["id"]] == "open", later
    # The token would be good for longer than who made it.
    await control.ok("POST", "/v1/operators/anna/change", {"expires_in": 3600})
    assert (await states(control))[token["id"]] == "revoked"
    assert (await join(control, token["token"], "n2")).code == "token_revoked"


async def test_an_admin_of_one_group_makes_and_revokes_no_tokens_of_another(control: Control) -> None:
    for group in ("north", "south"):
        await control.ok("POST", "/v1/groups", {"name": group})
    await control.join("s1", "south")
    token = await made(control, group="south")
    admin, reader = {"role": "admin", "group": "north"}, {"role": "read", "group": "south"}
    for name, grants, code, rejoin_code in (
        ("blind", [admin], "unknown_join_token", "unknown_node"),
        ("sees", [admin, reader], "role_insufficient", "role_insufficient"),
    ):
        by = (await control.ok("POST", "/v1/operators", {"name": name, "grants": grants}))["token"]
        assert (await control.call("DELETE", f"/v1/join-tokens/{token['id']}", token=by)).code == code
        assert (await control.call("POST", "/v1/join-tokens", {"rejoin": "s1"}, token=by)).code == rejoin_code
    assert (await states(control))[token["id"]] == "open"
    assert len(await control.items("/v1/join-tokens")) == 2, "that of s1 and this one"


async def test_a_revoked_operator_changes_nothing_on_a_replica_that_has_not_heard_of_it(
    control_site: Site,
) -> None:
    async with control_site.running() as one:
        anna = (await one.call("POST", "/v1/operators", {"name": "anna", "role": "admin"})).json()["token"]
        async with control_site.running(clock=deaf()) as other:
            assert (await other.call("GET", "/v1/nodes", token=anna)).status == 200
            assert (await one.call("DELETE", "/v1/operators/anna")).status == 204
            assert (await other.call("GET", "/v1/nodes", token=anna)).status == 200, "it hasn't heard of it"
            for path, body in (
                ("/v1/join-tokens", {}),
                ("/v1/operators", {"name": "bert", "role": "admin"}),
                ("/v1/groups", {"name": "north"}),
            ):
                refused = await other.call("POST", path, body, token=anna)
                assert (refused.status, refused.json()["code"]) == (401, "credentials_invalid")
            wasm = module("late")
            refused = await other.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", wasm, token=anna)
            assert (refused.status, refused.json()["code"]) == (401, "credentials_invalid")
            assert (await one.call("GET", "/v1/join-tokens")).json()["items"] == []


async def test_an_operator_given_less_does_no_more_on_a_replica_that_has_not_heard_of_it(
    control_site: Site,
) -> None:
    """Else a join token, or an operator, that it makes there in this moment would outlive its rights."""
    async with control_site.running() as one:
        anna = (await one.call("POST", "/v1/operators", {"name": "anna", "role": "admin"})).json()["token"]
        async with control_site.running(clock=deaf()) as other:
            assert (await other.call("GET", "/v1/operators", token=anna)).status == 200
            less = {"grants": [{"role": "read"}]}
            assert (await one.call("POST", "/v1/operators/anna/change", less)).status == 200
            assert (await other.call("GET", "/v1/operators", token=anna)).status == 200, "it hasn't heard of it"
            for path, body in (
                ("/v1/join-tokens", {}),
                ("/v1/operators", {"name": "bert", "role": "admin"}),
                ("/v1/operators/anna/change", {"grants": [{"role": "admin"}]}),
            ):
                refused = await other.call("POST", path, body, token=anna)
                assert (refused.status, refused.json()["code"]) == (503, "not_ready")
                assert refused.headers["retry-after"] == "1"
            assert (await one.call("GET", "/v1/join-tokens")).json()["items"] == []


async def test_a_token_revoked_on_one_replica_is_refused_by_another_at_once(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as other:
        token = (await one.call("POST", "/v1/join-tokens", {})).json()
        assert (await one.call("DELETE", f"/v1/join-tokens/{token['id']}")).status == 204
        refused = await other.call("POST", "/v1/nodes", wire.Join("n1", str(uuid4())), token=token["token"])
        assert (refused.status, refused.json()["code"]) == (401, "token_revoked")


async def test_the_list_shows_each_token_and_its_state_and_no_secret(control: Control) -> None:
    await control.join("n1")
    expired = await made(control, expires_in=60)
    control.clock.advance(seconds=61)
    revoked, rejoin = await made(control), await made(control, rejoin="n1")
    await control.ok("DELETE", f"/v1/join-tokens/{revoked['id']}")
    found = await control.items("/v1/join-tokens?limit=1")
    assert [(t["id"], t["state"], t["rejoin"], t["node"]) for t in found[:3]] == [
        (rejoin["id"], "open", "n1", None),
        (revoked["id"], "revoked", None, None),
        (expired["id"], "expired", None, None),
    ]
    assert (found[3]["state"], found[3]["node"], found[3]["created_by"]) == ("used", "n1", "admin")
    for token in (expired, revoked, rejoin):
        assert token["token"].partition(".")[0][-43:] not in str(found)
    reader = await control.operator("reader", "deploy")
    assert (await control.call("GET", "/v1/join-tokens", token=reader)).code == "role_insufficient"


async def test_the_list_can_be_of_one_state(control: Control) -> None:
    await control.join("n1")
    await made(control, expires_in=60)
    unbound = await made(control, rejoin="n1")
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE join_tokens SET rejoin_node = NULL WHERE id = $1", unbound["id"])
    )
    control.clock.advance(seconds=60)
    revoked = await made(control)
    await control.ok("DELETE", f"/v1/join-tokens/{revoked['id']}")
    await made(control)
    every = await control.items("/v1/join-tokens")
    assert sorted(token["state"] for token in every) == ["expired", "open", "revoked", "revoked", "used"]
    for state in ("open", "used", "expired", "revoked"):
        expected = [token for token in every if token["state"] == state]
        assert await control.items(f"/v1/join-tokens?state={state}&limit=1") == expected
    assert (await control.call("GET", "/v1/join-tokens?state=lost")).code == "invalid_parameter"


async def test_a_revoked_token_stays_revoked_and_is_in_the_audit(control: Control) -> None:
    token = await control.ok("POST", "/v1/join-tokens", {}, key="same")
    for _ in range(2):
        await control.ok("DELETE", f"/v1/join-tokens/{token['id']}")
    # The request that made it, again: another secret would be as good as none.
    assert (await control.call("POST", "/v1/join-tokens", {}, key="same")).code == "token_used"
    assert (await join(control, token["token"], "n1")).code == "token_revoked"
    actions = [(line["action"], line["target"]) for line in await control.items("/v1/audit")]
    assert ("join-token.revoke", token["id"]) in actions


async def test_a_secret_that_is_exchanged_while_a_node_joins_by_it_lets_nobody_in(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head was taken with the secret before: it is looked at once more where the node is made."""
    token = await control.ok("POST", "/v1/join-tokens", {}, key="same")
    real = control.services.databases.joins.transaction

    async def later(work: Any) -> Any:
        await control.ok("POST", "/v1/join-tokens", {}, key="same")
        return await real(work)

    monkeypatch.setattr(control.services.databases.joins, "transaction", later)
    refused = await join(control, token["token"], "n1")
    assert (refused.status, refused.code) == (401, "credentials_invalid")


async def test_a_used_token_is_not_revoked_but_says_which_node_to_revoke(control: Control) -> None:
    token = await made(control)
    assert (await join(control, token["token"], "n1")).status == 201
    refused = await control.call("DELETE", f"/v1/join-tokens/{token['id']}")
    assert (refused.status, refused.code) == (409, "node_joined")
    assert "skerry node revoke n1" in refused.body["detail"]
    assert (await control.call("DELETE", f"/v1/join-tokens/{uuid4()}")).code == "unknown_join_token"
