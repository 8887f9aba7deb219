"""A release that would hold writers of a node up for long says how long on which node, and is refused unless that may
be."""

from typing import Any

from tests.integration.control.api.test_losses import with_rows
from tests.support import deploy
from tests.support.replica import Replica, Site, TestNode

ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE small (x)"
INDEX = "CREATE INDEX names ON items (name)"
STEPS = "-- skerry: batch items by id\nUPDATE items SET name = '' WHERE id > :after AND id <= :upto"


async def with_estimates(replica: Replica, name: str, **estimates: int) -> TestNode:
    """A node that has told about how many rows its tables have."""
    node = await with_rows(replica, name)
    counts = dict.fromkeys(estimates, 10_001)
    body = {"counts": counts, "estimates": estimates}
    answer = await replica.call("PUT", "/v1/nodes/self/row-counts", body, token=node.credential)
    assert answer.status == 204, answer
    return node


async def test_an_index_on_a_large_table(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=3_000_000)
        await with_estimates(replica, "larger", items=5_000_000)
        await with_rows(replica, "little", items=900)
        await replica.join("empty")
        made = await deploy.schema(replica, INDEX)
        [stall] = made["stalls"]
        assert (stall["statement"], stall["table"], stall["message"]) == (INDEX, "items", "an index on items is built")
        answer = await replica.call("POST", "/v1/releases", {"group": "default"})
        assert (answer.status, deploy.code(answer)) == (409, "stall_not_allowed")
        detail = answer.json()["detail"]
        assert "schema change 2: an index on items is built, larger: about 11 s, large: about 6.6 s" in detail
        assert "--allow-stall" in detail
        planned = await deploy.ok(replica, "POST", "/v1/releases?plan=true", {"group": "default"})
        [shown] = planned["stalls"]
        assert (shown["change"], shown["seconds"]) == (2, 11.0)
        assert [(node["name"], node["rows"], node["seconds"]) for node in shown["nodes"]] == [
            ("larger", 5_000_000, 11.0),
            ("large", 3_000_000, 6.6),
        ]
        assert [stall["change"] for stall in (await deploy.release(replica, allow_stall=True))["stalls"]] == [2]
        # It was decided: nodes that are still on their way don't ask again.
        assert (await deploy.release(replica))["stalls"] == []


async def refused(replica: Replica, path: str, **body: Any) -> str:
    answer = await replica.call("POST", path, body)
    assert (answer.status, deploy.code(answer)) == (409, "stall_not_allowed"), answer
    assert answer.json()["field"] == "allow_stall"
    return str(answer.json()["detail"])


async def test_a_move_to_a_group_that_builds_an_index(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=3_000_000)
        await with_rows(replica, "little", items=900)
        await replica.join("empty")
        await deploy.schema(replica, INDEX)
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "next"})
        await deploy.release(replica, "next")
        planned = await deploy.ok(replica, "GET", "/v1/nodes/large/move?group=next")
        [stall] = planned["stalls"]
        assert (stall["change"], stall["nodes"]) == (2, [{"name": "large", "rows": 3_000_000, "seconds": 6.6}])
        detail = await refused(replica, "/v1/nodes/large/move", group="next")
        assert "the move to group next would hold calls that write up for about 6.6 s on node large" in detail
        moved = {"group": "next"}
        await deploy.ok(replica, "POST", "/v1/nodes/large/move", {**moved, "allow_stall": True})
        for node in ("little", "empty"):
            assert (await deploy.ok(replica, "GET", f"/v1/nodes/{node}/move?group=next"))["stalls"] == []
            await deploy.ok(replica, "POST", f"/v1/nodes/{node}/move", moved)


async def test_an_amendment_that_nodes_get_without_a_release(control_site: Site) -> None:
    """They have the release already, and apply the newest revision when they try again."""
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=3_000_000)
        await deploy.schema(replica, "CREATE INDEX xs ON small (x)")
        revisions = "/v1/schema-changes/2/revisions"
        amended = {"sql": "UPDATE items SET name = ''; CREATE INDEX xs ON small (x)"}
        # No release has it yet: the one that brings it will be refused.
        await deploy.ok(replica, "POST", revisions, {"sql": f"SELECT 1; {amended['sql']}"})
        await refused(replica, "/v1/releases", group="default")
        await deploy.release(replica, allow_stall=True)
        planned = await deploy.ok(replica, "POST", revisions + "?plan=true", amended)
        assert [(stall["change"], stall["seconds"]) for stall in planned["stalls"]] == [(2, 8.4)]
        detail = await refused(replica, revisions, **amended)
        assert "this amendment of schema change 2" in detail
        await deploy.ok(replica, "POST", revisions, {**amended, "allow_stall": True})


async def test_the_limit_is_a_setting_and_counts_what_a_release_does_together(control_site: Site) -> None:
    async with control_site.running(stall_limit=0.7) as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=200_000)
        await deploy.schema(replica, INDEX)
        planned = await deploy.ok(replica, "POST", "/v1/releases?plan=true", {"group": "default"})
        assert [stall["seconds"] for stall in planned["stalls"]] == [0.4]
        await deploy.schema(replica, "CREATE INDEX names2 ON items (name, id)")
        detail = await refused(replica, "/v1/releases", group="default")
        assert "for about 0.8 s on node large, and 0.7 s are allowed (SKERRY_STALL_LIMIT)" in detail
        # Each by itself may be.
        await deploy.release(replica, schema=2)
        await deploy.release(replica)


async def test_what_takes_little_or_goes_in_batches_is_no_stall(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=3_000_000, small=200_000)
        assert (await deploy.schema(replica, STEPS))["stalls"] == []
        await deploy.schema(replica, "CREATE INDEX xs ON small (x)")
        # Half a second is shown, and may be.
        assert [stall["seconds"] for stall in (await deploy.release(replica))["stalls"]] == [0.4]
