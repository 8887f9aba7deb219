"""Lists and bodies that are large: pages are bounded in bytes and go on, bodies in bytes and in what they may hold."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from control.api import pagination
from control.api.request_input import INVENTORY_BODY, SMALL_BODY
from control.protocol import wire
from tests.support import seeds
from tests.support.control import Control
from tests.support.replica import Replica, Site, TestNode

SHARE = pagination.BYTES + 4096
"""Bytes of a page, with what is around its items."""
STALL = 0.1
"""Seconds of work: five times what is the most of these loads' now, and less than it was before they were bounded."""


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """The longest work for which the loop let a timer wait, as the one element of a list, at the end.

    In seconds of the processor that this process had: those that a busy machine gives to others are none of its work.
    """
    longest = [0.0]

    async def watch() -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0.002)
            longest[0] = max(longest[0], time.process_time() - before)

    # A full collection of a test's process takes a second; a server's is seldom, and over little.
    gc.collect()
    gc.disable()
    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        gc.enable()
        watching.cancel()
        print(f"the loop's longest stall: {longest[0] * 1000:.0f} ms")
        assert longest[0] < STALL


async def whole(replica: Replica, path: str, limit: int = 1000) -> tuple[list[Any], int]:
    """All items of a list, and the number of its pages, each of which must be within its share of bytes."""
    found: list[Any] = []
    cursor, count = "", 0
    while True:
        answer = await replica.call("GET", f"{path}?limit={limit}{cursor and f'&cursor={cursor}'}")
        assert answer.status == 200, answer.body
        page = answer.json()
        assert page["items"]
        assert len(page["items"]) <= limit
        assert len(answer.body) <= SHARE or len(page["items"]) == 1, len(answer.body)
        found += page["items"]
        count += 1
        if page["next"] is None:
            return found, count
        cursor = page["next"]


async def insert(replica: Replica, statement: str, *arguments: Any) -> None:
    await replica.services.db.transaction(lambda conn: conn.execute(statement, *arguments))


async def test_releases_of_many_functions(control_site: Site) -> None:
    async with control_site.running() as replica:
        for number in (1, 2):
            await seeds.release(replica, reason=str(number))
        await insert(
            replica,
            "INSERT INTO releases (group_id, number, generation, schema_floor, reason, created_by, created_at)"
            " SELECT group_id, number + n, generation + n, 0, 'many', 'test', created_at"
            " FROM releases, generate_series(1, 60) AS n WHERE number = 2",
        )
        await insert(
            replica,
            "INSERT INTO release_functions (release_id, name, version, sha256)"
            " SELECT id, 'function-' || n, 1, repeat('0', 64) FROM releases, generate_series(1, 500) AS n"
            " WHERE reason = 'many'",
        )
        async with watched():
            releases, count = await whole(replica, "/v1/releases")
        assert [r["number"] for r in releases] == list(range(62, 0, -1))
        assert {len(r["functions"]) for r in releases} == {0, 500}
        assert count > 5


async def test_nodes_of_many_functions(control_site: Site) -> None:
    async with control_site.running() as replica:
        await seeds.nodes(replica, 300)
        await insert(
            replica,
            "INSERT INTO node_functions (node_id, name, version, sha256, manifest_digest)"
            " SELECT id, 'function-' || n, 1, repeat('0', 64), repeat('1', 64) FROM nodes, generate_series(1, 50) AS n",
        )
        async with watched():
            nodes, count = await whole(replica, "/v1/nodes")
        assert sorted(n["name"] for n in nodes) == sorted(f"seed-{number}" for number in range(300))
        assert {len(n["functions"]) for n in nodes} == {50}
        assert count > 3


async def test_versions_with_large_manifests_and_changes_with_long_texts(control_site: Site) -> None:
    async with control_site.running() as replica:
        for _ in range(30):
            await seeds.function(replica, "hello")
        # One of them has more by itself than a page may have.
        await insert(
            replica,
            "UPDATE function_versions SET manifest = jsonb_build_object('config', (SELECT jsonb_object_agg("
            " 'a' || n, repeat('x', 4000)) FROM generate_series(1, CASE WHEN version = 7 THEN 950 ELSE 15 END) AS n))",
        )
        async with watched():
            versions, count = await whole(replica, "/v1/functions/hello/versions")
        assert [v["version"] for v in versions] == list(range(30, 0, -1))
        assert count > 7
        for number in range(1, 13):
            await seeds.schema_change(replica, number, "-- " + "y" * 90_000 * (number % 4))
        changes, count = await whole(replica, "/v1/schema-changes")
        assert [c["number"] for c in changes] == list(range(1, 13))
        assert count > 5


