"""Polls and plans between nodes and replicas, through the public interfaces."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from control.api.poll import SPREAD
from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from control.web import connection_limits
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, Site, plan_of
from tests.support.wire_tap import tap

HOLD = 50.0
SOON = 35.0
"""Seconds; a poll that isn't woken is held for 37 s at least."""


async def until(condition: Callable[[], bool]) -> None:
    async with deadline(SOON):
        while not condition():
            await asyncio.sleep(0.005)


def held(replica: Replica) -> int:
    return len(replica.services.fleet.waiters)


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        yield replica


async def test_a_node_joins_and_has_nothing_to_do(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        first = await node.ask()
        assert (first.status, first.json()) == (200, {"type": "report"})
        assert (await node.ask(report=True)).status == 204
        assert (await node.ask()).status == 204
        assert (await replica.node("one"))["state"] == "online"


async def test_a_plan_and_the_way_to_the_target(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.function(replica, "old")
        await seeds.schema_change(replica, 1, "CREATE TABLE a (x)")
        first = await seeds.release(replica, functions={"hello": 1, "old": 1})
        plan = await node.plan()
        assert (plan.generation, plan.release_number, plan.schema_floor) == (first["generation"], 1, 1)
        assert [(f.name, f.version) for f in plan.functions] == [("hello", 1), ("old", 1)]
        assert [(c.number, c.sql) for c in plan.schema_changes] == [(1, "CREATE TABLE a (x)")]
        assert plan.remove == []
        assert plan.functions[0].manifest_digest == manifest_digest(Manifest())
        assert plan.functions[0].url.startswith(("http://127.0.0.1:", "https://127.0.0.1:"))
        shown = await replica.node("one")
        assert (shown["state"], shown["sync"]["id"], shown["at_target"]) == ("syncing", plan.sync_id, False)

        again = await node.plan()
        assert again.sync_id == plan.sync_id

        node.apply(plan)
        assert (await node.report(plan.sync_id, "succeeded")).json() == {"status": "succeeded", "lease": 0}
        assert (await node.ask()).status == 204
        shown = await replica.node("one")
        assert (shown["state"], shown["sync"], shown["at_target"], shown["schema_version"]) == ("online", None, True, 1)
        assert [(f["name"], f["version"]) for f in shown["functions"]] == [("hello", 1), ("old", 1)]
        assert shown["last_sync_at"]

        await seeds.schema_change(replica, 2, "CREATE TABLE b (wrong)")
        await seeds.schema_change(replica, 2, "CREATE TABLE b (right)", revision=2)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 2}, remove=["old"])
        plan = await node.plan()
        assert [(f.name, f.version) for f in plan.functions] == [("hello", 2)]
        assert [(c.number, c.revision, c.sql) for c in plan.schema_changes] == [(2, 2, "CREATE TABLE b (right)")]
        assert plan.remove == ["old"]


