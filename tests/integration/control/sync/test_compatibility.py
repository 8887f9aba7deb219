"""Nodes that can't run a release: shown by its plan, in the way of its making and of a move, unless that is allowed."""

from typing import Any

from control.protocol import wire
from control.protocol.manifest import MANIFEST_FIELDS
from control.sync import compatibility
from edge_runtime.sync import capabilities
from tests.support.control import Control, module

FIELDS = [field for field in MANIFEST_FIELDS if not field.startswith("http")]
OLD = {"abi": ["wagi"], "manifest": FIELDS, "python": "3.11.2"}
HTTP = {"hosts": ["api.example"]}
LACKS = ["the manifest's field http (for f)"]


async def prepared(control: Control) -> None:
    """Function f, whose version 2 needs what nodes with `OLD` lack; nodes of all kinds."""
    await control.push("f", module("1"))
    await control.push("f", module("1"), http=HTTP)
    await control.join("new", capabilities=capabilities.document())
    await control.join("old-2", capabilities=OLD)
    await control.join("old-1", capabilities={**OLD, "python": "3.12.1"})
    await control.join("silent")
    await control.join("older", capabilities={"abi": ["wagi"], "features": []})
    await control.join("gone", capabilities=OLD)
    await control.ok("DELETE", "/v1/nodes/gone")
    await control.ok("POST", "/v1/groups", {"name": "other"})
    await control.join("elsewhere", "other", capabilities=OLD)


async def test_a_plan_lists_them_and_a_release_is_refused_unless_allowed(control: Control) -> None:
    await prepared(control)
    assert (await control.release(functions={"f": 1}))["unfit"] == {"count": 0, "nodes": []}
    body: dict[str, Any] = {"functions": {"f": 2}}
    unfit = {"count": 2, "nodes": [{"name": "old-1", "lacks": LACKS}, {"name": "old-2", "lacks": LACKS}]}
    for allowed in (body, body | {"allow_unfit": True}):
        plan = await control.call("POST", "/v1/releases?plan=true", allowed)
        assert (plan.status, plan.body["unfit"]) == (200, unfit)
    reply = await control.call("POST", "/v1/releases", body, key="one")
    assert (reply.status, reply.code, reply.body["field"]) == (409, "nodes_unfit", "allow_unfit")
    for part in ("2 nodes", "group default", "old-1 lacks the manifest's field http (for f); old-2", "--allow-unfit"):
        assert part in reply.body["detail"]
    assert [r["number"] for r in await control.items("/v1/releases")] == [1]
    # A refusal isn't kept under the key.
    assert (await control.call("POST", "/v1/releases", body, key="one")).code == "nodes_unfit"
    made = await control.release(**body, allow_unfit=True, reason="they are to be replaced")
    assert (made["number"], made["unfit"]) == (2, unfit)
    [entry] = [e for e in await control.items("/v1/audit") if e["details"].get("generation") == made["generation"]]
    assert entry["details"]["unfit"] == 2
    # The next one has it too; a rollback doesn't.
    assert (await control.call("POST", "/v1/releases", {})).code == "nodes_unfit"
    assert (await control.release(rollback_to=1))["unfit"]["count"] == 0
    assert (await control.call("POST", "/v1/releases", {"rollback_to": 2})).code == "nodes_unfit"
    assert (await control.release(group="other"))["number"] == 1


async def test_a_node_that_was_upgraded_is_in_no_ones_way(control: Control) -> None:
    await control.push("f", module("1"), http=HTTP)
    node = await control.join("one", capabilities=OLD)
    assert (await control.call("POST", "/v1/releases", {"functions": {"f": 1}})).code == "nodes_unfit"
    new = capabilities.document()
    poll = {"generation": 0, "digest": wire.digest(wire.Inventory()), "inventory": {}}
    poll |= {"capabilities": new, "capabilities_digest": capabilities.digest(new)}
    assert (await control.call("POST", "/v1/poll", poll, token=node.credential)).status == 204
    assert (await control.release(functions={"f": 1}))["unfit"]["count"] == 0


async def test_a_deletion_is_not_in_their_way(control: Control) -> None:
    await control.push("f", module("1"), http=HTTP)
    await control.push("g", module("2"))
    await control.join("one", capabilities=OLD)
    await control.release(functions={"f": 1, "g": 1}, allow_unfit=True)
    await control.ok("DELETE", "/v1/functions/g?release=true")
    assert (await control.items("/v1/releases"))[0]["number"] == 2


