"""Releases that can lose rows of nodes are refused with what is lost, of whom, and how much, unless that is allowed."""

from typing import Any

import pytest

from control.storage.connection import Connection
from tests.support import deploy
from tests.support.replica import Replica, Site, TestNode
from tests.support.rollouts import open_rollout

BOOKS = "CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT); CREATE TABLE log (x)"
DROP = "DROP TABLE books"


async def with_rows(replica: Replica, name: str, **counts: int) -> TestNode:
    """A node at the group's release that has told these numbers of rows."""
    node = await replica.join(name)
    await node.sync()
    answer = await replica.call("PUT", "/v1/nodes/self/row-counts", {"counts": counts}, token=node.credential)
    assert answer.status == 204, answer
    return node


async def refused(replica: Replica, path: str = "/v1/releases", **body: Any) -> str:
    answer = await replica.call("POST", path, body)
    assert (answer.status, deploy.code(answer)) == (409, "loss_not_allowed"), answer
    assert answer.json()["field"] == "allow_loss"
    return str(answer.json()["detail"])


async def test_a_release_that_drops_a_table_says_what_is_lost(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "few", books=12, log=1)
        await with_rows(replica, "many", books=10_001)
        unknown = await replica.join("untold")
        await unknown.sync()
        await replica.join("empty")
        made = await deploy.schema(replica, DROP)
        assert made["losses"] == [
            {"statement": DROP, "table": "books", "message": "the table books is dropped with all its rows"}
        ]
        detail = await refused(replica, group="default")
        assert "schema change 2: the table books is dropped with all its rows (DROP TABLE books)" in detail
        # The node without a schema has no rows.
        assert "3 nodes with 10,013 rows (many: more than 10,000, few: 12, untold: unknown)" in detail
        planned = await deploy.ok(replica, "POST", "/v1/releases?plan=true", {"group": "default"})
        [loss] = planned["losses"]
        assert (loss["change"], loss["table"], loss["nodes"], loss["rows"]) == (2, "books", 3, 10_013)
        assert [(node["name"], node["rows"]) for node in loss["most"]] == [
            ("many", 10_001),
            ("few", 12),
            ("untold", None),
        ]
        # What doesn't bring the change to nodes isn't refused.
        await deploy.release(replica, schema=1)
        made = await deploy.release(replica, allow_loss=True)
        assert [loss["change"] for loss in made["losses"]] == [2]
        # It was decided: nodes that are still on their way don't ask again.
        await deploy.release(replica)


async def test_nothing_is_lost_where_no_node_has_tables(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("new")
        await deploy.schema(replica, BOOKS)
        await deploy.schema(replica, DROP)
        assert (await deploy.release(replica))["losses"] == []
        assert len((await node.sync()).schema_changes) == 2


async def test_a_move_to_a_group_that_drops_a_table(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "shop", books=3)
        await deploy.schema(replica, DROP)
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "next"})
        await deploy.release(replica, "next")
        detail = await refused(replica, "/v1/nodes/shop/move", group="next")
        assert "the move to group next" in detail
        assert "1 node with 3 rows (shop: 3)" in detail
        await deploy.ok(replica, "POST", "/v1/nodes/shop/move", {"group": "next", "allow_loss": True})


async def test_an_amendment_that_nodes_get_without_a_release(control_site: Site) -> None:
    """They have the release already, and apply the newest revision when they try again."""
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        node = await with_rows(replica, "shop", books=3)
        unique = "CREATE UNIQUE INDEX titles ON books (title)"
        await deploy.schema(replica, unique)
        amended = {"sql": f"DELETE FROM books; {unique}"}
        revisions = "/v1/schema-changes/2/revisions"
        # No release has it yet: the one that brings it will be refused.
        await deploy.ok(replica, "POST", revisions, {"sql": f"DELETE FROM books WHERE 1; {unique}"})
        await refused(replica)
        await deploy.release(replica, allow_loss=True)
        await node.plan()
        detail = await refused(replica, revisions, **amended)
        assert "this amendment of schema change 2" in detail
        assert "1 node with 3 rows (shop: 3)" in detail
        await deploy.ok(replica, "POST", revisions, {**amended, "allow_loss": True})


