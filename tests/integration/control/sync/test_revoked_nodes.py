"""A revoked node is a state of its own: control says so everywhere, expects nothing of it, and waits for nothing."""

from datetime import datetime
from uuid import uuid4

from control.protocol import wire
from control.storage.connection import Connection
from control.sync.reconciler import NodeRequest
from control.sync.reports import SyncReport
from tests.support import deploy, seeds
from tests.support.clock import SetClock
from tests.support.control import module
from tests.support.replica import Replica, Site, TestNode


async def revoke(replica: Replica, name: str) -> None:
    await deploy.ok(replica, "POST", f"/v1/nodes/{name}/revoke")


async def look(replica: Replica) -> None:
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())


async def events(replica: Replica) -> list[str]:
    """The kinds of events that were recorded for a webhook, once for each thing."""
    rows = await replica.services.db.read(lambda conn: conn.fetch("SELECT kind, count FROM events"))
    return [kind for kind, count in rows for _ in range(count)]


async def webhook(replica: Replica) -> None:
    """A webhook, without which no event is recorded; nothing is sent to it."""
    await replica.services.db.transaction(
        lambda conn: conn.execute(
            "INSERT INTO webhooks (name, url, secret, created_by, created_at)"
            " VALUES ('pager', 'https://127.0.0.1', '', 'test', $1)",
            replica.services.clock.now(),
        )
    )


async def rejoin(replica: Replica, name: str) -> TestNode:
    token = (await deploy.ok(replica, "POST", "/v1/join-tokens", {"rejoin": name}))["token"]
    joined = await deploy.ok(replica, "POST", "/v1/nodes", wire.Join(name, str(uuid4())), token=token)
    return TestNode(replica, joined["node_id"], joined["credential"])