async def test_a_held_poll_gets_the_plan_of_a_new_target_on_every_replica(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as one, control_site.running(hold=HOLD) as two:
        here, there = await one.join("here"), await one.join("there")
        there.replica = two
        for node in (here, there):
            assert (await node.poll()).status == 204
        polls = [asyncio.create_task(node.poll(HOLD)) for node in (here, there)]
        await until(lambda: held(one) == 1 and held(two) == 1)
        await seeds.function(one, "hello")
        await seeds.release(one, functions={"hello": 1})
        since = time.monotonic()
        plans = [plan_of(await poll) for poll in polls]
        took = time.monotonic() - since
        print(f"told on both replicas after {took * 1000:.0f} ms")
        assert took < SOON
        assert len({plan.sync_id for plan in plans}) == 2
        for node, plan in zip((here, there), plans, strict=True):
            node.apply(plan)
        # Each result at the other replica.
        here.replica, there.replica = two, one
        for node, plan in zip((here, there), plans, strict=True):
            assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
        for node in (here, there):
            for node.replica in (one, two):
                assert (await node.ask()).status == 204


async def test_a_held_poll_ends_after_its_time(control_site: Site) -> None:
    clock, hold = SetClock(timers="stand"), 4.0
    async with control_site.running(clock=clock, hold=hold) as replica:
        node = await replica.join("one")
        await node.poll()
        poll = asyncio.create_task(node.ask(25))
        await until(lambda: held(replica) == 1)
        clock.advance(hold * (1 - SPREAD) - 0.01)
        await asyncio.sleep(0.1)
        assert not poll.done()
        clock.advance(hold * SPREAD + 0.01)
        assert (await poll).status == 204
        assert held(replica) == 0


async def test_a_newer_poll_of_a_node_takes_the_place_of_the_held_one(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        node = await replica.join("one")
        await node.poll()
        first = asyncio.create_task(node.ask(HOLD))
        await until(lambda: held(replica) == 1)
        second = asyncio.create_task(node.ask(HOLD))
        async with asyncio.timeout(SOON):
            assert (await first).status == 204
        assert held(replica) == 1
        assert not second.done()
        second.cancel()


@pytest.mark.parametrize("what", ["revoke", "remove"])
async def test_a_revocation_closes_held_polls_on_every_replica(control_site: Site, what: str) -> None:
    async with control_site.running(hold=HOLD) as one, control_site.running(hold=HOLD) as two:
        node = await one.join("one")
        node.replica = two
        await node.poll()
        poll = asyncio.create_task(node.ask(HOLD))
        await until(lambda: held(two) == 1)
        if what == "revoke":
            assert (await one.call("POST", "/v1/nodes/one/revoke")).status == 204
        else:
            assert (await one.call("DELETE", "/v1/nodes/one")).status == 204
        since = time.monotonic()
        async with asyncio.timeout(SOON):
            answer = await poll
        print(f"closed on the other replica after {(time.monotonic() - since) * 1000:.0f} ms")
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert held(two) == 0
        for node.replica in (one, two):
            assert (await node.ask()).status == 401


async def test_an_aborted_client_frees_its_poll(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, 20)
        polls = [asyncio.create_task(node.ask(HOLD)) for node in nodes]
        await until(lambda: held(replica) == 20)
        for poll in polls[:15]:
            poll.cancel()
        await until(lambda: held(replica) == 5)
        for poll in polls[15:]:
            poll.cancel()
        await until(lambda: held(replica) == 0)


async def test_a_move_is_a_new_target(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        node = await replica.join("one")
        await node.poll()
        await replica.call("POST", "/v1/groups", {"name": "other"})
        await seeds.function(replica, "hello")
        await seeds.release(replica, "other", functions={"hello": 1})
        assert (await node.ask()).status == 204
        poll = asyncio.create_task(node.ask(HOLD))
        await until(lambda: held(replica) == 1)
        assert (await replica.call("POST", "/v1/nodes/one/move", {"group": "other"})).status == 200
        async with asyncio.timeout(SOON):
            plan = plan_of(await poll)
        assert [f.name for f in plan.functions] == ["hello"]
        assert plan.generation == (await replica.node("one"))["target_generation"]


async def test_a_new_release_with_the_same_contents_needs_no_sync(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        second = await seeds.release(replica)
        assert (await node.ask()).status == 204
        shown = await replica.node("one")
        assert shown["at_target"]
        assert shown["target_generation"] == second["generation"]
        assert len((await replica.call("GET", "/v1/syncs?node=one")).json()["items"]) == 1


async def test_a_failed_target_is_not_planned_again_before_its_time(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock, hold=HOLD) as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})

        async def fail() -> None:
            plan = await node.plan()
            node.failed = wire.FailedGeneration(plan.generation, clock.now() + timedelta(seconds=30))
            error = wire.SyncError("disk_full", "no room")
            answer = await node.report(plan.sync_id, "failed", error=error, retry_at=node.failed.retry_at)
            assert answer.json()["status"] == "failed"

        await fail()
        assert (await node.ask()).status == 204
        shown = await replica.node("one")
        assert (shown["failures"], shown["error"]["code"], shown["state"]) == (1, "disk_full", "online")
        assert shown["retry_at"]

        clock.advance(31)
        await fail()
        assert (await node.ask()).status == 204
        poll = asyncio.create_task(node.ask(HOLD))
        await until(lambda: held(replica) == 1)
        assert (await replica.call("POST", "/v1/nodes/one/retry")).status == 204
        async with asyncio.timeout(SOON):
            assert (await poll).status == 200

        await fail()
        assert (await node.ask()).status == 204
        poll = asyncio.create_task(node.ask(HOLD))
        await until(lambda: held(replica) == 1)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 2})
        async with asyncio.timeout(SOON):
            plan = plan_of(await poll)
        assert plan.functions[0].version == 2
        node.apply(plan)
        await node.report(plan.sync_id, "succeeded")
        shown = await replica.node("one")
        assert (shown["failures"], shown["error"], shown["retry_at"]) == (3, None, None)


