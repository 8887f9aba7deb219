"""A version or a schema change with its release: both are made, or neither is."""

from typing import Any

from tests.integration.control.api.test_plans import everything
from tests.support import deploy
from tests.support.control import Control, module
from tests.support.replica import Site

TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"
VERSIONS = "/v1/functions/orders/versions"
CHANGES = "/v1/schema-changes"


async def refused(control: Control, path: str, body: dict[str, Any], **more: Any) -> str:
    """The code with which a request is refused, which changes nothing."""
    before = await everything(control)
    answer = await control.call("POST", path, body, **more)
    assert answer.status in (403, 404, 409, 422), answer.body
    assert await everything(control) == before
    return answer.code


async def test_a_version_and_its_release_are_made_together(control: Control) -> None:
    sha256 = await control.upload(module("1"))
    body = {"sha256": sha256, "release": {"group": "default", "reason": "why not"}}
    made = await control.ok("POST", VERSIONS, body, key="the-same-request")
    assert made["version"] == 1
    assert (made["release"]["number"], made["release"]["reason"]) == (1, "why not")
    assert [f["name"] for f in made["release"]["functions"]] == ["orders"]
    assert await control.ok("POST", VERSIONS, body, key="the-same-request") == made
    actions = [row["action"] for row in await control.items("/v1/audit") if row["actor_kind"] == "operator"]
    assert sorted(actions[:2]) == ["function.push", "release.create"]
    assert "release" not in await control.ok("POST", VERSIONS, {"sha256": sha256})


async def test_a_release_that_is_refused_uses_up_no_version(control: Control) -> None:
    sha256 = await control.upload(module("1"))
    pushed = {"sha256": sha256, "manifest": {"route": {"path": "/orders"}}}
    assert await refused(control, VERSIONS, {**pushed, "release": {"group": "nope"}}) == "unknown_group"
    assert await refused(control, VERSIONS, {**pushed, "release": {"schema": 7}}) == "unknown_schema_change"
    await control.join("shop", capabilities={"abi": ["extism"], "manifest": []})
    assert await refused(control, VERSIONS, {**pushed, "release": {}}) == "nodes_unfit"
    await control.push("other", module("2"), route={"path": "/orders"})
    await control.release(functions={"other": 1}, allow_unfit=True)
    conflict = {**pushed, "release": {"allow_unfit": True}}
    assert await refused(control, VERSIONS, conflict) == "route_conflict"
    await control.ok("POST", "/v1/groups", {"name": "north"})
    grants = [{"role": "push", "group": "north", "functions": None}]
    token = (await control.ok("POST", "/v1/operators", {"name": "of-north", "grants": grants}))["token"]
    assert await refused(control, VERSIONS, {**pushed, "release": {}}, token=token) == "role_insufficient"
    made = await control.ok("POST", VERSIONS, {**pushed, "release": {"group": "north"}}, token=token)
    assert (made["version"], made["release"]["group"]) == (1, "north")


async def test_a_schema_change_whose_release_is_refused_takes_no_number(control: Control) -> None:
    add = {"name": "notes", "sql": TABLE}
    assert await refused(control, CHANGES, {**add, "release": {"group": "nope"}}) == "unknown_group"
    made = await control.ok("POST", CHANGES, {**add, "release": {}})
    assert (made["number"], made["release"]["schema_floor"]) == (1, 1)
    amended, where = {"sql": f"SELECT 1;{TABLE}"}, f"{CHANGES}/1/revisions"
    assert await refused(control, where, {**amended, "release": {"group": "nope"}}) == "unknown_group"
    made = await control.ok("POST", where, {**amended, "release": {}})
    assert (made["revision"], made["release"]["number"]) == (2, 2)


async def test_what_a_change_loses_is_known_before_it_is_registered(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.ok(replica, "POST", CHANGES, {"name": "notes", "sql": TABLE, "release": {}})
        node = await replica.join("shop")
        await node.sync()
        counts = {"counts": {"notes": 3}}
        await replica.call("PUT", "/v1/nodes/self/row-counts", counts, token=node.credential)
        drop = {"name": "gone", "sql": "DROP TABLE notes"}
        answer = await replica.call("POST", CHANGES, {**drop, "release": {}})
        assert (answer.status, deploy.code(answer)) == (409, "loss_not_allowed")
        assert "shop: 3" in answer.json()["detail"]
        assert len(await deploy.items(replica, CHANGES)) == len(await deploy.items(replica, "/v1/releases")) == 1
        made = await deploy.ok(replica, "POST", CHANGES, {**drop, "release": {"allow_loss": True}})
        assert (made["number"], made["release"]["number"]) == (2, 2)
