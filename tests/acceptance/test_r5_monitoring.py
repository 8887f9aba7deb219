"""Requirement 5: an operator watches every node's sync state."""

from datetime import datetime

import asyncpg

from control.protocol import wire
from tests.guests.version import version
from tests.support import deploy, repeating
from tests.support.clock import SetClock
from tests.support.deploy import ok
from tests.support.programs import skerry
from tests.support.replica import Advance, Replica, TestNode


async def _last_sync(replica: Replica, name: str) -> datetime | None:
    await repeating.saved(replica.services.heartbeats.flush)
    at = (await replica.node(name))["last_sync_at"]
    return None if at is None else datetime.fromisoformat(at)


async def _fail(node: TestNode, plan: wire.Plan, code: str, message: str) -> None:
    answer = await node.report(plan.sync_id, "failed", error=wire.SyncError(code, message))
    assert answer.json()["status"] == "failed"


async def test_r5_1_the_last_sync_time_is_recorded(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    node, other = await replica.join("one"), await replica.join("two")
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    assert await _last_sync(replica, "one") is None
    plan = await node.plan()
    await advance(7)
    assert await _last_sync(replica, "one") is None, "begun isn't synced"
    node.apply(plan)
    await node.report(plan.sync_id, "succeeded")
    synced = clock.time
    assert await _last_sync(replica, "one") == synced
    assert await metadata.fetchval("SELECT synced_at FROM nodes WHERE name = 'one'") == synced
    assert await _last_sync(replica, "two") is None

    # A failed one is none.
    await deploy.push(replica, "show", version(2), sql="read")
    await deploy.release(replica, functions={"show": 2})
    await advance(60)
    plan = await node.plan()
    await advance(1)
    await _fail(node, plan, "probe_failed", "no")
    assert await _last_sync(replica, "one") == synced
    # At target and confirmed again: it is in sync now.
    await advance(60)
    await node.sync()
    assert await _last_sync(replica, "one") == clock.time
    await advance(60)
    assert (await node.ask()).status == 204
    assert await _last_sync(replica, "one") == clock.time
    stored = await metadata.fetchval("SELECT last_sync_at FROM node_presence WHERE node_id = $1", node.id)
    assert stored == clock.time
    assert await _last_sync(replica, "two") is None
    assert other.generation == 0


async def test_r5_2_a_sync_five_minutes_late_is_a_warning(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    late, healthy = await replica.join("late"), await replica.join("healthy")
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    for node in (late, healthy):
        await node.sync()
    synced = clock.time
    await deploy.push(replica, "show", version(2), sql="read")
    await deploy.release(replica, functions={"show": 2})
    await healthy.sync()

    async def stored() -> list[tuple[str, str, datetime]]:
        rows = await metadata.fetch(
            "SELECT n.name, w.kind, w.since FROM warnings AS w JOIN nodes AS n ON n.id = w.node_id"
            " WHERE w.cleared_at IS NULL ORDER BY n.name"
        )
        return [tuple(row) for row in rows]

    async def warnings() -> list[tuple[str, str, datetime]]:
        shown = [
            (node["name"], w["kind"], datetime.fromisoformat(w["since"]))
            for node in await deploy.items(replica, "/v1/nodes")
            for w in node["warnings"]
        ]
        assert shown == await stored()
        return shown

    async def passes(seconds: float) -> None:
        """Time in which both poll, one of them for ever in trouble with its target."""
        for _ in range(4):
            await advance(seconds / 4)
            assert (await healthy.ask()).status == 204
            plan = await late.plan()
            await _fail(late, plan, "schema_change_failed", "UNIQUE constraint failed")
        await advance(0)

    await passes(299)
    assert await warnings() == []
    await passes(2)
    assert (clock.time - synced).total_seconds() == 301

    [(name, kind, since)] = await warnings()
    assert (name, kind) == ("late", "overdue")
    assert 300 < (since - synced).total_seconds() <= 301
    [node] = [n for n in (await skerry(replica, "status", "--json")).json()["nodes"] if n["name"] == "late"]
    assert f"{synced:%Y-%m-%d %H:%M:%S}" in node["warnings"][0]["message"]
    assert node["state"] == "online"
    # It stays one and the same.
    await passes(400)
    assert await warnings() == [("late", "overdue", since)]
    # Until the node is in sync.
    await late.sync()
    await advance(0)
    assert await warnings() == []
    row = await metadata.fetchrow("SELECT since, cleared_at FROM warnings")
    assert row is not None
    assert tuple(row) == (since, clock.time)

    # A node that isn't heard of at all is late too.
    await advance(301)
    assert ("late", "overdue", clock.time) in await warnings()


async def test_r5_3_failures_and_their_errors_are_recorded(
    replica: Replica, clock: SetClock, advance: Advance, metadata: asyncpg.Connection
) -> None:
    node = await replica.join("one")
    await replica.join("two")
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})

    async def trouble() -> tuple[int, str, str, datetime] | int:
        shown = await replica.node("one")
        row = await metadata.fetchrow(
            "SELECT failures, error_code, error_message, error_at FROM nodes WHERE name = 'one'"
        )
        assert row is not None
        assert row["failures"] == shown["failures"]
        if shown["error"] is None:
            assert tuple(row)[1:] == ("", "", None)
            return int(shown["failures"])
        at = datetime.fromisoformat(shown["error"]["at"])
        assert tuple(row)[1:] == (shown["error"]["code"], shown["error"]["message"], at)
        return shown["failures"], shown["error"]["code"], shown["error"]["message"], at

    assert await trouble() == 0
    await _fail(node, await node.plan(), "digest_mismatch", "the artifact's bytes are others")
    assert await trouble() == (1, "digest_mismatch", "the artifact's bytes are others", clock.time)
    await advance(30)
    plan = await node.plan()
    await _fail(node, plan, "probe_failed", "show answered 500: naïve 名前")
    assert await trouble() == (2, "probe_failed", "show answered 500: naïve 名前", clock.time)
    # The same report again is the same failure.
    await _fail(node, plan, "probe_failed", "show answered 500: naïve 名前")
    assert (await replica.node("one"))["failures"] == 2
    # A sync that nothing is heard of any more is one too.
    await advance(30)
    await node.plan()
    await advance(61)
    found = await trouble()
    assert isinstance(found, tuple)
    assert (found[0], found[1], found[3]) == (3, "sync_expired", clock.time)

    # A success ends the error, not the count.
    await node.sync()
    assert await trouble() == 3
    assert (await replica.node("two"))["failures"] == 0
    log = await deploy.items(replica, "/v1/syncs?node=one")
    assert [(s["status"], s["error"] and s["error"]["code"]) for s in log] == [
        ("succeeded", None),
        ("expired", "sync_expired"),
        ("failed", "probe_failed"),
        ("failed", "digest_mismatch"),
    ]