async def test_what_an_open_rollout_brings_counts(control_site: Site) -> None:
    """For an amendment, and for a node that comes to the group."""
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "shop", books=3)
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "next"})
        await deploy.schema(replica, DROP)
        rollout = await open_rollout(replica, "next", functions={}, schema_floor=2)
        assert "the move to group next" in await refused(replica, "/v1/nodes/shop/move", group="next")
        await rollout.give_back(replica)
        await deploy.ok(replica, "POST", "/v1/nodes/shop/move", {"group": "next"})
        revisions, amended = "/v1/schema-changes/2/revisions", {"sql": f"DELETE FROM books; {DROP}"}
        await open_rollout(replica, "next", functions={}, schema_floor=2)
        assert "this amendment of schema change 2" in await refused(replica, revisions, **amended)


async def unchecked(replica: Replica, sql: str = DROP) -> None:
    """Have all changes registered by a version that looked for nothing, the second one with this text."""

    async def work(conn: Connection) -> None:
        await conn.execute("UPDATE schema_changes SET losses = NULL, stalls = NULL")
        await conn.execute("UPDATE schema_changes SET sql = $1 WHERE number = 2", sql)

    await replica.services.databases.writes.transaction(work)


async def test_a_change_of_a_version_that_didnt_look_is_checked(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "shop", books=3)
        await deploy.schema(replica, DROP)
        await unchecked(replica)
        assert "the table books is dropped with all its rows (DROP TABLE books)" in await refused(replica)
        kept = await deploy.items(replica, "/v1/schema-changes")
        assert [change["stalls"] is None for change in kept] == [True, False]
        assert [loss["table"] for loss in kept[1]["losses"]] == ["books"]
        # What lies behind the floor has been decided; nothing asks for it.
        assert kept[0]["losses"] is None
        await deploy.release(replica, allow_loss=True)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/releases?plan=true", {}),
        ("POST", "/v1/schema-changes?plan=true&group=default", {"name": "more", "sql": "CREATE TABLE more (x)"}),
        ("GET", "/v1/nodes/shop/move?group=next", None),
    ],
)
async def test_a_plan_has_such_a_change_checked(
    control_site: Site, method: str, path: str, body: dict[str, Any] | None
) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "shop", books=3)
        await deploy.schema(replica, DROP)
        if method == "GET":
            await deploy.ok(replica, "POST", "/v1/groups", {"name": "next"})
            await deploy.release(replica, "next")
        await unchecked(replica)
        planned = await deploy.ok(replica, method, path, body)
        [loss] = (planned.get("release") or planned)["losses"]
        assert (loss["message"], loss["rows"]) == ("the table books is dropped with all its rows", 3)


async def test_a_change_that_cant_be_checked_is_named_and_refused(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await with_rows(replica, "shop", books=3)
        await deploy.schema(replica, DROP)
        await unchecked(replica, "PRAGMA foreign_keys = ON")
        planned = await deploy.ok(replica, "POST", "/v1/releases?plan=true", {"group": "default"})
        [loss] = planned["losses"]
        assert (loss["change"], loss["nodes"], loss["rows"], loss["most"]) == (
            2,
            1,
            None,
            [{"name": "shop", "rows": None}],
        )
        detail = await refused(replica)
        assert "schema change 2: an earlier version of control registered it without looking" in detail
        assert "1 node with an unknown number of rows (shop: unknown)" in detail
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "next"})
        await deploy.release(replica, "next")
        assert "isn't known" in await refused(replica, "/v1/nodes/shop/move", group="next")
        assert [loss["change"] for loss in (await deploy.release(replica, allow_loss=True))["losses"]] == [2]


@pytest.mark.parametrize("counts", [{"a": -1}, {"a": 10_002}, {"\0": 1}, {str(n): 1 for n in range(201)}, {"a": "1"}])
async def test_numbers_that_no_node_tells(control_site: Site, counts: dict[str, Any]) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        answer = await replica.call("PUT", "/v1/nodes/self/row-counts", {"counts": counts}, token=node.credential)
        assert answer.status == 422, answer
