"""Something is announced while a poll is decided by the database: the poll must not be held on what was true before."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from control.protocol import wire
from tests.support import seeds
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, Site, TestNode, deaf, plan_of

SEEDS = int(os.environ.get("SKERRY_TEST_ORDERS", "30"))
"""Orders that are tried; the environment may want more."""
HOLD = 60.0
"""Seconds for which a poll is held, or three quarters of it."""
TOLD = 30.0
"""Seconds; a poll that misses the change is held for longer."""


class Gate:
    """Holds whoever comes through, while it is closed."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._arrived = asyncio.Event()

    def close(self) -> None:
        self._open.clear()
        self._arrived.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        """Come through."""
        self._arrived.set()
        await self._open.wait()

    async def arrived(self) -> None:
        """Wait until somebody stands before it."""
        async with deadline(TOLD):
            await self._arrived.wait()


class Gates:
    """Where a replica's work on polls can be held: before and behind a decision, and behind a reading of the epochs."""

    def __init__(self, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.decided, self.read = Gate(), Gate(), Gate()
        services = replica.services
        ask, read = services.decisions.ask, services.fleet._db.read

        async def held_ask(request: Any) -> Any:
            await self.asked.passed()
            outcome = await ask(request)
            await self.decided.passed()
            return outcome

        class HeldReads:
            async def read(_, work: Any) -> Any:
                found = await read(work)
                if getattr(work, "func", None) == services.fleet._read:
                    await self.read.passed()
                return found

        monkeypatch.setattr(services.decisions, "ask", held_ask)
        monkeypatch.setattr(services.fleet, "_db", HeldReads())


@pytest.fixture
async def replicas(control_site: Site) -> AsyncIterator[tuple[Replica, Replica]]:
    """One that reads the epochs when the test says so alone, and another one at which things are changed."""
    async with control_site.running(clock=deaf(), hold=HOLD) as one, control_site.running(clock=deaf()) as two:
        yield one, two


async def waiting(two: Replica, name: str, state: str) -> TestNode:
    """A node of a group of its own whose next poll the database must decide, and which has then nothing to do: it is at
    a target that it wasn't confirmed at, or it has failed its target and waits."""
    assert (await two.call("POST", "/v1/groups", {"name": name})).status == 201
    node = await two.join(name, name)
    assert (await node.poll()).status == 204
    if state == "at target":
        await seeds.release(two, name)
        return node
    await seeds.release(two, name, functions={"old": 1})
    plan = await node.plan()
    node.failed = wire.FailedGeneration(plan.generation, two.services.clock.now() + timedelta(hours=1))
    error = wire.SyncError("disk_full", "no room")
    assert (await node.report(plan.sync_id, "failed", error=error, retry_at=node.failed.retry_at)).status == 200
    return node


async def change(two: Replica, name: str, what: str) -> None:
    """Change what the node of that name has to do, or may."""
    match what:
        case "release":
            await seeds.release(two, name, functions={"new": 1})
        case "move":
            assert (await two.call("POST", f"/v1/nodes/{name}/move", {"group": "other"})).status == 200
        case "retry" | "revoke":
            assert (await two.call("POST", f"/v1/nodes/{name}/{what}")).status == 204
        case "remove":
            assert (await two.call("DELETE", f"/v1/nodes/{name}")).status == 204


def check(answer: Answered, what: str) -> None:
    """The poll was told of the change."""
    if what in ("revoke", "remove"):
        # 404 where the decision itself found that the node was removed.
        assert answer.status in ((401,) if what == "revoke" else (401, 404))
    else:
        assert answer.status == 200, answer
        names = [f.name for f in plan_of(answer).functions]
        assert {"retry": "old", "move": "other", "release": "new"}[what] in names


async def prepare(two: Replica) -> None:
    for name in ("old", "new", "other"):
        await seeds.function(two, name)
    await two.call("POST", "/v1/groups", {"name": "other"})
    await seeds.release(two, "other", functions={"other": 1})


CASES = [
    (state, what)
    for state in ("at target", "waits")
    for what in ("release", "move", "retry", "revoke", "remove")
    if (state, what) != ("at target", "retry")
]


@pytest.mark.parametrize(("state", "what"), CASES)
async def test_a_change_between_the_decision_and_the_hold_is_told_at_once(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch, state: str, what: str
) -> None:
    one, two = replicas
    await prepare(two)
    node = await waiting(two, "node-1", state)
    await one.services.fleet.refresh()
    gates = Gates(one, monkeypatch)
    gates.decided.close()
    node.replica = one
    poll = asyncio.create_task(node.ask(HOLD))
    await gates.decided.arrived()
    await change(two, "node-1", what)
    await one.services.fleet.refresh()
    gates.decided.open()
    async with asyncio.timeout(TOLD):
        check(await poll, what)


async def test_a_poll_that_is_decided_while_the_replica_ends_is_not_held(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    node = await waiting(two, "node-1", "at target")
    await one.services.fleet.refresh()
    gates = Gates(one, monkeypatch)
    gates.decided.close()
    node.replica = one
    poll = asyncio.create_task(node.ask(HOLD))
    await gates.decided.arrived()
    one.services.fleet.close()
    gates.decided.open()
    async with asyncio.timeout(TOLD):
        assert (await poll).json()["code"] == "shutting_down"


async def test_what_was_decided_before_a_rejoin_is_not_believed_after_it(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    node = await waiting(two, "node-1", "at target")
    await one.services.fleet.refresh()
    committed = Gate()
    transaction = one.services.databases.batches.transaction

    async def held(work: Any) -> Any:
        done = await transaction(work)
        if "Reconciler" in work.func.__qualname__:
            await committed.passed()
        return done

    monkeypatch.setattr(one.services.databases.batches, "transaction", held)
    committed.close()
    node.replica = one
    poll = asyncio.create_task(node.ask())
    await committed.arrived()
    token = (await two.call("POST", "/v1/join-tokens", {"rejoin": "node-1"})).json()["token"]
    joined = await two.call("POST", "/v1/nodes", wire.Join("node-1", str(uuid4())), token=token)
    await one.services.fleet.refresh()
    committed.open()
    assert (await poll).status == 401
    # Its database was kept: it runs what it ran before. Control has forgotten that, and must ask for it.
    node.credential = joined.json()["credential"]
    answer = await node.ask()
    assert (answer.status, answer.json()) == (200, {"type": "report"})


async def test_no_order_of_decision_change_reading_and_hold_loses_a_change(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    await prepare(two)
    gates = Gates(one, monkeypatch)
    seen = set()
    for seed in range(SEEDS):
        chance = random.Random(seed)
        state, what = chance.choice(CASES)
        steps = ["poll"] * 3 + ["reading"] * 4 + ["change"]
        chance.shuffle(steps)
        seen.add((state, what, tuple(steps)))
        try:
            await in_this_order(one, two, gates, f"node-{seed}", state, what, steps)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}: a node that was {state!r}, then {what}, in the order {steps}"
            ) from error
    assert len(seen) > SEEDS * 0.9


async def first(poll: asyncio.Task[Answered], gate: Gate) -> None:
    """Wait until the poll stands before the gate, or was answered."""
    arrived = asyncio.create_task(gate.arrived())
    await asyncio.wait([poll, arrived], return_when=asyncio.FIRST_COMPLETED)
    arrived.cancel()
    await asyncio.gather(arrived, return_exceptions=True)


async def held(poll: asyncio.Task[Answered], node: TestNode) -> None:
    """Wait until the node's poll is held, or was answered."""
    async with deadline(TOLD):
        while not poll.done() and node.id not in node.replica.services.fleet.waiters:
            await asyncio.sleep(0.001)


async def in_this_order(
    one: Replica, two: Replica, gates: Gates, name: str, state: str, what: str, steps: list[str]
) -> None:
    """`steps`: of a poll that it begins, is decided, and is held or answered; of two readings of the epochs, each that
    the database is read and that the replica takes it; and the change at the other replica."""
    node = await waiting(two, name, state)
    await one.services.fleet.refresh()
    node.replica = one
    done = {"poll": 0, "reading": 0}
    poll = reading = None
    for gate in (gates.asked, gates.decided, gates.read):
        gate.close()
    for step in steps:
        if step == "change":
            await change(two, name, what)
            continue
        if step == "reading":
            if done[step] % 2 == 0:
                gates.read.close()
                reading = asyncio.create_task(one.services.fleet.refresh())
                await gates.read.arrived()
            else:
                gates.read.open()
                assert reading is not None
                await reading
        elif done[step] == 0:
            poll = asyncio.create_task(node.ask(HOLD))
            # Where the change is known here already, the poll may be refused before it is decided.
            await first(poll, gates.asked)
        elif done[step] == 1:
            gates.asked.open()
            assert poll is not None
            await first(poll, gates.decided)
        else:
            gates.decided.open()
            assert poll is not None
            await held(poll, node)
        done[step] += 1
    # Within `PERIOD` of the change there is a reading that begins after it.
    await one.services.fleet.refresh()
    assert poll is not None
    async with asyncio.timeout(TOLD):
        check(await poll, what)