async def test_small_items_fill_pages_to_their_limit(control_site: Site) -> None:
    async with control_site.running() as replica:
        await insert(
            replica,
            "INSERT INTO functions (name, last_version, created_at)"
            " SELECT 'f-' || n, 1, TIMESTAMPTZ '2026-01-01T00:00:00Z' FROM generate_series(1, 100) AS n",
        )
        await seeds.function(replica, "hello")
        await insert(
            replica,
            "INSERT INTO function_versions SELECT 'f-' || n, 1, v.artifact_id, v.sha256, v.size, v.manifest,"
            " v.manifest_digest, v.created_by, v.created_at"
            " FROM function_versions AS v, generate_series(1, 100) AS n",
        )
        for limit in (1, 2, 7, 1000):
            functions, count = await whole(replica, "/v1/functions", limit)
            assert len({f["name"] for f in functions}) == len(functions) == 101
            assert count == -(-101 // limit)


async def test_a_manifest_with_many_names_is_refused(control: Control) -> None:
    sha256 = "0" * 64
    async with watched():
        for names, status, code in (
            (150_000, 413, "body_too_large"),
            (6_000, 422, "invalid_body"),
            (1_001, 422, "invalid_body"),
            (1_000, 404, "unknown_artifact"),
        ):
            manifest = {"config": {f"name-{number:06d}": "value" for number in range(names)}}
            reply = await control.call("POST", "/v1/functions/hello/versions", {"sha256": sha256, "manifest": manifest})
            assert (reply.status, reply.code) == (status, code), names


async def test_a_release_is_bounded(control: Control) -> None:
    functions = {f"name-{number:06d}": 1 for number in range(wire.MOST_FUNCTIONS + 1)}
    reply = await control.call("POST", "/v1/releases", {"functions": functions})
    assert (reply.status, reply.code) == (422, "invalid_body")
    await control.services.db.transaction(lambda conn: _versions(conn, wire.MOST_FUNCTIONS + 1))
    functions.popitem()
    async with watched():
        first = await control.release(functions=functions)
    assert len(first["functions"]) == wire.MOST_FUNCTIONS
    reply = await control.call("POST", "/v1/releases", {"functions": {f"name-{wire.MOST_FUNCTIONS:06d}": 1}})
    assert (reply.status, reply.code) == (409, "release_not_possible")
    assert str(wire.MOST_FUNCTIONS) in reply.body["detail"]
    await control.services.db.transaction(
        lambda conn: conn.execute(
            "UPDATE function_versions SET manifest = jsonb_build_object('config', jsonb_build_object('a',"
            " repeat('x', 4096), 'b', repeat('y', 4096)))"
        )
    )
    reply = await control.call("POST", "/v1/releases", {"reason": "again"})
    assert (reply.status, reply.code) == (409, "release_not_possible")
    assert "bytes" in reply.body["detail"]


async def _versions(conn: Any, count: int) -> None:
    """Versions of functions of one artifact, past the API."""
    await conn.execute(
        "INSERT INTO artifacts (id, sha256, size, state, created_at, state_since)"
        " VALUES ('00000000-0000-4000-8000-000000000000', repeat('0', 64), 1, 'ready', '2026-01-01Z', '2026-01-01Z')"
    )
    await conn.execute(
        "INSERT INTO functions (name, last_version, created_at)"
        " SELECT 'name-' || lpad(n::text, 6, '0'), 1, '2026-01-01Z' FROM generate_series(0, $1::int - 1) AS n",
        count,
    )
    await conn.execute(
        "INSERT INTO function_versions"
        " (name, version, artifact_id, sha256, size, manifest, manifest_digest, created_by, created_at)"
        " SELECT name, 1, '00000000-0000-4000-8000-000000000000', repeat('0', 64), 1, '{}', repeat('1', 64), 'test',"
        " created_at FROM functions"
    )


async def test_a_fleet_that_reports_many_functions_at_once(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 30)
        for node in nodes:
            node.inventory.functions = [
                wire.RunningFunction(f"name-{number:03d}", 1, "0" * 64, "1" * 64) for number in range(300)
            ]
        async with watched():
            answers = await asyncio.gather(*(node.ask(report=True) for node in nodes))
        assert {answer.status for answer in answers} == {204}
        counts = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT count(DISTINCT name) AS n FROM node_functions GROUP BY node_id")
        )
        assert [row["n"] for row in counts] == [300] * 30
        # Read again: what runs is unchanged, so a release of nothing has them all removed.
        await seeds.release(replica)
        plans = await asyncio.gather(*(node.plan() for node in nodes))
        assert {len(plan.remove) for plan in plans} == {300}


def changes(count: int) -> wire.Inventory:
    return wire.Inventory(count, [wire.AppliedChange(n + 1, 1, f"{n:064x}") for n in range(count)], [], "database")


async def ask(node: TestNode, inventory: wire.Inventory) -> Any:
    node.inventory = inventory
    return await node.ask(report=True)


async def test_a_poll_with_a_large_inventory(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        async with watched():
            assert (await ask(node, changes(30_000))).json()["code"] == "body_too_large"
            answer = await ask(node, changes(wire.MOST_CHANGES + 1))
            assert (answer.status, answer.json()["field"]) == (422, "inventory.schema_changes")
            answer = await ask(node, changes(wire.MOST_CHANGES))
            assert answer.status == 204
            shown = await replica.node("one")
            assert shown["schema_version"] == wire.MOST_CHANGES
            poll = wire.Poll(0, wire.digest(node.inventory), capabilities_digest="x")
            poll.capabilities = {f"name-{number:06d}": "value" for number in range(50_000)}
            body = msgspec.json.encode(poll)
            assert SMALL_BODY < len(body) < INVENTORY_BODY
            answer = await replica.call("POST", "/v1/poll", body, token=node.credential)
            assert (answer.status, answer.json()["field"]) == (422, "capabilities")
