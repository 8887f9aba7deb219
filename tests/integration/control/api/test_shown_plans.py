"""A release or an amendment that is asked for with the digest of a plan does what that plan said, or nothing; what a
release changed can be read later; and its failing nodes can try it again at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

from control.protocol import wire
from tests.support.control import Control, module
from tests.support.replica import Site, plan_of

TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"


async def plan(control: Control, **body: Any) -> Any:
    return await control.ok("POST", "/v1/releases?plan=true", body)


async def test_a_release_is_the_one_that_was_shown_or_is_not_made(control: Control) -> None:
    for text in "12":
        await control.push("a", module(text))
    shown = await plan(control, functions={"a": 1})
    assert shown["plan_digest"] == (await plan(control, functions={"a": 1}))["plan_digest"]
    await control.release(functions={"a": 2}, reason="meanwhile")
    refused = await control.call("POST", "/v1/releases", {"functions": {"a": 1}, "plan_digest": shown["plan_digest"]})
    assert (refused.status, refused.code, refused.body["field"]) == (409, "plan_changed", "plan_digest")
    assert [release["number"] for release in await control.items("/v1/releases")] == [1]
    shown = await plan(control, functions={"a": 1})
    # What another group does meanwhile takes a generation, and changes nothing of this plan.
    await control.ok("POST", "/v1/groups", {"name": "north"})
    await control.release(group="north", functions={"a": 1})
    body = {"functions": {"a": 1}, "plan_digest": shown["plan_digest"]}
    made = await control.ok("POST", "/v1/releases", body, key="once")
    assert (made["number"], made["plan_digest"]) == (2, shown["plan_digest"])
    assert (await control.ok("POST", "/v1/releases", body, key="once"))["number"] == 2
    assert len(await control.items("/v1/releases?group=default")) == 2


async def test_a_change_of_the_schema_or_a_node_that_lacks_something_is_another_plan(control: Control) -> None:
    await control.push("a", module("1"), cors={"origins": ["https://shop.example"]})
    shown = await plan(control, functions={"a": 1})
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    body = {"functions": {"a": 1}, "plan_digest": shown["plan_digest"]}
    assert (await control.call("POST", "/v1/releases", body)).code == "plan_changed"
    body["plan_digest"] = (await plan(control, functions={"a": 1}))["plan_digest"]
    await control.join("old", capabilities={"abi": ["wagi"], "manifest": ["sql"]})
    assert (await control.call("POST", "/v1/releases", body)).code == "plan_changed"
    body["plan_digest"] = (await plan(control, functions={"a": 1}))["plan_digest"]
    # The same plan isn't enough for what needs to be allowed.
    assert (await control.call("POST", "/v1/releases", body)).code == "nodes_unfit"
    assert (await control.ok("POST", "/v1/releases", {**body, "allow_unfit": True}))["number"] == 1


async def test_an_amendment_is_the_one_that_was_shown_or_is_not_made(control: Control) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    path = "/v1/schema-changes/1/revisions"
    shown = await control.ok("POST", f"{path}?plan=true", {"sql": f"SELECT 1; {TABLE}"})
    await control.ok("POST", path, {"sql": f"SELECT 2; {TABLE}"})
    body = {"sql": f"SELECT 1; {TABLE}", "plan_digest": shown["plan_digest"]}
    assert (await control.call("POST", path, body)).code == "plan_changed"
    body["plan_digest"] = (await control.ok("POST", f"{path}?plan=true", {"sql": body["sql"]}))["plan_digest"]
    assert (await control.ok("POST", path, body))["revision"] == 3


async def test_what_a_release_changed_can_be_read_later(control: Control) -> None:
    await control.push("a", module("1"))
    await control.push("a", module("2"), sql="read")
    await control.push("b", module("3"))
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    first = await control.release(functions={"a": 1, "b": 1}, schema=0)
    second = await control.release(functions={"a": 2}, remove=["b"])
    for made in (first, second):
        found = await control.ok("GET", f"/v1/releases/default/{made['number']}")
        assert (found["changes"], found["floor_before"]) == (made["changes"], made["floor_before"])
    assert second["changes"]["remove"] == [{"name": "b", "version": 1}]
    # A version that was deleted since says nothing of its grants any more, and the release is still to be read.
    await control.ok("DELETE", "/v1/functions/a/versions/1?force=true")
    found = await control.ok("GET", "/v1/releases/default/2")
    assert found["changes"]["change"] == [{"name": "a", "from": 1, "to": 2}]
    assert found["changes"]["grants"] == []


async def test_the_failing_nodes_of_a_release_try_again(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
        made = (await replica.call("POST", "/v1/releases", {})).json()
        nodes = [await replica.join(name) for name in ("a", "b", "c")]
        for node in nodes[:2]:
            plan = plan_of(await node.poll())
            failed = wire.SyncError("schema_change_failed", "no such table: notes")
            assert (await node.report(plan.sync_id, "failed", error=failed)).status == 200
            node.failed = wire.FailedGeneration(plan.generation, datetime.now(UTC) + timedelta(hours=1))
            assert (await node.poll()).status == 204
        await nodes[2].sync()
        path = f"/v1/releases/default/{made['number']}/retry"
        answer = await replica.call("POST", path)
        assert (answer.status, answer.json()) == (200, {"nodes": 2})
        for node in nodes[:2]:
            await node.sync()
        assert (await replica.call("POST", path)).json() == {"nodes": 0}
        assert (await replica.call("POST", "/v1/releases/default/9/retry")).json()["code"] == "unknown_release"
        await replica.call("POST", "/v1/releases", {})
        assert (await replica.call("POST", path)).json()["code"] == "release_not_possible"
        audit = (await replica.call("GET", "/v1/audit?action=release.retry")).json()["items"]
        assert [(row["target"], row["details"]["nodes"]) for row in audit] == [("default/1", 0), ("default/1", 2)]