async def test_a_move_is_refused_unless_allowed(control: Control) -> None:
    await prepared(control)
    await control.release(group="other", functions={"f": 2}, allow_unfit=True)
    reply = await control.call("POST", "/v1/nodes/old-1/move", {"group": "other"})
    assert (reply.status, reply.code, reply.body["field"]) == (409, "nodes_unfit", "allow_unfit")
    for part in ("1 node can't", "group other", "old-1 lacks the manifest's field http (for f). "):
        assert part in reply.body["detail"]
    assert (await control.ok("GET", "/v1/nodes/old-1"))["group"] == "default"
    for name, body in (("old-1", {"allow_unfit": True}), ("new", {}), ("silent", {})):
        moved = await control.ok("POST", f"/v1/nodes/{name}/move", {"group": "other", **body})
        assert moved["group"] == "other"
    # Where it is already, nothing is decided.
    await control.ok("POST", "/v1/nodes/old-1/move", {"group": "other"})
    # A group without a release takes every node.
    assert (await control.ok("POST", "/v1/nodes/old-1/move", {"group": "default"}))["group"] == "default"


async def test_a_change_in_steps_needs_nodes_that_know_them(control: Control) -> None:
    """Another node takes the lines for comments: it refuses the change, which has batches."""
    known = capabilities.document()
    await control.join("new", capabilities=known)
    await control.join("old", capabilities={name: value for name, value in known.items() if name != "schema"})
    await control.ok("POST", "/v1/groups", {"name": "other"})
    await control.ok(
        "POST", "/v1/schema-changes", {"name": "t", "sql": "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)"}
    )
    await control.release()
    await control.ok(
        "POST",
        "/v1/schema-changes",
        {"name": "t", "sql": "-- skerry: batch t by id\nUPDATE t SET n = 1 WHERE id > :after AND id <= :upto"},
    )
    unfit = {"count": 1, "nodes": [{"name": "old", "lacks": ["schema changes with steps (for change 2)"]}]}
    assert (await control.ok("POST", "/v1/releases?plan=true", {}))["unfit"] == unfit
    assert (await control.call("POST", "/v1/releases", {})).code == "nodes_unfit"
    await control.release(group="other")
    for name, status in (("old", 409), ("new", 200)):
        assert (await control.call("POST", f"/v1/nodes/{name}/move", {"group": "other"})).status == status
    await control.release(schema=1)


async def test_of_many_some_are_named_and_all_are_counted(control: Control) -> None:
    await control.push("f", module("1"), http=HTTP)
    await control.services.db.transaction(add_nodes)
    unfit = (await control.ok("POST", "/v1/releases?plan=true", {"functions": {"f": 1}}))["unfit"]
    assert unfit["count"] == 2000
    assert [node["name"] for node in unfit["nodes"]] == [f"n{n:04}" for n in range(compatibility.NAMED)]
    reply = await control.call("POST", "/v1/releases", {"functions": {"f": 1}})
    assert reply.code == "nodes_unfit"
    assert "and 1995 others" in reply.body["detail"]
    assert len(reply.body["detail"]) < 1000
    [group] = control.services.fleet.groups
    found = await control.services.db.read(lambda conn: compatibility.group_capabilities(conn, group))
    assert [len(same.names) for same in found] == [compatibility.NAMED] * 3, "a row for each node isn't read"


async def add_nodes(conn: Any) -> None:
    """Three thousand, of which two thousand lack something: two kinds, in turn."""
    kinds = [OLD, {**OLD, "abi": ["wagi", "direct"]}, capabilities.document()]
    for kind, document in enumerate(kinds):
        numbers = [n for n in range(3000) if (n % 2 == kind if n < 2000 else kind == 2)]
        await conn.execute(
            "INSERT INTO nodes (name, group_id, state, state_since, joined_at, capabilities)"
            " SELECT u.name, g.id, 'online', g.created_at, g.created_at, $2"
            " FROM unnest($1::text[]) AS u (name), groups g WHERE g.name = 'default'",
            [f"n{n:04}" for n in numbers],
            document,
        )