async def test_the_state_is_shown_and_filtered_until_the_node_joins_again(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await webhook(replica)
        node, other = await replica.join("one"), await replica.join("two")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        await other.sync()
        clock.advance(10)
        await revoke(replica, "one")
        shown = await replica.node("one")
        assert (shown["state"], shown["standing"], shown["credential"]) == ("revoked", "revoked", None)
        since = shown["state_since"]
        for query in ("standing=revoked", "state=revoked"):
            assert [n["name"] for n in await deploy.items(replica, f"/v1/nodes?{query}")] == ["one"]
        for query in ("standing=at_target", "state=online"):
            assert [n["name"] for n in await deploy.items(replica, f"/v1/nodes?{query}")] == ["two"]
        (group,) = (await deploy.ok(replica, "GET", "/v1/fleet"))["groups"]
        assert (group["standings"]["revoked"], group["standings"]["at_target"]) == (1, 1)
        metrics = (await replica.call("GET", "/metrics")).body.decode()
        assert 'skerry_nodes{group="default",standing="revoked",release="1"} 1' in metrics
        # By the clock nothing comes of it: it is neither offline nor overdue, and no receiver is told so.
        clock.advance(400)
        await look(replica)
        shown = await replica.node("one")
        assert (shown["state"], shown["state_since"], shown["warnings"]) == ("revoked", since, [])
        assert (await replica.node("two"))["state"] == "offline"
        assert (await deploy.ok(replica, "GET", "/v1/fleet"))["groups"][0]["overdue"] == 1
        assert [n["name"] for n in await deploy.items(replica, "/v1/nodes?overdue=true")] == ["two"]
        told = await events(replica)
        assert (told.count("node.offline"), told.count("node.overdue")) == (1, 1)
        # Revoked once more it stays what it is; joined again it is a node as any other.
        await revoke(replica, "one")
        assert (await replica.node("one"))["state_since"] == since
        node = await rejoin(replica, "one")
        assert (await replica.node("one"))["state"] == "online"
        await node.sync()
        assert (await replica.node("one"))["standing"] == "at_target"


async def test_the_node_itself_learns_why_it_is_refused(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        assert (await node.poll()).status == 204
        await revoke(replica, "one")
        refused = await node.poll()
        assert (refused.status, deploy.code(refused)) == (401, "node_revoked")
        assert "skerry node token --rejoin one" in refused.json()["detail"]
        back = await rejoin(replica, "one")
        assert (await back.poll()).status == 204
        # The old disk, beside the new one: not the node is refused, but this credential.
        old = await node.poll()
        assert (old.status, deploy.code(old)) == (401, "credentials_invalid")
        assert "newer credential" in old.json()["detail"]
        await deploy.ok(replica, "DELETE", "/v1/nodes/one")
        gone = await back.poll()
        assert (gone.status, deploy.code(gone)) == (401, "node_removed")
        assert gone.json()["detail"].startswith("node one was removed")
        # Who hasn't the secret learns nothing.
        guessed = await replica.call("POST", "/v1/poll", {}, token=f"{back.credential[:-3]}AAA")
        assert deploy.code(guessed) == "credentials_invalid"
        assert "one" not in guessed.json()["detail"].split()


async def test_a_failing_or_syncing_node_that_is_revoked_is_revoked(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        failing, syncing = await replica.join("failing"), await replica.join("syncing")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        plan = await failing.plan()
        await failing.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
        plan = await syncing.plan()
        for name in ("failing", "syncing"):
            await revoke(replica, name)
        (group,) = (await deploy.ok(replica, "GET", "/v1/fleet"))["groups"]
        assert group["standings"] == {**dict.fromkeys(group["standings"], 0), "revoked": 2}
        assert group["failing"] == []
        assert await deploy.items(replica, "/v1/nodes?error=disk_full") == []
        assert [s["status"] for s in await deploy.items(replica, "/v1/syncs?node=syncing")] == ["superseded"]
        # Nothing is left to expire, which would have it be something else.
        clock.advance(3600)
        await look(replica)
        assert {n["standing"] for n in await deploy.items(replica, "/v1/nodes")} == {"revoked"}


async def test_what_is_decided_late_does_not_bring_it_back(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        plan = await node.plan()
        inventory = node.inventory
        node.apply(plan)
        await revoke(replica, "one")
        # As a replica does that hasn't heard of it yet.
        late = NodeRequest(node.id, wire.digest(inventory), inventory, None)
        assert (await replica.services.decisions.ask(late)).kind == "plan"
        assert (await replica.node("one"))["standing"] == "revoked"
        update = wire.SyncUpdate(status="succeeded", inventory=node.inventory)
        await replica.services.reports.ask(SyncReport(plan.sync_id, node.id, update))
        clock.advance(3600)
        await look(replica)
        assert (await replica.node("one"))["standing"] == "revoked"


async def test_a_node_that_was_revoked_by_an_earlier_version_is_found(control_site: Site) -> None:
    """That has ended its credentials, and has no such state; so has a recovery."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await replica.join("one")
        await replica.join("well")
        clock.advance(10)
        ended = clock.now()

        async def work(conn: Connection) -> None:
            await conn.execute(
                "UPDATE credentials SET revoked_at = $1 FROM nodes AS n WHERE n.id = node_id AND n.name = 'one'", ended
            )

        await replica.services.db.transaction(work)
        clock.advance(400)
        await look(replica)
        await replica.services.monitor().revocations(clock.now())
        shown = await replica.node("one")
        assert (shown["state"], shown["warnings"]) == ("revoked", [])
        assert datetime.fromisoformat(shown["state_since"]) == ended
        assert (await replica.node("well"))["state"] == "offline"

        # And the other way round.
        async def restore(conn: Connection) -> None:
            await conn.execute("UPDATE credentials SET revoked_at = NULL WHERE revoked_at IS NOT NULL")

        await replica.services.db.transaction(restore)
        await replica.services.monitor().revocations(clock.now())
        assert (await replica.node("one"))["state"] == "offline"


async def test_it_keeps_no_release_from_being_made_or_from_arriving(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await webhook(replica)
        node = await replica.join("one")
        token = (await deploy.ok(replica, "POST", "/v1/join-tokens", {}))["token"]
        old = wire.Join("old", str(uuid4()), capabilities={"abi": ["extism"], "manifest": []})
        await deploy.ok(replica, "POST", "/v1/nodes", old, token=token)
        await deploy.push(replica, "hello", module("1"))
        refused = await replica.call("POST", "/v1/releases", {"functions": {"hello": 1}})
        assert deploy.code(refused) == "nodes_unfit"
        await revoke(replica, "old")
        made = await seeds.release(replica, functions={"hello": 1})
        assert made["unfit"]["count"] == 0
        await node.sync()
        await look(replica)
        assert "release.arrived" in await events(replica)
