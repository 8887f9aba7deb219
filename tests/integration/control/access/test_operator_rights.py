"""Which operator may what: every operation of the API with an operator of every kind, lists, pushes, ends."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from control.access.rights import ROLES
from control.local.pki import Pki
from control.protocol import wire
from tests.support.control import Control, module, running
from tests.support.lent import Lender
from tests.support.operation_rules import RULES, Rule
from tests.support.services import ServerUrls

KINDS: dict[str, list[dict[str, Any]]] = {
    "reader": [{"role": "read"}],
    "deployer": [{"role": "deploy"}],
    "chief": [{"role": "admin"}],
    "north-reader": [{"role": "read", "group": "north"}],
    "north-deployer": [{"role": "deploy", "group": "north"}],
    "north-admin": [{"role": "admin", "group": "north"}],
    "ci": [{"role": "push", "group": "north", "functions": ["orders"]}],
    "mixed": [{"role": "read"}, {"role": "deploy", "group": "south"}],
    "north-admin-south-deployer": [{"role": "admin", "group": "north"}, {"role": "deploy", "group": "south"}],
}


async def two_groups(control: Control) -> None:
    """Each with a release of `orders` and `stock`."""
    for name in ("orders", "stock"):
        await control.push(name, module(name))
    for group in ("north", "south"):
        await control.ok("POST", "/v1/groups", {"name": group})
        await control.release(group=group, functions={"orders": 1, "stock": 1})


@pytest.fixture
async def fleet(long_waits: None, database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    """One with two groups."""
    async with running(database_url, bucket_url, pki) as control:
        await two_groups(control)
        yield control


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lender(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lender]:
    """Has one with two groups. Each test has operators and nodes with names of its own."""
    written = {"operators", "nodes", "credentials", "join_tokens"}
    made = Lender(services, pki, tmp_path_factory.mktemp("spool"), two_groups, written=written)
    yield made
    await made.end()


in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
"""For a test that is lent the module's replica."""


async def operator(control: Control, name: str, grants: list[dict[str, Any]], **more: Any) -> str:
    made = await control.ok("POST", "/v1/operators", {"name": name, "grants": grants, **more})
    return str(made["token"])


def holds(kind: str, role: str, group: str | None) -> bool:
    """Whether an operator of a kind has a role for a group, or for all of them."""
    order = list(ROLES)
    return any(
        order.index(g["role"]) >= order.index(role) and g.get("group") in (None, group)  # type: ignore[arg-type]
        for g in KINDS[kind]
    )


def expected(kind: str, rule: Rule, group: str) -> str:
    """What an operator of a kind gets: `ok`, `refused`, or `hidden`."""
    if not any(holds(kind, rule.role, g) for g in (None, "north", "south")):
        return "refused"
    if rule.where == "all":
        return "ok" if holds(kind, rule.role, None) else "refused"
    if rule.where == "any" or holds(kind, rule.role, group):
        return "ok"
    return "hidden" if rule.hidden and not holds(kind, "read", group) else "refused"


async def test_every_operation_asks_for_the_role_in_the_group(fleet: Control) -> None:
    tokens = {kind: await operator(fleet, kind, grants) for kind, grants in KINDS.items()}
    wrong = []
    for group in ("north", "south"):
        node = await fleet.join(f"{group}-node", group)
        for (method, pattern), rule in RULES.items():
            for kind, token in tokens.items():
                if group == "south" and not any("group" in grant for grant in KINDS[kind]):
                    continue  # all groups are the same to it
                want = expected(kind, rule, group)
                named = node
                if want == "ok" and method == "DELETE" and pattern == "/v1/nodes/{node}":
                    named = await fleet.join(f"spare-{kind}-{group}", group)
                path, body = rule.path(group, named) or pattern, rule.body(group, named)
                data = b"x" if method == "PUT" and body is None else None
                reply = await fleet.call(method, path, body, token=token, data=data)
                code = "" if reply.status < 400 or method == "HEAD" else reply.code
                got = "refused" if reply.status == 403 else "ok"
                if reply.status == 403 and method != "HEAD":
                    assert code == "role_insufficient"
                if rule.hidden and code in ("unknown_node", "unknown_group"):
                    got = "hidden"
                if reply.status in (401, 500) or got != want:
                    wrong.append((kind, group, method, pattern, reply.status, code, want))
    assert wrong == []