async def test_a_node_that_has_less_than_it_had_is_planned_again_after_a_failure(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()
        node.inventory = wire.Inventory(database_id=node.inventory.database_id)
        for _ in range(2):
            plan = await node.plan()
            await node.report(plan.sync_id, "failed", error=wire.SyncError("artifact_unreachable", "no way"))
            shown = await replica.node("one")
            assert (shown["at_target"], shown["functions"]) == (False, [])
        await node.sync()
        assert (await replica.node("one"))["at_target"]


async def test_a_foreign_history_is_refused_and_recorded_once(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.schema_change(replica, 1, "CREATE TABLE a (x)")
        await seeds.release(replica)
        change = wire.AppliedChange(1, 1, wire.schema_checksum("CREATE TABLE other (x)"))
        node.inventory = wire.Inventory(schema_version=1, schema_changes=[change], database_id="x")
        for _ in range(3):
            answer = await node.poll()
            assert (answer.status, answer.json()["code"]) == (409, "history_mismatch")
        shown = await replica.node("one")
        assert (shown["failures"], shown["error"]["code"]) == (1, "history_mismatch")
        (logged,) = (await replica.call("GET", "/v1/syncs?node=one")).json()["items"]
        assert logged["status"] == "failed"


BAD_POLLS = [
    (b"{", 400, "malformed_json"),
    (b"\xff", 400, "malformed_json"),
    (b"[" * 20_000, 400, "malformed_json"),
    (b"{}", 422, "invalid_body"),
    (b'{"generation": -1, "digest": "' + b"0" * 64 + b'"}', 422, "invalid_body"),
    (b'{"generation": 0, "digest": "0"}', 422, "invalid_body"),
    (b'{"generation": 0, "digest": "' + b"0" * 64 + b'", "wait": "x"}', 422, "invalid_body"),
    (b'{"generation": 0, "digest": "' + b"0" * 64 + b'", "inventory": {}}', 422, "invalid_body"),
    (
        wire.canonical(wire.Poll(0, wire.digest(wire.Inventory()), inventory=wire.Inventory(schema_version=1))),
        422,
        "invalid_body",
    ),
    (b'"' + b"x" * 5_000_000 + b'"', 413, "body_too_large"),
]


async def test_bad_polls(replica: Replica) -> None:
    node = await replica.join("one")
    for body, status, code in BAD_POLLS:
        answer = await replica.call("POST", "/v1/poll", body, token=node.credential)
        assert (answer.status, answer.json()["code"]) == (status, code), body[:100]
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await replica.node("one"))["schema_version"] == 0


async def test_what_a_node_adds_is_ignored(replica: Replica) -> None:
    node = await replica.join("newer")
    body = {"generation": 0, "digest": "0" * 64, "from_the_future": {"a": [1]}}
    answer = await replica.call("POST", "/v1/poll", body, token=node.credential)
    assert answer.json() == {"type": "report"}


async def test_who_may_poll(replica: Replica) -> None:
    node, other = await replica.join("mine"), await replica.join("its")
    body = wire.Poll(0, "0" * 64)
    secret_of_other = node.credential[:41] + other.credential[41:]
    unknown = "skn_00000000-0000-4000-8000-000000000000_" + "x" * 43
    for token, code in (
        ("", "credentials_missing"),
        ("nonsense", "credentials_invalid"),
        (replica.admin, "credentials_invalid"),
        (secret_of_other, "credentials_invalid"),
        (unknown, "credentials_invalid"),
    ):
        answer: Answered = await replica.call("POST", "/v1/poll", body, token=token)
        assert (answer.status, answer.json()["code"], answer.headers["connection"]) == (401, code, "close")
    failures = (await replica.call("GET", "/metrics")).body.decode()
    assert 'skerry_auth_failures_total{reason="wrong_secret"}' in failures


async def test_what_is_kept_of_a_poll_is_its_nodes_and_its_tokens(replica: Replica) -> None:
    one, two = await replica.join("one"), await replica.join("two")
    for node in (one, two, one, two):
        assert (await node.poll()).status == 204
    same = wire.Poll(generation=0, digest=wire.digest(one.inventory))
    assert (await replica.call("POST", "/v1/poll", same, token=one.credential)).status == 204
    assert (await replica.call("POST", "/v1/poll", same, token=two.credential)).json() == {"type": "report"}
    mixed = one.credential[:41] + two.credential[41:]
    assert (await replica.call("POST", "/v1/poll", same, token=mixed)).status == 401
    assert (await replica.call("POST", "/v1/nodes/one/revoke")).status == 204
    assert (await replica.call("POST", "/v1/poll", same, token=one.credential)).status == 401
    assert (await two.poll()).status == 204


async def test_other_ways_to_write_a_token_are_not_kept_for_ever(replica: Replica) -> None:
    node = await replica.join("one")
    poll = wire.Poll(generation=0, digest="0" * 64)
    for spaces in range(20):
        answer = await replica.call("POST", "/v1/poll", poll, token=" " * spaces + node.credential)
        assert answer.status == 200
    fleet = replica.services.fleet
    assert len(fleet.verified) <= 2 * len(fleet.credentials) + 1


async def test_a_body_that_stays_away_is_given_up(control_site: Site) -> None:
    clock = SetClock(timers="stand")

    def has_begun() -> bool:
        return any(connection._in_body for connection in replica.server.server_state.connections)

    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        async with tap(replica.url, replica.ca) as client:
            head = f"POST /v1/poll HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.credential}\r\n"
            await client.send(head.encode() + b"content-length: 100\r\n\r\n{")
            await until(has_begun)
            clock.advance(connection_limits.BODY_SECONDS + 0.1)
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (408, "close")
            assert b"body_timeout" in body
            assert await client.closed()
