"""Requirement 6: a sync survives failures in the middle. Each side has its transaction.

Edge: the libsql transaction that applies schema changes and records the release. Control: one transaction that opens
a sync with its log and the node's state, and one for a result: what the node runs, its last sync and the log.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from control.protocol import wire
from tests.guests.version import version
from tests.support import cockroachdb, deploy
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.deploy import ok
from tests.support.programs import EdgeProgram, Faults, control_program, edge_program, join, skerry, until
from tests.support.replica import Advance, Replica, Site
from tests.support.services import is_cockroachdb

EXTRA = "CREATE TABLE extra (x); INSERT INTO extra VALUES (7)"
UNIQUE = "CREATE UNIQUE INDEX items_by_name ON items (name)"
"""Fails on a node that has two items of one name."""
FILE = (
    "SELECT group_concat(number) FROM _skerry_changes",
    "SELECT number FROM _skerry_release",
    "SELECT version FROM _skerry_functions WHERE name = 'show'",
    "SELECT x FROM extra",
)
OLD = [[["1"]], [[1]], [[1]], "no such table: extra"]
NEW = [[["1,2"]], [[2]], [[2]], [[7]]]


@asynccontextmanager
async def running_edge(control: Replica, folder: Path, faults: Faults) -> AsyncIterator[EdgeProgram]:
    """A node at release 1, whose function `add` has written two rows of one name."""
    state = folder / "edge"
    assert (await join(control, state, "edge-1")).status == 0
    await deploy.schema(control, deploy.ITEMS)
    await deploy.push(control, "show", version(1, deploy.SHOW), sql="read")
    await deploy.push(control, "add", version(1, deploy.ADD), sql="write")
    await deploy.release(control, functions={"show": 1, "add": 1})
    async with edge_program(state, faults) as edge:
        await edge.at_release(1)
        assert [await edge.rows("add", "POST") for _ in range(2)] == [[[1]], [[2]]]
        assert await edge.file(*FILE) == OLD
        yield edge


async def next_release(control: Replica, sql: str = EXTRA) -> None:
    """Schema change 2 and version 2 of `show`, which asks for something that only schema 2 has."""
    await deploy.schema(control, sql)
    await deploy.push(control, "show", version(2, "SELECT x FROM extra"), sql="read")
    await deploy.release(control, functions={"show": 2})


async def serves_old(edge: EdgeProgram) -> None:
    assert await edge.call("show") == (200, b'{"version":1,"schema":%s}\n' % _count(2))
    status = await edge.status()
    assert (status["release"]["number"], status["schema_version"]) == (1, 1)


async def serves_new(edge: EdgeProgram) -> None:
    status = await edge.at_release(2)
    assert status["schema_version"] == 2
    assert (await edge.call("show"))[0] == 200
    assert await edge.rows("show") == [[7]]
    assert await edge.file(*FILE) == NEW


def _count(number: int) -> bytes:
    return b'{"columns":["count(*)"],"rows":[[%d]],"changes":0,"last_id":null}' % number


@asynccontextmanager
async def a_node_with_a_plan(site: Site, folder: Path, faults: Faults) -> AsyncIterator[Any]:
    """Control as a process, and a node of it that has begun a sync."""
    async with control_program(site, folder / "control", faults) as (program, control):
        node = await control.join("one")
        await node.poll()
        await deploy.schema(control, deploy.ITEMS)
        await deploy.push(control, "show", version(1, deploy.SHOW), sql="read")
        await deploy.release(control, functions={"show": 1})
        yield program, control, node


async def recorded(metadata: asyncpg.Connection) -> dict[str, Any]:
    """What the metadata DB has of the only node, in one view of it."""
    row = await metadata.fetchrow(
        "SELECT state, schema_version, digest, synced_at, confirmed_generation,"
        " (SELECT count(*) FROM node_functions) AS functions,"
        " (SELECT string_agg(status, ',' ORDER BY started_at) FROM syncs) AS syncs FROM nodes"
    )
    assert row is not None
    return dict(row)


async def test_r6_1_the_edge_applies_a_release_in_one_transaction(
    live: Replica, faults: Faults, tmp_path: Path
) -> None:
    async with running_edge(live, tmp_path, faults) as edge:
        faults.arm("edge.apply.after", "hold")
        await next_release(live)
        await faults.reached("edge.apply.after")
        # Everything is done but the COMMIT: nobody else sees any of it, and nobody else can write.
        assert await edge.file(*FILE) == OLD
        assert await edge.file("BEGIN IMMEDIATE") == ["database is locked"]
        await serves_old(edge)
        [sync] = await deploy.items(live, "/v1/syncs?status=running")
        assert sync["release"] == 2
        faults.let_go("edge.apply.after")
        await serves_new(edge)


async def test_r6_1_control_opens_a_sync_in_one_transaction(
    control_site: Site, metadata: asyncpg.Connection, faults: Faults, tmp_path: Path
) -> None:
    async with a_node_with_a_plan(control_site, tmp_path, faults) as (program, _control, node):
        before = await recorded(metadata)
        assert (before["state"], before["syncs"]) == ("online", None)
        faults.arm("control.poll.before", "hold")
        asked = asyncio.create_task(node.poll())
        await faults.reached("control.poll.before")
        if not await is_cockroachdb(metadata):  # which doesn't tell what other connections do
            open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = $1"
            assert await metadata.fetchval(open_ones, "idle in transaction") >= 1  # a look for new targets may be, too
        assert await recorded(metadata) == before
        await program.kill()
        with pytest.raises(aiohttp.ClientError):
            await asked
        assert await recorded(metadata) == before
        await program.again()
        await node.plan()
        after = await recorded(metadata)
        assert (after["state"], after["syncs"]) == ("syncing", "running")


async def failure(edge: EdgeProgram, code: str) -> Any:
    """Wait until the node's sync has failed so. A poll that control couldn't answer is told by the node as well."""

    async def failed() -> Any:
        error = (await edge.status())["error"]
        return error if error and error["code"] == code else None

    return await until(failed, f"the sync has failed: {code}")


async def test_r6_2_an_error_in_the_middle_rolls_the_edge_back(live: Replica, faults: Faults, tmp_path: Path) -> None:
    async with running_edge(live, tmp_path, faults) as edge:
        # Its last statement fails on this node's data.
        await next_release(live, f"{EXTRA}; {UNIQUE}")

        error = await failure(edge, "schema_change_failed")
        assert UNIQUE in error["message"]
        assert await edge.file(*FILE) == OLD
        await serves_old(edge)

        async def told() -> Any:
            node = await live.node("edge-1")
            # Every few seconds it tries again.
            return node if node["error"] and node["state"] == "online" else None

        node = await until(told, "control knows of it")
        assert node["error"]["code"] == "schema_change_failed"
        assert node["failures"] >= 1
        assert (node["at_target"], node["schema_version"]) == (False, 1)
        # Writes go on, and the amended change arrives by itself.
        assert await edge.rows("add", "POST") == [[3]]
        await ok(
            live,
            "POST",
            "/v1/schema-changes/2/revisions",
            {"sql": f"DELETE FROM items; {EXTRA}; {UNIQUE}", "allow_loss": True},
        )
        await deploy.release(live)
        await edge.at_release(3)
        assert await edge.rows("show") == [[7]]


async def test_r6_2_a_kill_before_the_commit_rolls_the_edge_back(live: Replica, faults: Faults, tmp_path: Path) -> None:
    async with running_edge(live, tmp_path, faults) as edge:
        faults.arm("edge.commit.before", "hold")
        await next_release(live)
        await faults.reached("edge.commit.before")
        await edge.kill()
        faults.arm("edge.sync.fetch.before", "hold")  # so that it doesn't go on at once
        await edge.again()
        assert await edge.file(*FILE) == OLD
        await faults.reached("edge.sync.fetch.before")
        faults.let_go("edge.sync.fetch.before")
        await serves_new(edge)
        # Only the process that applies dies: the front goes on, and tries again.
        faults.arm("edge.commit.before", "kill")
        await deploy.push(live, "show", version(3, "SELECT x FROM extra"), sql="read")
        await deploy.release(live, functions={"show": 3})
        await faults.reached("edge.commit.before")
        faults.arm("edge.sync.fetch.before", "hold")  # so that the next attempt, in some seconds, waits
        await failure(edge, "applier_died")
        assert (await edge.status())["release"]["number"] == 2
        assert await edge.rows("show") == [[7]]
        await ok(live, "POST", "/v1/nodes/edge-1/retry")
        await faults.reached("edge.sync.fetch.before")
        faults.let_go("edge.sync.fetch.before")
        await edge.at_release(3)


@pytest.mark.parametrize("how", ["kill", "cut"])
async def test_r6_2_control_rolls_back_a_result_in_its_middle(
    control_site: Site, metadata: asyncpg.Connection, faults: Faults, tmp_path: Path, how: str
) -> None:
    async with (
        cockroachdb.proxied(control_site.settings.metadata_url, plain=True) as (proxy, url),
        a_node_with_a_plan(control_site.at(url), tmp_path, faults) as (program, control, node),
    ):
        plan = await node.plan()
        before = await recorded(metadata)
        assert (before["state"], before["syncs"], before["functions"]) == ("syncing", "running", 0)
        node.apply(plan)
        faults.arm("control.result.before", "hold")
        told = asyncio.create_task(node.report(plan.sync_id, "succeeded"))
        await faults.reached("control.result.before")
        # Inventory, last sync and log are written, and nothing of them is to be seen.
        assert await recorded(metadata) == before
        if how == "kill":
            await program.kill()
            with pytest.raises(aiohttp.ClientError):
                await told
            assert await recorded(metadata) == before
            await program.again()
        else:
            proxy.cut_all()
            faults.let_go("control.result.before")
            answer = await told
            # It may be told to ask again, or control did so itself.
            assert answer.status in (200, 503), answer
            if answer.status == 503:
                assert await recorded(metadata) == before
        # As every node does without an answer, it reports again.
        assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
        after = await recorded(metadata)
        assert (after["state"], after["syncs"], after["functions"]) == ("online", "succeeded", 1)
        assert (after["schema_version"], after["digest"]) == (1, wire.digest(node.inventory))
        assert after["synced_at"] is not None
        assert (await control.node("one"))["at_target"] is True


async def test_r6_3_the_edge_commits_a_success_whole(live: Replica, faults: Faults, tmp_path: Path) -> None:
    async with running_edge(live, tmp_path, faults) as edge:
        faults.arm("edge.commit.after", "hold")
        await next_release(live)
        await faults.reached("edge.commit.after")
        assert await edge.file(*FILE) == NEW
        # Committed is committed, though nobody was told: neither the front nor control.
        await edge.kill()
        faults.arm("edge.sync.fetch.before", "hold")
        await edge.again()
        await serves_new(edge)

        async def confirmed() -> bool:
            node = await live.node("edge-1")
            return bool(node["at_target"]) and node["schema_version"] == 2 and node["sync"] is None

        await until(confirmed, "control knows what the node runs")
        assert not (faults.folder / "edge.sync.fetch.before.held").exists(), "there was nothing left to do"
        assert [s["status"] for s in await deploy.items(live, "/v1/syncs")] == ["succeeded", "succeeded"]
        assert await edge.rows("add", "POST") == [[3]]


async def test_r6_3_control_commits_a_success_whole(
    control_site: Site, metadata: asyncpg.Connection, faults: Faults, tmp_path: Path
) -> None:
    async with a_node_with_a_plan(control_site, tmp_path, faults) as (program, _control, node):
        plan = await node.plan()
        before = await recorded(metadata)
        node.apply(plan)
        seen: list[dict[str, Any]] = []

        async def watch() -> None:
            while True:
                seen.append(await recorded(metadata))

        watching = asyncio.create_task(watch())
        async with deadline(60):
            while not seen:
                await asyncio.sleep(0.001)
        faults.arm("control.result.after", "kill")
        with pytest.raises(aiohttp.ClientError):
            await node.report(plan.sync_id, "succeeded")
        await program.ended()
        watching.cancel()
        await asyncio.wait([watching])
        # All of it or nothing, whenever one looks; and it is there, though the answer was lost.
        after = await recorded(metadata)
        assert (after["state"], after["syncs"], after["functions"]) == ("online", "succeeded", 1)
        assert all(view in (before, after) for view in seen)
        assert before in seen
        await program.again()
        again = await node.report(plan.sync_id, "succeeded")
        assert again.json() == {"status": "succeeded", "lease": 0}
        assert await recorded(metadata) == after


async def test_r6_4_a_log_of_syncs_is_recorded(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    node, other = await replica.join("one"), await replica.join("two")
    expected: list[dict[str, Any]] = []

    async def begins(number: int) -> wire.Plan:
        await deploy.push(replica, "show", version(number), sql="read")
        await deploy.release(replica, functions={"show": number})
        clock.advance(10)
        return await node.plan()

    def ends(plan: wire.Plan, status: str, error: wire.SyncError | None = None, after: float = 5) -> None:
        expected.insert(
            0,
            {
                "id": plan.sync_id,
                "node": "one",
                "group": "default",
                "release": plan.release_number,
                "generation": plan.generation,
                "status": status,
                "started_at": clock.time,
                "ended_at": None,
                "error": error and {"code": error.code, "message": error.message},
            },
        )
        clock.advance(after)
        expected[0]["ended_at"] = clock.time

    plan = await begins(1)
    error = wire.SyncError("probe_failed", "show answered 500")
    ends(plan, "failed", error)
    await node.report(plan.sync_id, "failed", error=error)
    clock.advance(5)
    plan = await node.plan()
    ends(plan, "succeeded")
    node.apply(plan)
    await node.report(plan.sync_id, "succeeded")

    # What is newly decided takes the place of what is under way.
    ends(await begins(2), "superseded")
    plan = await begins(3)
    expected[0]["ended_at"] = clock.time
    # Nothing is heard any more.
    ends(plan, "expired", after=61)

    async def log() -> list[dict[str, Any]]:
        return (await skerry(replica, "syncs", "list", "--node", "one", "--json")).json()  # type: ignore[no-any-return]

    await advance(0)
    expected[0]["error"] = {"code": "sync_expired", "message": "nothing was heard of the sync; its lease ended 1 s ago"}
    found = await log()
    for entry, wanted in zip(found, expected, strict=True):
        times = {key: wanted.pop(key).isoformat().replace("+00:00", "Z") for key in ("started_at", "ended_at")}
        assert {**entry, **wanted, **times} == entry
    # In the metadata DB, of both nodes.
    await other.sync()
    rows = await metadata.fetch(
        "SELECT n.name, s.status FROM syncs AS s JOIN nodes AS n ON n.id = s.node_id ORDER BY s.started_at"
    )
    assert [tuple(row) for row in rows] == [
        ("one", "failed"),
        ("one", "succeeded"),
        ("one", "superseded"),
        ("one", "expired"),
        ("two", "succeeded"),
    ]
    assert [s["status"] for s in await deploy.items(replica, "/v1/syncs?status=failed")] == ["failed"]
    # What comes after the end is recorded as late.
    assert (await node.report(plan.sync_id, "failed", error=error)).json()["late"] is True
    assert (await ok(replica, "GET", f"/v1/syncs/{plan.sync_id}"))["late"] == "failed"