async def test_lists_have_what_is_in_the_operators_groups(fleet: Control) -> None:
    """And of each list, all that an operator of all groups is shown."""
    for name, group in (("n1", "north"), ("s1", "south")):
        await fleet.join(name, group)
    await fleet.ok("POST", "/v1/join-tokens", {"group": "south"})
    admin = await operator(fleet, "north-admin", [{"role": "admin", "group": "north"}])
    await operator(fleet, "north-ci", [{"role": "push", "group": "north", "functions": ["orders"]}])
    await operator(fleet, "both", [{"role": "read", "group": "north"}, {"role": "read", "group": "south"}])

    async def shown(path: str, key: str, token: str) -> set[str]:
        return {item[key] for item in (await fleet.ok("GET", path, token=token))["items"]}

    assert await shown("/v1/nodes", "name", admin) == {"n1"}
    assert await shown("/v1/nodes", "name", fleet.token) == {"n1", "s1"}
    assert await shown("/v1/groups", "name", admin) == {"north"}
    assert await shown("/v1/groups", "name", fleet.token) == {"default", "north", "south"}
    assert await shown("/v1/releases", "group", admin) == {"north"}
    assert await shown("/v1/releases", "group", fleet.token) == {"north", "south"}
    assert await shown("/v1/join-tokens", "group", admin) == {"north"}
    assert await shown("/v1/operators", "name", admin) == {"north-admin", "north-ci"}
    assert await shown("/v1/operators", "name", fleet.token) == {"admin", "north-admin", "north-ci", "both"}
    assert await shown("/v1/functions", "name", admin) == {"orders", "stock"}


async def test_syncs_are_shown_by_their_group(fleet: Control) -> None:
    reader = await operator(fleet, "reader", [{"role": "read", "group": "north"}])
    for group in ("north", "south"):
        node = await fleet.join(group, group)
        inventory = wire.Inventory(database_id=str(uuid4()))
        poll = msgspec.to_builtins(wire.Poll(0, wire.digest(inventory), inventory=inventory))
        assert (await fleet.call("POST", "/v1/poll", poll, token=node.credential)).status == 200
    all_of_them = await fleet.items("/v1/syncs")
    assert {sync["group"] for sync in all_of_them} == {"north", "south"}
    page = await fleet.ok("GET", "/v1/syncs", token=reader)
    assert {sync["group"] for sync in page["items"]} == {"north"}
    for sync in all_of_them:
        reply = await fleet.call("GET", f"/v1/syncs/{sync['id']}", token=reader)
        assert reply.status == (200 if sync["group"] == "north" else 404)


async def test_ci_pushes_named_functions_to_its_group_and_nothing_else(fleet: Control) -> None:
    ci = await operator(fleet, "ci", [{"role": "push", "group": "north", "functions": ["orders"]}])
    wasm = module("orders 2")
    sha256 = await fleet.upload(wasm)

    async def says(path: str, body: Any) -> str:
        reply = await fleet.call("POST", path, body, token=ci)
        assert (reply.status, reply.code) == (403, "role_insufficient"), reply.body
        return str(reply.body["detail"])

    made = await fleet.ok("POST", "/v1/functions/orders/versions", {"sha256": sha256}, token=ci)
    assert (made["version"], made["created_by"]) == (2, "ci")
    assert "stock" in await says("/v1/functions/stock/versions", {"sha256": sha256})
    await fleet.push("stock", module("stock 2"))
    await fleet.ok("POST", "/v1/schema-changes", {"name": "t", "sql": "CREATE TABLE t (id INTEGER PRIMARY KEY)"})
    # Its release keeps the floor, though there is a newer schema change.
    body = {"group": "north", "functions": {"orders": 2}}
    planned = await fleet.ok("POST", "/v1/releases?plan=true", body, token=ci)
    assert (planned["id"], planned["schema_floor"]) == (None, 0)
    release = await fleet.ok("POST", "/v1/releases", body, token=ci)
    assert (release["number"], release["schema_floor"], release["created_by"]) == (2, 0, "ci")
    for more, what in (
        ({"functions": {"orders": 1, "stock": 2}}, "changes stock"),
        ({"remove": ["stock"]}, "changes stock"),
        ({"functions": {"orders": 1}, "schema": 1}, "moves the schema floor from 0 to 1"),
    ):
        for plan in ("", "?plan=true"):
            text = await says(f"/v1/releases{plan}", {"group": "north", **more})
            assert what in text
            assert "needs the role deploy@north" in text
    assert "push@south" in await says("/v1/releases", {"group": "south", "functions": {"orders": 2}})
    # What a push would change of a group is for those who may push there.
    planned_push = "/v1/functions/orders/versions?plan=true&group="
    assert "push@south" in await says(f"{planned_push}south", {"sha256": sha256})
    assert (await fleet.call("POST", f"{planned_push}north", {"sha256": sha256}, token=ci)).status == 200
    # A rollback that changes no more than a push may is one.
    assert (await fleet.ok("POST", "/v1/releases", {"group": "north", "rollback_to": 1}, token=ci))["number"] == 3
    assert [r["number"] for r in await fleet.items("/v1/releases?group=north")] == [3, 2, 1], "nothing else was made"


