"""Requirement 3: a database administrator delivers schema changes to every node."""

import asyncio
import hashlib
from pathlib import Path

import asyncpg

from control.protocol import wire
from tests.support import deploy
from tests.support.clock import SetClock
from tests.support.deploy import code, ok
from tests.support.programs import edge_program, join, skerry, until
from tests.support.replica import Replica


async def test_r3_1_a_schema_change_is_saved_in_the_metadata_db(
    replica: Replica, clock: SetClock, metadata: asyncpg.Connection, tmp_path: Path
) -> None:
    sql = "CREATE TABLE items (\n  name TEXT -- naïve; 名前\n);\nCREATE INDEX by_name ON items (name);\n"
    file = tmp_path / "items.sql"
    file.write_text(sql)
    done = (await skerry(replica, "schema", "add", file, "--no-release", "--json")).json()
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    assert (done["change"]["name"], done["change"]["checksum"]) == ("items", checksum)
    [row] = await metadata.fetch("SELECT * FROM schema_changes")
    assert (row["number"], row["name"], row["sql"], row["checksum"]) == (1, "items", sql, checksum)
    assert (row["created_at"], row["created_by"]) == (clock.time, "admin")
    [listed] = (await skerry(replica, "schema", "list", "--json")).json()
    assert (listed["sql"], listed["number"]) == (sql, 1)

    # What no node could apply is refused with its reason, and not saved.
    for wrong, word in (
        ("CREATE TABLE items (other TEXT)", "items"),
        ("CREATE TABLE more (x); SELEKT 1", "SELEKT"),
        ("PRAGMA user_version = 3", "PRAGMA"),
        ("DROP TABLE _skerry_release", "_skerry_release"),
    ):
        refused = await replica.call("POST", "/v1/schema-changes", {"name": "wrong", "sql": wrong})
        assert (refused.status, code(refused)) == (422, "schema_refused"), wrong
        assert word in refused.json()["detail"]
    assert await metadata.fetchval("SELECT count(*) FROM schema_changes") == 1


async def test_r3_2_schema_changes_are_numbered_in_sequence(live: Replica, metadata: asyncpg.Connection) -> None:
    assert [(await deploy.schema(live, f"CREATE TABLE t{n} (x)"))["number"] for n in (1, 2)] == [1, 2]
    # At the same time: each its own, without a gap, whatever the order.
    made = await asyncio.gather(*(deploy.schema(live, f"CREATE TABLE u{n} (x)") for n in range(4)))
    assert sorted(change["number"] for change in made) == [3, 4, 5, 6]
    # A refused one takes no number, and a number that was asked for is a guard.
    refused = await live.call("POST", "/v1/schema-changes", {"name": "wrong", "sql": "nonsense"})
    assert refused.status == 422
    late = await live.call("POST", "/v1/schema-changes", {"name": "late", "sql": "CREATE TABLE v (x)", "number": 6})
    assert (late.status, code(late)) == (409, "schema_conflict")
    right = await ok(live, "POST", "/v1/schema-changes", {"name": "n", "sql": "CREATE TABLE v (x)", "number": 7})
    assert right["number"] == 7
    # A revision keeps the number.
    amended = await ok(live, "POST", "/v1/schema-changes/7/revisions", {"sql": "CREATE TABLE v (x) -- again"})
    assert (amended["number"], amended["revision"]) == (7, 2)
    rows = await metadata.fetch("SELECT DISTINCT number FROM schema_changes ORDER BY number")
    assert [row["number"] for row in rows] == list(range(1, 8))
    assert [change["number"] for change in await deploy.items(live, "/v1/schema-changes")] == list(range(1, 8))


async def test_r3_3_a_sync_returns_the_changes_that_the_node_lacks(live: Replica) -> None:
    sql = {number: f"CREATE TABLE t{number} (x)" for number in (1, 2, 3, 4)}
    early, middle, late = [await live.join(name) for name in ("early", "middle", "late")]

    async def asks(node_plan: wire.Plan) -> list[tuple[int, str]]:
        assert all(change.checksum == wire.schema_checksum(change.sql) for change in node_plan.schema_changes)
        return [(change.number, change.sql) for change in node_plan.schema_changes]

    await deploy.schema(live, sql[1])
    await deploy.release(live)
    assert await asks(await early.sync()) == [(1, sql[1])]
    assert await asks(await middle.sync()) == [(1, sql[1])]
    for number in (2, 3):
        await deploy.schema(live, sql[number])
    await deploy.release(live)
    assert await asks(await early.sync()) == [(2, sql[2]), (3, sql[3])]

    # Past the release's floor nothing is given, though it is registered.
    await deploy.schema(live, sql[4])
    assert (await early.poll()).status == 204
    # Who lacks a change that was amended meanwhile gets the new text, who has it gets nothing.
    sql[3] += " -- revised"
    await ok(live, "POST", "/v1/schema-changes/3/revisions", {"sql": sql[3]})
    assert await asks(await middle.plan()) == [(2, sql[2]), (3, sql[3])]
    assert await asks(await late.sync()) == [(n, sql[n]) for n in (1, 2, 3)]
    assert (await early.poll()).status == 204
    await deploy.release(live)
    assert await asks(await early.sync()) == [(4, sql[4])]


async def test_r3_4_every_nodes_schema_version_is_tracked(
    live: Replica, metadata: asyncpg.Connection, tmp_path: Path
) -> None:
    assert (await join(live, tmp_path / "edge", "real", "--json")).status == 0
    node = await live.join("one")
    await node.poll()

    async def stored() -> dict[str, int]:
        return {row["name"]: row["schema_version"] for row in await metadata.fetch("SELECT * FROM nodes")}

    async def versions() -> dict[str, int]:
        before = await stored()
        shown = {n["name"]: n["schema_version"] for n in await deploy.items(live, "/v1/nodes")}
        assert shown in (before, await stored())
        return shown

    assert await versions() == {"one": 0, "real": 0}
    await deploy.schema(live, deploy.ITEMS)
    await deploy.schema(live, "CREATE TABLE more (x)")
    await deploy.release(live)
    plan = await node.plan()
    assert await versions() == {"one": 0, "real": 0}, "planned isn't applied"
    failed = wire.SyncError("schema_change_failed", "no")
    assert (await node.report(plan.sync_id, "failed", error=failed)).status == 200
    assert await versions() == {"one": 0, "real": 0}

    async with edge_program(tmp_path / "edge") as edge:
        assert (await edge.at_release(1))["schema_version"] == 2

        async def there() -> bool:
            return await versions() == {"one": 0, "real": 2}

        await until(there, "the real node's schema version is known")
        await node.sync()
        assert await versions() == {"one": 2, "real": 2}
    status = (await skerry(live, "status", "--json")).json()
    assert {n["name"]: (n["schema_version"], n["target_schema"]) for n in status["nodes"]} == {
        "one": (2, 2),
        "real": (2, 2),
    }
