"""Which events there are, from where they happen to a real receiver, and how many messages they are."""

import asyncio
import time
from dataclasses import replace
from uuid import UUID

import pytest

from control.protocol import wire
from control.rollouts import acts, store
from control.storage import events
from control.storage.connection import Connection
from control.telemetry.webhooks import webhook_messages
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.replica import Replica, Site
from tests.support.rollouts import open_rollout
from tests.support.webhook_receiver import Receiver
from tests.support.webhooks import LOOPBACK, add, deliveries, got, look, send_test, told

# The replica's own monitor stays out of it.
pytestmark = [pytest.mark.usefixtures("hurried"), pytest.mark.background("webhooks")]


async def test_what_happens_to_nodes_and_releases_is_told(
    replica: Replica, receiver: Receiver, clock: SetClock
) -> None:
    await add(replica, receiver.url)
    good, bad = await replica.join("good"), await replica.join("bad")
    await asyncio.gather(good.poll(), bad.poll())
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    act = await told(receiver, "operator.acted", action="release.create")
    assert (act["operator"], act["target"]) == ("admin", "default/1")

    await good.sync()
    plan = await bad.plan()
    error = wire.SyncError("schema_change_failed", "UNIQUE constraint failed: t.a")
    await bad.report(plan.sync_id, "failed", error=error)
    failed = await told(receiver, "sync.failed")
    assert failed.pop("at")
    assert failed == {
        "node": "bad",
        "group": "default",
        "release": 1,
        "code": "schema_change_failed",
        "message": "UNIQUE constraint failed: t.a",
    }
    await look(replica)
    release = await told(receiver, "release.failed")
    assert release.pop("at")
    assert release == {
        "group": "default",
        "release": 1,
        "nodes": 2,
        "arrived": 1,
        "failed": 1,
        "away": 0,
        "codes": {"schema_change_failed": 1},
    }

    # The same failure again is no news, another one is.
    plan = await bad.plan()
    await bad.report(plan.sync_id, "failed", error=error)
    plan = await bad.plan()
    await bad.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
    await told(receiver, "sync.failed", code="disk_full")
    assert [item["code"] for item in receiver.items("sync.failed")] == ["schema_change_failed", "disk_full"]

    clock.advance(seconds=301)
    await good.poll()
    await look(replica)
    assert (await told(receiver, "node.overdue"))["node"] == "bad"
    assert (await told(receiver, "node.offline"))["node"] == "bad"

    await bad.sync()
    await look(replica)
    await look(replica)
    release = await told(receiver, "release.arrived")
    assert (release["release"], release["nodes"], release["arrived"]) == (1, 2, 2)
    await bad.poll()
    await look(replica)
    assert (await told(receiver, "node.online"))["node"] == "bad"
    assert (await told(receiver, "node.caught_up"))["node"] == "bad"
    for kind in ("release.failed", "release.arrived", "node.offline", "node.online", "node.overdue", "node.caught_up"):
        assert len(receiver.items(kind)) == 1


async def test_a_sync_that_expires_is_told(replica: Replica, receiver: Receiver, clock: SetClock) -> None:
    await add(replica, receiver.url)
    [node] = await seeds.behind(replica, 1)
    await node.plan()
    clock.advance(seconds=61)
    await look(replica)
    failed = await told(receiver, "sync.failed")
    assert (failed["code"], failed["release"]) == ("sync_expired", 1)


async def test_only_the_kinds_that_are_wanted_are_sent(replica: Replica, receiver: Receiver) -> None:
    await add(replica, receiver.url, kinds=["release.arrived"])
    await replica.join("shop-1")
    await send_test(replica)
    await got(receiver, "webhook.test")
    assert receiver.of("operator.acted") == []


async def test_five_thousand_nodes_that_go_offline_are_a_few_messages(
    replica: Replica, receiver: Receiver, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_messages, "GATHER", 1.0)
    await add(replica, receiver.url, kinds=["node.offline"])
    await seeds.nodes(replica, 5000)
    clock.advance(seconds=76)
    began = time.monotonic()
    await look(replica)

    async def all_told() -> bool:
        return sum(m.body["data"]["count"] for m in receiver.of("node.offline")) == 5000

    await until(all_told)
    # Each but the first has gathered for a second.
    assert len(receiver.received) <= 1 + (time.monotonic() - began)
    for message in receiver.received:
        assert len(message.items) == min(50, message.body["data"]["count"])
        assert len(message.raw) < 20_000


async def test_without_a_webhook_nothing_is_kept(replica: Replica, receiver: Receiver) -> None:
    await replica.join("shop-1")
    count = "SELECT count(*) FROM events"
    assert await replica.services.db.read(lambda conn: conn.fetchval(count)) == 0
    await add(replica, receiver.url, kinds=["node.online"])
    await replica.call("POST", "/v1/groups", {"name": "east"})

    async def taken() -> bool:
        return bool(await replica.services.db.read(lambda conn: conn.fetchval(count)) == 0)

    await until(taken)
    assert await deliveries(replica) == []


async def test_what_was_left_when_the_last_webhook_went_is_not_told_to_a_new_one(
    control_site: Site, receiver: Receiver, clock: SetClock
) -> None:
    # Its sender looks once, before there is anything to tell.
    async with control_site.running(clock=SetClock(timers="stand"), webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url)
        await replica.call("POST", "/v1/groups", {"name": "east"})
        assert (await replica.call("DELETE", "/v1/webhooks/chat")).status == 204
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url)
        await replica.call("POST", "/v1/groups", {"name": "west"})
        await told(receiver, "operator.acted", action="group.create")
    assert [i["target"] for i in receiver.items("operator.acted") if i["action"] == "group.create"] == ["west"]


async def test_a_rollout_that_waits_or_has_ended_is_told(replica: Replica, receiver: Receiver, clock: SetClock) -> None:
    await add(replica, receiver.url)
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    rollout = await open_rollout(replica, functions={"hello": await seeds.function(replica, "hello")})

    async def pause(conn: Connection) -> None:
        stored = await store.by_release(conn, UUID(rollout.id))
        assert stored is not None
        now = clock.now()
        waits = replace(stored.position, state="paused", waits_for="failed", reason="gate 1 failed")
        saved = await store.save(conn, stored, waits, now, told_at=now)
        await events.record(conn, now, "rollout.paused", [acts.event_item(saved)])

    await replica.services.db.transaction(pause)
    said = await told(receiver, "rollout.paused")
    assert said.pop("at")
    one = {"group": "default", "release": rollout.number}
    assert said == {**one, "state": "paused", "waits_for": "failed", "reason": "gate 1 failed"}
    answer = await replica.call("POST", f"/v1/rollouts/default/{rollout.number}/abort", {"reason": "it was bad"})
    assert answer.status == 200, answer.body
    said = await told(receiver, "rollout.ended")
    assert said.pop("at")
    assert "it was bad" in said.pop("reason")
    assert said == {**one, "state": "aborted", "waits_for": ""}