@in_the_modules_loop
async def test_who_only_pushes_sends_a_release_to_no_node_that_cannot_run_it(lent: Control) -> None:
    ci = await operator(lent, "pusher", [{"role": "push", "group": "north", "functions": ["orders"]}])
    await lent.join("old", "north", capabilities={"abi": [], "manifest": [], "schema": []})
    body = {"group": "north", "functions": {"orders": 1}, "allow_unfit": True}
    assert (await lent.ok("POST", "/v1/releases?plan=true", body, token=ci))["unfit"]["count"] == 1
    reply = await lent.call("POST", "/v1/releases", body, token=ci)
    assert (reply.status, reply.code) == (403, "role_insufficient"), reply.body
    assert "deploy@north" in reply.body["detail"]
    assert len(await lent.items("/v1/releases?group=north")) == 1


@in_the_modules_loop
async def test_a_plan_of_a_move_shows_no_group_that_the_operator_may_not_see(lent: Control) -> None:
    reader = await operator(lent, "planner", [{"role": "read", "group": "north"}])
    await lent.join("planned", "north")
    there, nowhere = [
        await lent.call("GET", f"/v1/nodes/planned/move?group={group}", token=reader) for group in ("south", "nowhere")
    ]
    assert (there.status, there.code) == (404, "unknown_group")
    # Its refusal doesn't tell whether there is such a group.
    assert there.body["detail"] == nowhere.body["detail"].replace("nowhere", "south")


@in_the_modules_loop
async def test_a_node_moves_between_groups_of_the_operator_alone(lent: Control) -> None:
    north = await operator(lent, "mover-north", [{"role": "deploy", "group": "north"}])
    both = await operator(lent, "mover-both", [{"role": "deploy", "group": g} for g in ("north", "south")])
    await lent.join("moved", "north")
    token = await lent.ok("POST", "/v1/join-tokens", {"rejoin": "moved"})
    reply = await lent.call("POST", "/v1/nodes/moved/move", {"group": "south"}, token=north)
    assert (reply.status, "deploy@south" in reply.body["detail"]) == (403, True)
    await lent.ok("POST", "/v1/nodes/moved/move", {"group": "south"}, token=both)
    assert (await lent.call("POST", "/v1/nodes/moved/retry", token=north)).code == "unknown_node"
    # A token with which the node could join again was made by an admin of the group that it was in.
    body = {"name": "moved", "attempt": str(uuid4())}
    assert (await lent.call("POST", "/v1/nodes", body, token=token["token"])).status == 401


@in_the_modules_loop
async def test_nobody_gives_or_takes_more_than_it_has(lent: Control) -> None:
    admin = await operator(lent, "giver", [{"role": "admin", "group": "north"}], expires_in=3600)

    async def asked(method: str, path: str, body: Any = None) -> int:
        return (await lent.call(method, path, body, token=admin)).status

    here = {"grants": [{"role": "deploy", "group": "north"}], "expires_in": 600}
    assert await asked("POST", "/v1/operators", {"name": "given", **here}) == 201
    for wrong in (
        {"grants": [{"role": "read"}]},
        {"grants": [{"role": "read", "group": "south"}]},
        {"grants": [{"role": "read", "group": "north"}, {"role": "read", "group": "south"}]},
        {"expires_in": 7200},
        {"expires_in": None},
    ):
        assert await asked("POST", "/v1/operators", {"name": "not-given", **here, **wrong}) == 403, wrong
        change = {k: v for k, v in wrong.items() if v is not None} or {"endless": True}
        assert await asked("POST", "/v1/operators/given/change", change) == 403, wrong
    assert await asked("POST", "/v1/operators/admin/change", {"grants": here["grants"]}) == 404
    assert await asked("DELETE", "/v1/operators/admin") == 404
    assert await asked("POST", "/v1/operators/given/change", {"expires_in": 900}) == 200
    assert await asked("DELETE", "/v1/operators/given") == 204
    token = await lent.ok("POST", "/v1/join-tokens", {"group": "north", "expires_in": 86400}, token=admin)
    [shown] = [o for o in await lent.items("/v1/operators") if o["name"] == "giver"]
    assert token["expires_at"] == shown["expires_at"], "a join token doesn't outlive who made it"


