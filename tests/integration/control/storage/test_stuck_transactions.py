"""A transaction of somebody else's that doesn't end: who needs what it has locked is told so, and nobody else waits."""

import asyncio
from uuid import uuid4

import pytest

from control.protocol import wire
from control.storage import database
from control.sync import write_batches
from control.sync.heartbeats import Heartbeats
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.deadlines import deadline
from tests.support.locks import frozen, locked
from tests.support.replica import Answered, Replica, Site, TestNode, plan_of

SOON = 60.0
"""Seconds, far above what is wanted: a lock is held for longer in these tests."""
EPOCHS = "UPDATE epochs SET epoch = epoch WHERE id = 1"
NODE = "UPDATE nodes SET name = name WHERE name = $1"


async def ask_all(replica: Replica, *names: str) -> list[Answered]:
    async with deadline(SOON):
        return await asyncio.gather(*(replica.call("GET", name) for name in names))


async def all_but_the_first_succeed(nodes: list[TestNode], plans: list[wire.Plan]) -> None:
    """They all report that their plans were applied."""
    for node, plan in zip(nodes, plans, strict=True):
        node.apply(plan)
    reports = await asyncio.gather(
        *(node.report(plan.sync_id, "succeeded") for node, plan in zip(nodes, plans, strict=True))
    )
    assert reports[0].json()["code"] == "database_locked"
    assert {answer.json()["status"] for answer in reports[1:]} == {"succeeded"}


async def test_the_server_keeps_the_timeouts(control_site: Site) -> None:
    async with control_site.running() as replica:
        for database, lock in ((replica.services.db, "2s"), (replica.services.databases.background, "300ms")):
            kept = await database.read(
                lambda conn: conn.fetchrow(
                    "SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement,"
                    " current_setting('idle_in_transaction_session_timeout') AS idle"
                )
            )
            assert (kept["lock"], kept["statement"], kept["idle"]) == (lock, "10s", "10s")


