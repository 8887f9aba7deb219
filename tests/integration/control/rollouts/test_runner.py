"""A rollout from its rehearsal to its end, carried on by a replica, with nodes that speak the protocol."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from control.api import rollouts
from control.problems import ProblemError
from control.protocol import wire
from control.rollouts import runner
from control.rollouts.measuring import Measuring
from control.rollouts.runner import RollBack, RolloutRunner
from control.telemetry.webhooks.webhook_client import WebhookClient
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.deploy import ok
from tests.support.replica import Replica, Site, TestNode, plan_of

carried_on = pytest.mark.background("rollouts")

STEPS = {"steps": ["1", "50%", "100%"], "bake": "0s", "rehearse": False}


async def at_first(replica: Replica, *names: str) -> list[TestNode]:
    """Nodes of this version's protocol that run the group's first release; the function has three versions."""
    nodes = [await replica.join(name) for name in names]
    for _ in range(3):
        await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    for node in nodes:
        node.protocol = wire.PROTOCOL
        node.capabilities = {}
        await node.sync()
    return nodes


async def shown(replica: Replica, number: int) -> Any:
    return await ok(replica, "GET", f"/v1/rollouts/default/{number}")


async def until(replica: Replica, number: int, reached: Callable[[Any], bool]) -> Any:
    """The rollout, once it is as it must be."""
    found: Any = None
    async with deadline(60):
        while not reached(found := await shown(replica, number)):
            await asyncio.sleep(0.05)
    return found


async def works(nodes: list[TestNode], number: int, count: int, *, fails: int = 0) -> list[TestNode]:
    """Have the nodes that get a plan for the release carry it out, the first ones without success; return them.

    A replica may hear a moment after the database that nodes are started: the nodes poll until `count` have a plan.
    """
    worked: list[TestNode] = []
    async with deadline(60):
        while True:
            for node in nodes:
                if worked and len(worked) >= count:
                    # The next step may begin before the others are asked.
                    return worked
                answer = await node.poll()
                if answer.status == 200 and answer.json()["type"] == "plan":
                    plan = plan_of(answer)
                    assert plan.release_number == number
                    if fails > len(worked):
                        await node.report(plan.sync_id, "failed", error=wire.SyncError("probe_failed", "no greeting"))
                    else:
                        node.apply(plan)
                        await node.report(plan.sync_id, "succeeded")
                    worked.append(node)
            if len(worked) >= count:
                return worked
            await asyncio.sleep(0.05)


def runner_of(replica: Replica, roll_back: RollBack | None = None) -> RolloutRunner:
    """A runner beside the replica's own, which looks only when the test says so."""
    parts = replica.services
    webhooks = WebhookClient(parts.settings.webhook_networks, parts.clock)
    measuring = Measuring(parts.databases.background, parts.clock, parts.numbers, webhooks)
    return RolloutRunner(
        parts.databases.background, parts.fleet, parts.clock, measuring, roll_back or rollouts.roll_back(parts.clock)
    )


async def never(*_: object) -> None:
    """Roll nothing back."""
    raise AssertionError("nothing is rolled back here")