async def test_what_an_operator_may_changes_at_once_and_its_token_stays(fleet: Control) -> None:
    token = await operator(fleet, "anna", [{"role": "deploy"}])
    assert (await fleet.call("POST", "/v1/groups", {"name": "east"}, token=token)).status == 201
    grants = [{"role": "deploy", "group": "east", "functions": None}]
    changed = await fleet.ok("POST", "/v1/operators/anna/change", {"grants": grants})
    assert (changed["grants"], changed["expires_at"]) == (grants, None)
    assert (await fleet.call("POST", "/v1/groups", {"name": "west"}, token=token)).status == 403
    assert (await fleet.call("POST", "/v1/releases", {"group": "east"}, token=token)).status == 201
    [row] = [r for r in await fleet.items("/v1/audit") if r["action"] == "operator.change"]
    assert row["after"]["grants"] == ["deploy@east"]
    await fleet.ok("POST", "/v1/operators/anna/change", {"expires_in": 3600})
    assert (await fleet.call("GET", "/v1/groups", token=token)).status == 200
    fleet.clock.advance(minutes=61)
    reply = await fleet.call("GET", "/v1/groups", token=token)
    assert (reply.status, reply.code) == (401, "token_expired")
    await fleet.ok("POST", "/v1/operators/anna/change", {"endless": True})
    assert (await fleet.call("GET", "/v1/groups", token=token)).status == 200


@in_the_modules_loop
async def test_an_operators_join_tokens_end_when_it_may_less(lent: Control) -> None:
    admin = await operator(lent, "token-maker", [{"role": "admin"}])
    made = await lent.ok("POST", "/v1/join-tokens", {"group": "south"}, token=admin)
    await lent.ok("POST", "/v1/operators/token-maker/change", {"grants": [{"role": "admin", "group": "north"}]})
    body = {"name": "x", "attempt": str(uuid4())}
    assert (await lent.call("POST", "/v1/nodes", body, token=made["token"])).code == "token_revoked"


async def test_an_admin_of_all_groups_stays(fleet: Control) -> None:
    """One whose end comes, or of one group alone, doesn't count."""
    await operator(fleet, "ending", [{"role": "admin"}], expires_in=3600)
    await operator(fleet, "north", [{"role": "admin", "group": "north"}])
    for body in ({"grants": [{"role": "deploy"}]}, {"expires_in": 3600}, {"grants": KINDS["north-admin"]}):
        assert (await fleet.call("POST", "/v1/operators/admin/change", body)).code == "last_admin", body
    assert (await fleet.call("DELETE", "/v1/operators/admin")).code == "last_admin"
    await fleet.ok("POST", "/v1/operators/ending/change", {"endless": True})
    await fleet.ok("POST", "/v1/operators/admin/change", {"expires_in": 3600})
    assert (await fleet.call("DELETE", "/v1/operators/ending")).code == "last_admin"
    await fleet.ok("DELETE", "/v1/operators/admin")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "invalid_body"),
    ({"role": "read", "grants": [{"role": "read"}]}, "invalid_body"),
    ({"grants": []}, "invalid_body"),
    ({"grants": [{"role": "boss"}]}, "invalid_body"),
    ({"grants": [{"role": "deploy", "functions": ["orders"]}]}, "invalid_body"),
    ({"grants": [{"role": "push", "functions": []}]}, "invalid_body"),
    ({"grants": [{"role": "read", "group": "nowhere"}]}, "unknown_group"),
    ({"role": "read", "expires_in": 1}, "invalid_body"),
]


@in_the_modules_loop
async def test_wrong_grants_are_refused(lent: Control) -> None:
    before = [o["name"] for o in await lent.items("/v1/operators")]
    for body, code in WRONG:
        reply = await lent.call("POST", "/v1/operators", {"name": "x", **body})
        assert reply.code == code, body
    assert [o["name"] for o in await lent.items("/v1/operators")] == before


async def test_an_operator_of_an_earlier_version_keeps_its_role(fleet: Control, database_url: str) -> None:
    token = await operator(fleet, "old", [{"role": "deploy"}])
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE operators SET grants = NULL WHERE name = 'old'")
    await connection.close()
    assert (await fleet.call("POST", "/v1/groups", {"name": "east"}, token=token)).status == 201
    assert (await fleet.call("GET", "/v1/audit", token=token)).status == 403
    [shown] = [o for o in await fleet.items("/v1/operators") if o["name"] == "old"]
    assert shown["grants"] == [{"role": "deploy", "group": None, "functions": None}]
