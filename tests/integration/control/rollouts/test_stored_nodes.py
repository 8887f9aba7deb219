"""A rollout's nodes as the rules get them from the database: who counts, what fails, and what was another release's."""

from datetime import UTC, datetime, timedelta
from typing import Any

from control.protocol import wire
from control.rollouts import store
from control.rollouts.rules import GroupNode
from control.storage.announcements import Changed
from control.sync import own_targets
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deploy import ok
from tests.support.replica import Replica, Site, TestNode

SAY = """
INSERT INTO rollout_gates (release_id, step, gate, outcome, calls, why, measured_at)
SELECT release_id, 1, 0, 'failed', 9, '', now() FROM rollouts
"""
ERROR = wire.SyncError("probe_failed", "no greeting")


async def at_first(replica: Replica, *names: str) -> list[TestNode]:
    """Nodes that run the group's first release; the function has three versions."""
    nodes = [await replica.join(name) for name in names]
    for _ in range(3):
        await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    for node in nodes:
        await node.sync()
    return nodes


async def rolled_out(replica: Replica, version: int, **policy: Any) -> int:
    """Make a release that goes out in steps; nobody carries it on."""
    body = {"functions": {"hello": version}, "rollout": {"rehearse": False, **policy}}
    return int((await ok(replica, "POST", "/v1/releases", body))["number"])


async def seen(replica: Replica, number: int) -> dict[str, GroupNode]:
    """The nodes that count, by name."""

    async def read(conn: Any) -> dict[str, GroupNode]:
        stored = await store.by_number(conn, "default", number)
        assert stored is not None
        rows = await conn.fetch("SELECT id::text AS id, name FROM nodes")
        names = {row["id"]: row["name"] for row in rows}
        return {names[node.id]: node for node in (await store.fleet(conn, stored)).nodes}

    return await replica.services.db.read(read)


async def started(replica: Replica, number: int) -> int:
    """How many nodes it has started, as its steps count them."""

    async def read(conn: Any) -> int:
        stored = await store.by_number(conn, "default", number)
        assert stored is not None
        return (await store.fleet(conn, stored)).started

    return await replica.services.db.read(read)


async def shown(replica: Replica, number: int) -> Any:
    return await ok(replica, "GET", f"/v1/rollouts/default/{number}")


async def start(replica: Replica, number: int, *nodes: TestNode) -> None:
    """Start nodes, as the runner does."""

    async def work(conn: Any) -> None:
        stored = await store.by_number(conn, "default", number)
        assert stored is not None
        ids = [node.id for node in nodes]
        await own_targets.set_own(conn, stored.row.release_id, ids, 1, replica.services.clock.now())
        await Changed(nodes=set(ids)).announce(conn)

    await replica.services.db.transaction(work)
    await replica.services.fleet.announced()


async def test_who_counts_and_where_each_node_is(control_site: Site) -> None:
    async with control_site.running() as replica:
        revoked, moved, *_ = await at_first(replica, "revoked", "moved", "north", "offline", "removed")
        await ok(replica, "POST", "/v1/nodes/north/labels", {"set": {"region": "north", "size": "1"}})
        await ok(replica, "POST", "/v1/groups", {"name": "other"})
        number = await rolled_out(replica, 2, spread_by="region", gate=[{"metric": "p99", "at_most": "1s"}])
        await start(replica, number, revoked, moved)
        await ok(replica, "POST", "/v1/nodes/revoked/revoke", {})
        await ok(replica, "POST", "/v1/nodes/moved/move", {"group": "other"})
        assert (await replica.call("DELETE", "/v1/nodes/removed")).status == 204
        await replica.services.db.transaction(
            lambda conn: conn.execute("UPDATE nodes SET state = 'offline' WHERE name = 'offline'")
        )
        found = await seen(replica, number)
        assert {name: (node.label, node.online) for name, node in found.items()} == {
            "north": ("north", True),
            "offline": ("", False),
        }
        # Those that have left fill the step as before.
        assert await started(replica, number) == 2
        # When it begins again, they don't, and no gate has said anything.
        await replica.services.db.transaction(lambda conn: conn.execute(SAY))
        assert [gate["outcome"] for gate in (await shown(replica, number))["plan"][0]["gates"]] == ["failed"]
        await ok(replica, "POST", f"/v1/rollouts/default/{number}/abort", {})
        # The one that is revoked goes back, as it never ran the release.
        assert await started(replica, number) == 1
        await ok(replica, "POST", f"/v1/rollouts/default/{number}/retry", {})
        assert await started(replica, number) == 0
        assert [gate["outcome"] for gate in (await shown(replica, number))["plan"][0]["gates"]] == ["unknown"]


async def test_what_fails_of_another_release_is_no_failure_of_this_one(control_site: Site) -> None:
    """A node may tell, after a rollout has started it, how a sync to its release before has ended."""
    clock = SetClock(datetime.now(UTC))
    async with control_site.running(clock=clock) as replica:
        late, silent, before = await at_first(replica, "late", "silent", "before")
        first = await rolled_out(replica, 2)
        await start(replica, first, late, silent, before)
        plans = {node.id: await node.plan() for node in (late, silent, before)}
        await before.report(plans[before.id].sync_id, "failed", error=ERROR)
        number = await rolled_out(replica, 3)
        clock.advance(1)
        await start(replica, number, late, silent, before)
        answer = await late.report(plans[late.id].sync_id, "failed", error=ERROR)
        assert answer.status == 200, answer
        clock.advance(replica.services.settings.sync_lease + 1)
        await replica.services.monitor().expire(clock.now())
        found = await seen(replica, number)
        assert [name for name, node in found.items() if node.failed] == []
        # Its log has it all the same.
        syncs = (await ok(replica, "GET", "/v1/syncs"))["items"]
        said = {s["node"]: (s["status"], s["error"]["code"]) for s in syncs if s["release"] == first}
        assert said == {
            "before": ("failed", "probe_failed"),
            "late": ("failed", "probe_failed"),
            "silent": ("expired", "sync_expired"),
        }
        # What fails of this one counts, and so does silence, until the node runs it.
        for node in (late, silent):
            plans[node.id] = await node.plan()
        clock.advance(1)
        await late.report(plans[late.id].sync_id, "failed", error=ERROR)
        clock.advance(replica.services.settings.sync_lease + 1)
        await replica.services.monitor().expire(clock.now())
        found = await seen(replica, number)
        assert {name for name, node in found.items() if node.failed} == {"late", "silent"}
        clock.advance(timedelta(hours=1).total_seconds())
        await silent.sync()
        found = await seen(replica, number)
        assert (found["silent"].failed, found["silent"].reached) == (False, clock.now())