async def test_a_locked_row_of_epochs_stops_announcements_alone(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.behind(replica, 3)
        release = {"group": "default", "functions": {"hello": 1}}
        async with locked(control_site.settings.metadata_url, EPOCHS), deadline(SOON):
            refused = [
                asyncio.create_task(replica.call("POST", "/v1/releases", {**release, "reason": str(number)}))
                for number in range(6)
            ]
            await asyncio.sleep(0)
            # What doesn't announce goes on meanwhile: polls, reports, joins, writes and lists.
            plans = [plan_of(answer) for answer in await asyncio.gather(*(node.poll() for node in nodes))]
            for node, plan in zip(nodes, plans, strict=True):
                node.apply(plan)
                assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
            await replica.join("newcomer")
            assert (await replica.call("POST", "/v1/groups", {"name": "other"})).status == 201
            assert (await replica.call("GET", "/v1/nodes")).status == 200
            answers = await asyncio.gather(*refused)
            assert {(answer.status, answer.json()["code"]) for answer in answers} == {(503, "database_locked")}
            # The first one waits for it; the others wait for the first one.
            assert any("a row of epochs is locked" in answer.json()["detail"] for answer in answers)
            assert all(answer.headers["retry-after"] for answer in answers)
        assert (await replica.call("POST", "/v1/releases", release)).status == 201


async def test_a_locked_node_holds_up_no_other_one(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.behind(replica, 30)
        stuck, *others = nodes
        async with (
            locked(control_site.settings.metadata_url, NODE, seeds.name_of(replica, stuck)),
            deadline(SOON),
        ):
            polls = [asyncio.create_task(node.poll()) for node in nodes]
            plans = [plan_of(answer) for answer in await asyncio.gather(*polls[1:])]
            refused = await polls[0]
            assert (refused.status, refused.json()["code"]) == (503, "database_locked")
            assert "the row of node seed-" in refused.json()["detail"]
            # Nor its reports.
            for node, plan in zip(others, plans, strict=True):
                node.apply(plan)
            reports = await asyncio.gather(
                *(node.report(plan.sync_id, "succeeded") for node, plan in zip(others, plans, strict=True))
            )
            assert {answer.json()["status"] for answer in reports} == {"succeeded"}
            # An operator who moves it is told why that can't be, and a release of the others goes on.
            assert (await replica.call("POST", "/v1/groups", {"name": "other"})).status == 201
            move = asyncio.create_task(
                replica.call("POST", f"/v1/nodes/{stuck.id}/move", {"group": "other", "allow_unfit": True})
            )
            release = await replica.call("POST", "/v1/releases", {"group": "other", "functions": {"hello": 1}})
            assert release.status == 201, release
            assert (await move).json()["code"] == "database_locked"
        assert (await stuck.poll()).status == 200


async def test_a_locked_sync_holds_up_no_other_node(control_site: Site) -> None:
    """The row of its sync is locked, and the node's own isn't: this is found out too."""
    async with control_site.running() as replica:
        nodes = await seeds.behind(replica, 10)
        plans = [await node.plan() for node in nodes]
        statement = "UPDATE syncs SET step = step WHERE id = $1::text::uuid"
        async with locked(control_site.settings.metadata_url, statement, plans[0].sync_id), deadline(SOON):
            await all_but_the_first_succeed(nodes, plans)
        assert (await nodes[0].report(plans[0].sync_id, "succeeded")).json()["status"] == "succeeded"


async def test_a_locked_row_that_no_slice_looks_for_is_found_one_by_one(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.behind(replica, 5)
        for node in nodes:
            await node.sync()
        await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})
        plans = [await node.plan() for node in nodes]
        statement = "UPDATE node_functions SET sha256 = sha256 WHERE node_id = $1::text::uuid"
        async with locked(control_site.settings.metadata_url, statement, nodes[0].id), deadline(SOON):
            await all_but_the_first_succeed(nodes, plans)


async def test_a_row_that_is_locked_for_a_moment_refuses_nobody(control_site: Site) -> None:
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        nodes = await seeds.behind(replica, 3)
        async with locked(control_site.settings.metadata_url, NODE, seeds.name_of(replica, nodes[0])):
            polls = [asyncio.create_task(node.poll()) for node in nodes]
            await asyncio.gather(*polls[1:])
        assert (await polls[0]).status == 200


async def test_a_replica_that_is_frozen_within_a_transaction_is_cut_off_by_the_server(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        stuck, other = await seeds.behind(replica, 2)
        url, name = control_site.settings.metadata_url, seeds.name_of(replica, stuck)
        async with frozen(url, NODE, name, idle=8.0), deadline(2 * SOON):
            assert (await other.poll()).status == 200
            waits = asyncio.create_task(stuck.poll())
            await clock.passes_until(waits.done, write_batches.LOCKED_FOR / 10)
            assert (await waits).status == 503
            # As long as no time passes, it is tried again.
            assert (await stuck.poll()).status == 200


@pytest.mark.background("heartbeats")
async def test_a_locked_heartbeat_holds_up_no_other_one(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 20)
        stuck, *others = nodes
        heard: Heartbeats = replica.services.heartbeats

        async def seen() -> set[str]:
            rows = await replica.services.db.read(
                lambda conn: conn.fetch("SELECT node_id::text AS id FROM node_presence WHERE last_sync_at IS NOT NULL")
            )
            return {row["id"] for row in rows}

        statement = "UPDATE node_presence SET last_seen_at = last_seen_at WHERE node_id = $1::text::uuid"
        async with locked(control_site.settings.metadata_url, statement, stuck.id):
            for node in nodes:
                heard.confirmed(node.id, replica.services.clock.now())

            async def others_are_there() -> bool:
                return await seen() >= {node.id for node in others}

            await until(others_are_there)
            # And again, with one that waits since before.
            for node in nodes:
                heard.confirmed(node.id, replica.services.clock.now())
            await until(lambda: asyncio.sleep(0, set(heard._confirmed) == {stuck.id}))

        async def all_are_there() -> bool:
            return stuck.id in await seen()

        await until(all_are_there)


async def test_a_locked_group_holds_up_joins_and_releases_and_no_node(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.behind(replica, 3)
        token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
        statement = "SELECT id FROM groups WHERE name = 'default' FOR UPDATE"
        body = wire.Join("one", str(uuid4()))
        release = {"group": "default", "functions": {"hello": 1}}
        async with locked(control_site.settings.metadata_url, statement), deadline(SOON):
            refused = [
                asyncio.create_task(replica.call("POST", "/v1/nodes", body, token=token)),
                asyncio.create_task(replica.call("POST", "/v1/join-tokens", {})),
                asyncio.create_task(replica.call("POST", "/v1/releases", release)),
            ]
            for node, answer in zip(nodes, await asyncio.gather(*(node.poll() for node in nodes)), strict=True):
                plan = plan_of(answer)
                node.apply(plan)
                assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
            assert {answer.status for answer in await ask_all(replica, "/v1/nodes", "/v1/releases")} == {200}
            for answer in await asyncio.gather(*refused):
                assert (answer.status, answer.json()["code"]) == (503, "database_locked")
        assert (await replica.call("POST", "/v1/nodes", body, token=token)).status == 201


async def test_a_deletion_under_a_locked_group_holds_up_no_other_decision(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.connect.__kwdefaults__ is not None
    monkeypatch.setitem(database.connect.__kwdefaults__, "lock_timeout", 10 * SOON)
    async with control_site.running(database_timeout=10 * SOON) as replica:
        await seeds.function(replica, "hello")
        await seeds.function(replica, "other")
        for group in ("a", "b"):
            assert (await replica.call("POST", "/v1/groups", {"name": group})).status == 201
            await seeds.release(replica, group, functions={"hello": 1})
        statement = "SELECT id FROM groups WHERE name = 'b' FOR UPDATE"
        async with locked(control_site.settings.metadata_url, statement):
            deleting = asyncio.create_task(replica.call("DELETE", "/v1/functions/hello?release=true"))
            # It releases in a and b. One of the default group's releases comes while it waits for b.
            async with deadline(SOON):
                for number in range(20):
                    await seeds.release(replica, functions={"other": 1}, reason=str(number))
            assert not deleting.done()
        assert (await deleting).status == 204
        assert (await replica.call("GET", "/v1/functions/hello/versions")).status == 404
