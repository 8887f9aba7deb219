"""Plans say what a push, a schema change, a deletion or a move would change, and change nothing."""

import hashlib
from typing import Any

from tests.support.control import Control, module

TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"


async def everything(control: Control) -> list[Any]:
    """What there is of all that a plan could change."""
    paths = ("functions", "schema-changes", "releases", "groups", "nodes")
    # Control has rows of its own in the audit, and seals all rows, at times of its own.
    rows = await control.items("/v1/audit")
    audit = [{**row, "seal": None} for row in rows if row["actor_kind"] != "control"]
    return [*[await control.items(f"/v1/{path}") for path in paths], audit]


async def test_a_push_that_is_planned(control: Control) -> None:
    await control.push("a", module("1"))
    await control.release(functions={"a": 1})
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    sha256 = await control.upload(module("2"))
    assert sha256 == hashlib.sha256(module("2")).hexdigest()
    before = await everything(control)
    body = {"sha256": sha256, "manifest": {"sql": "read"}}
    where = "/v1/functions/a/versions?plan=true"
    plan = await control.ok("POST", f"{where}&group=default", body)
    assert (plan["version"]["version"], plan["release"]["id"], plan["release"]["number"]) == (2, None, 2)
    changes = plan["release"]["changes"]
    assert changes["change"] == [{"name": "a", "from": 1, "to": 2}]
    assert changes["schema"] == [{"number": 1, "name": "notes"}]
    assert [grant["grant"] for grant in changes["grants"]] == ["sql"]
    assert (await control.ok("POST", f"{where}&group=default&schema=0", body))["release"]["schema_floor"] == 0
    assert (await control.ok("POST", where, body))["release"] is None
    # A plan is refused for what the push would be refused for.
    refused = await control.call("POST", where, {"sha256": "0" * 64})
    assert refused.code == "unknown_artifact"
    assert await everything(control) == before
    assert (await control.push("a", module("2")))["version"] == 2


async def test_schema_changes_that_are_planned(control: Control) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    await control.release()
    before = await everything(control)
    drop = {"name": "gone", "sql": "DROP TABLE notes"}
    plan = await control.ok("POST", "/v1/schema-changes?plan=true&group=default", drop)
    assert (plan["change"]["number"], plan["change"]["losses"][0]["table"]) == (2, "notes")
    assert plan["release"]["changes"]["schema"] == [{"number": 2, "name": "gone"}]
    bad = await control.call("POST", "/v1/schema-changes?plan=true", {**drop, "sql": "DROP TABLE nowhere"})
    assert bad.code == "schema_refused"
    amended = await control.ok("POST", "/v1/schema-changes/1/revisions?plan=true", {"sql": f"SELECT 1;{TABLE}"})
    assert (amended["change"]["revision"], amended["release"]) == (2, None)
    assert await everything(control) == before


async def test_deletions_that_are_planned(control: Control) -> None:
    await control.push("a", module("1"))
    await control.push("b", module("2"))
    await control.release(functions={"a": 1, "b": 1})
    before = await everything(control)
    assert (await control.call("DELETE", "/v1/functions/a?plan=true")).code == "version_in_target"
    plan = await control.ok("DELETE", "/v1/functions/a?plan=true&release=true&force=true")
    assert plan["versions"] == [1]
    [release] = plan["releases"]
    assert release["changes"]["remove"] == [{"name": "a", "version": 1}]
    assert await everything(control) == before


async def test_a_move_that_is_planned(control: Control) -> None:
    await control.push("a", module("1"))
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    await control.ok("POST", "/v1/groups", {"name": "north"})
    await control.release(group="north", functions={"a": 1})
    await control.join("shop")
    before = await everything(control)
    plan = await control.ok("GET", "/v1/nodes/shop/move?group=north")
    assert plan["changes"]["add"] == [{"name": "a", "version": 1}]
    assert plan["changes"]["schema"] == [{"number": 1, "name": "notes"}]
    assert (plan["unfit"]["count"], plan["losses"]) == (0, [])
    assert (await control.call("GET", "/v1/nodes/shop/move?group=south")).code == "unknown_group"
    assert await everything(control) == before