@carried_on
async def test_a_release_goes_out_in_steps(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await at_first(replica, "a", "b", "c", "d")
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": STEPS})
        for step, more in ((1, 1), (2, 1), (3, 2)):
            found = await until(replica, 2, lambda r, s=step: r["step"] == s and r["counts"]["syncing"] > 0)
            assert found["counts"]["syncing"] == more, found
            assert len(await works(nodes, 2, more)) == more
        await until(replica, 2, lambda r: r["state"] == "done")
        # The group has the release now, and its nodes learn the new generation without a sync, once the replica has.
        async with deadline(60):
            while (await shown(replica, 2))["counts"]["at_target"] < 4:
                for node in nodes:
                    answer = await node.poll()
                    assert answer.status == 204, answer
                    assert answer.headers["x-skerry-release"].startswith("default 2 ")
        assert all(node.inventory.functions[0].version == 2 for node in nodes)


@carried_on
async def test_a_failed_node_pauses_it_and_an_abort_settles_all(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await at_first(replica, "a", "b", "c", "d")
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": STEPS})
        await until(replica, 2, lambda r: r["step"] == 1 and r["counts"]["syncing"] == 1)
        [kept] = await works(nodes, 2, 1)
        await until(replica, 2, lambda r: r["step"] == 2 and r["counts"]["syncing"] == 1)
        [failed] = await works(nodes, 2, 1, fails=1)
        found = await until(replica, 2, lambda r: r["state"] == "paused")
        assert (found["waits_for"], found["counts"]["failed"]) == ("failed", 1)
        await ok(replica, "POST", "/v1/rollouts/default/2/abort", {})
        assert (await shown(replica, 2))["state"] == "aborted"
        # What ran it keeps it, what failed goes back, and a new node gets the release before.
        assert (await kept.poll()).headers["x-skerry-release"].startswith("default 2 ")
        assert (await failed.poll()).headers["x-skerry-release"].startswith("default 1 ")
        late = await replica.join("late")
        assert (await late.sync()).release_number == 1


@carried_on
async def test_a_rehearsal_that_fails_on_one_node_starts_none(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await at_first(replica, "a", "b")
        policy = {**STEPS, "rehearse": True}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
        results = [
            wire.RehearsalResult("passed", schema_digest="0" * 64),
            wire.RehearsalResult("failed", "schema_change_failed", "NOT NULL constraint failed", row="orders id=17"),
        ]
        for node, result in zip(nodes, results, strict=True):
            answer = await node.poll()
            assert answer.json()["type"] == "rehearse", answer
            node.rehearsal = answer.json()["id"]
            path = f"/v1/nodes/self/rehearsals/{node.rehearsal}"
            order = (await replica.call("GET", path, token=node.credential)).json()
            assert order["plan"]["release_number"] == 2
            assert (await replica.call("PUT", path, result, token=node.credential)).status == 204
            # It is told once, and a repeated report changes nothing.
            assert (await node.poll()).status == 204
            assert (await replica.call("PUT", path, results[0], token=node.credential)).status in (204, 404)
        found = await until(replica, 2, lambda r: r["state"] == "paused")
        assert found["waits_for"] == "failed"
        assert (found["rehearsal"]["passed"], found["rehearsal"]["failed"]) == (1, 1)
        told = (await ok(replica, "GET", "/v1/rollouts/default/2/rehearsal"))["items"]
        assert [(t["name"], t["outcome"], t["row"]) for t in told] == [
            ("b", "failed", "orders id=17"),
            ("a", "passed", ""),
        ]
        assert await works(nodes, 2, 0) == []


@carried_on
async def test_a_replica_goes_on_where_another_was_ended(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await at_first(replica, "a", "b", "c", "d")
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": STEPS})
        await until(replica, 2, lambda r: r["step"] == 1 and r["counts"]["syncing"] == 1)
    async with control_site.running() as other:
        for node in nodes:
            node.replica = other
        found = await until(other, 2, lambda r: r["step"] == 1)
        assert found["started"] == 1
        for step, more in ((1, 1), (2, 1), (3, 2)):
            await until(other, 2, lambda r, s=step: r["step"] == s and r["counts"]["syncing"] > 0)
            await works(nodes, 2, more)
        await until(other, 2, lambda r: r["state"] == "done")


async def test_a_step_of_many_nodes_is_started_in_parts_and_no_further(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STARTED_AT_ONCE", 2)
    async with control_site.running() as replica:
        nodes = await at_first(replica, "a", "b", "c", "d", "e")
        carries_on = runner_of(replica)
        policy = {**STEPS, "steps": ["3", "100%"]}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
        counts = []
        for _ in range(4):
            assert await carries_on.tick()
            counts.append((await shown(replica, 2))["started"])
        assert counts == [2, 3, 3, 3]
        await works(nodes, 2, 3)
        for _ in range(2):
            assert await carries_on.tick()
        assert (await shown(replica, 2))["started"] == 5


async def test_somebody_is_told_that_it_waits_and_again_after_the_policys_time(control_site: Site) -> None:
    clock = SetClock(datetime.now(UTC))
    async with control_site.running(clock=clock) as replica:
        nodes = await at_first(replica, "a", "b")
        carries_on = runner_of(replica)
        await ok(replica, "POST", "/v1/webhooks", {"name": "pager", "url": "https://pager.example/x"})
        gate = {"metric": "error_ratio", "at_most": "1%", "at_least_calls": 10}
        steps = ["1", {"pause": "approval"}, "100%"]
        policy = {**STEPS, "steps": steps, "gate": [gate], "unknown_after": "2h"}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})

        async def told(**passed: float) -> tuple[str, int]:
            """What it waits for after some time, and how often somebody has been told of a rollout."""
            clock.advance(**passed)
            assert await carries_on.tick()
            events = "SELECT id FROM events WHERE kind = 'rollout.paused'"
            found: list[Any] = await replica.services.db.read(lambda conn: conn.fetch(events))  # type: ignore[arg-type]
            return (await shown(replica, 2))["waits_for"], len(found)

        assert await told() == ("nodes", 0)
        await works(nodes, 2, 1)
        # No calls, no answer: at first it may be on its way.
        assert await told() == ("unknown", 0)
        assert await told(seconds=119) == ("unknown", 0)
        assert await told(seconds=1) == ("unknown", 1)
        assert await told(minutes=119) == ("unknown", 1)
        assert await told(minutes=1) == ("unknown", 2)
        assert await told(minutes=1) == ("unknown", 2)
        # Another reason is told at once.
        await ok(replica, "POST", "/v1/rollouts/default/2/promote", {})
        assert await told() == ("approval", 3)
        assert await told(minutes=119) == ("approval", 3)
        assert await told(minutes=1) == ("approval", 4)


@pytest.mark.parametrize("fault", [ProblemError("release_not_possible", "hello@1 was deleted"), KeyError("a bug")])
async def test_a_rollout_that_cant_go_back_stops_no_other(control_site: Site, fault: Exception) -> None:
    """No server can be made to refuse a rollback at will, so what makes the release refuses here."""

    async def refuse(*_: object) -> None:
        raise fault

    async with control_site.running() as replica:
        carries_on = runner_of(replica, refuse)
        [failing] = await at_first(replica, "a")
        await ok(replica, "POST", "/v1/groups", {"name": "other"})
        await replica.join("b", "other")
        policy = {**STEPS, "on_failure": "rollback"}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
        assert await carries_on.tick()
        assert await works([failing], 2, 1, fails=1)
        release = {"group": "other", "functions": {"hello": 2}, "rollout": STEPS}
        number = (await ok(replica, "POST", "/v1/releases", release))["number"]
        assert await carries_on.tick()
        assert (await ok(replica, "GET", f"/v1/rollouts/other/{number}"))["started"] == 1
        stuck = await shown(replica, 2)
        if isinstance(fault, ProblemError):
            assert (stuck["state"], stuck["waits_for"]) == ("paused", "failed")
            assert "hello@1 was deleted" in stuck["reason"]
        await ok(replica, "POST", "/v1/rollouts/default/2/abort", {})


@carried_on
async def test_nobody_waits_for_the_next_second(control_site: Site) -> None:
    """Time stands: what a rollout waits for wakes the replica that carries it on."""
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        [node] = await at_first(replica, "a")
        policy = {"steps": ["1", "100%"], "bake": "0s", "rehearse": True}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
        answer = await node.poll()
        assert answer.json()["type"] == "rehearse", answer
        node.rehearsal = answer.json()["id"]
        found = wire.RehearsalResult("passed", schema_digest="0" * 64)
        path = f"/v1/nodes/self/rehearsals/{node.rehearsal}"
        assert (await replica.call("PUT", path, found, token=node.credential)).status == 204
        await works([node], 2, 1)
        await until(replica, 2, lambda r: r["state"] == "done")
        # An operator's act.
        policy = {"steps": [{"pause": "approval"}, "100%"], "bake": "0s", "rehearse": False}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 3}, "rollout": policy})
        await until(replica, 3, lambda r: r["waits_for"] == "approval")
        await ok(replica, "POST", "/v1/rollouts/default/3/promote", {})
        await works([node], 3, 1)
        await until(replica, 3, lambda r: r["state"] == "done")