async def test_r5_4_every_nodes_functions_and_schema_version_are_listed(live: Replica) -> None:
    made = {}
    for number in (1, 2):
        made["show", number] = (await deploy.push(live, "show", version(number), sql="read"))["sha256"]
    made["other", 1] = (await deploy.push(live, "other", version(9), sql="read"))["sha256"]
    reader = (await ok(live, "POST", "/v1/operators", {"name": "watcher", "role": "read"}))["token"]
    behind, ahead = await live.join("behind"), await live.join("ahead")
    await live.join("empty")
    await deploy.schema(live, deploy.ITEMS)
    await deploy.release(live, functions={"show": 1})
    for node in (behind, ahead):
        await node.sync()
    await deploy.schema(live, "CREATE TABLE more (x)")
    await deploy.release(live, functions={"show": 2, "other": 1})
    await ahead.sync()

    nodes = (await skerry(live, "node", "list", "--json", token=reader)).json()
    runs = {
        n["name"]: ({f["name"]: (f["version"], f["sha256"]) for f in n["functions"]}, n["schema_version"])
        for n in nodes
    }
    assert runs == {
        "ahead": ({"other": (1, made["other", 1]), "show": (2, made["show", 2])}, 2),
        "behind": ({"show": (1, made["show", 1])}, 1),
        "empty": ({}, 0),
    }
    assert {n["name"]: n["at_target"] for n in nodes} == {"ahead": True, "behind": False, "empty": False}
    # For a person, too.
    table = (await skerry(live, "node", "list", token=reader)).out.decode()
    [line] = [line for line in table.splitlines() if "ahead" in line]
    assert "show@2" in line
    assert "other@1" in line
    # A page at a time.
    page = await ok(live, "GET", "/v1/nodes?limit=2")
    rest = await ok(live, "GET", f"/v1/nodes?limit=2&cursor={page['next']}")
    assert [n["name"] for n in page["items"] + rest["items"]] == ["ahead", "behind", "empty"]
