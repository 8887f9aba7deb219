"""A release that would hold writers of a node up for long says how long on which node, and is refused unless that may
be."""

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


async def test_what_takes_little_or_goes_in_batches_is_no_stall(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=3_000_000, small=200_000)
        assert (await deploy.schema(replica, STEPS))["stalls"] == []
        await deploy.schema(replica, "CREATE INDEX xs ON small (x)")
        # Half a second is shown, and may be.
        assert [stall["seconds"] for stall in (await deploy.release(replica))["stalls"]] == [0.4]