async def test_the_same_mistake_is_logged_ever_more_rarely(
    control_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistaken(*_: object) -> None:
        raise KeyError("a bug")

    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        carries_on = runner_of(replica, mistaken)
        [node] = await at_first(replica, "a")
        release = {"functions": {"hello": 2}, "rollout": {**STEPS, "on_failure": "rollback"}}
        await ok(replica, "POST", "/v1/releases", release)
        assert await carries_on.tick()
        assert await works([node], 2, 1, fails=1)

        async def passes(seconds: int, step: int) -> int:
            caplog.clear()
            for _ in range(0, seconds, step):
                clock.advance(step)
                await replica.services.fleet.refresh()
                assert await carries_on.tick()
            return caplog.text.count("be carried on")

        assert await passes(2, 1) == 1
        assert await passes(55, 5) == 0
        assert await passes(10, 5) == 1
        assert await passes(100, 10) == 0
        assert await passes(30, 10) == 1
        # After one that is over, the next one is told at once.
        await ok(replica, "POST", "/v1/rollouts/default/2/abort", {})
        assert not await carries_on.tick()
        await ok(replica, "POST", "/v1/releases", release)
        assert await carries_on.tick()
        assert await works([node], 3, 1, fails=1)
        assert await passes(2, 1) == 1


async def test_who_should_know_that_it_waits_is_told_once_each_period(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        carries_on = runner_of(replica, never)
        await ok(replica, "POST", "/v1/webhooks", {"name": "chat", "url": "https://chat.example/"})
        nodes = await at_first(replica, "a", "b")
        told = 0

        async def passes(minutes: int) -> list[str]:
            """What was told meanwhile."""
            nonlocal told
            for _ in range(2 * minutes):
                clock.advance(30)
                await replica.services.fleet.refresh()
                assert await carries_on.tick()
            rows: Any = "SELECT items -> 0 ->> 'waits_for' FROM events WHERE kind = 'rollout.paused' ORDER BY at"
            found = [row[0] for row in await replica.services.db.read(lambda conn: conn.fetch(rows))]
            new, told = found[told:], len(found)
            return new

        gate = {"metric": "error_ratio", "at_most": "1%", "at_least_calls": 1}
        policy = {**STEPS, "steps": [{"pause": "approval"}, "1", "100%"], "gate": [gate], "unknown_after": "1h"}
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
        assert await passes(59) == ["approval"]
        # It waits for something else now, however lately somebody was told.
        await ok(replica, "POST", "/v1/rollouts/default/2/promote", {})
        await passes(1)
        await works(nodes, 2, 1)
        assert await passes(1) == []
        assert await passes(30) == ["unknown"]
        assert await passes(120) == ["unknown", "unknown"]
        # One that has stopped isn't forgotten either.
        await ok(replica, "POST", "/v1/releases", {"functions": {"hello": 3}, "rollout": policy | {"steps": ["100%"]}})
        await passes(1)
        await works(nodes, 3, 2, fails=1)
        assert await passes(30) == ["failed"]
        assert await passes(120) == ["failed", "failed"]
        await ok(replica, "POST", "/v1/rollouts/default/3/resume", {})
        assert await passes(10) == ["unknown"]
        await ok(replica, "POST", "/v1/rollouts/default/3/pause", {})
        assert await passes(120) == []
