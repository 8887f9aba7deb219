"""What the gates of a step measure: calls on the rollout's release, the hour before, and what webhooks answer."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from control.protocol import wire
from control.rollouts import measuring, store
from control.rollouts.gates import GateVerdict
from control.rollouts.measuring import MeasuredStep, Measuring
from control.rollouts.policy import Gate
from control.storage.connection import Connection
from control.telemetry.webhooks.webhook_client import WebhookClient
from tests.support import numbers, seeds
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.cutting import cutting
from tests.support.replica import Replica, Site, TestNode
from tests.support.rollouts import open_rollout
from tests.support.webhook_receiver import Receiver, receiving
from tests.support.webhooks import LOOPBACK

NOON = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
ERRORS = Gate(metric="error_ratio", at_most="10%", at_least_calls=10)
COMPARED = Gate(metric="error_ratio", than_before="2x", at_least_calls=10)


async def execute(replica: Replica, statement: str, *values: Any) -> None:
    await replica.services.db.transaction(lambda conn: conn.execute(statement, *values))


async def rows(replica: Replica, statement: str, *values: Any) -> list[Any]:
    found: list[Any] = await replica.services.db.read(lambda conn: conn.fetch(statement, *values))  # type: ignore[arg-type]
    return found


async def started(
    replica: Replica, release: int, nodes: Sequence[TestNode], at: datetime, step: int = 1
) -> MeasuredStep:
    """A rollout's step that has started nodes, as its rows say."""
    ((release_id, group_id),) = await rows(replica, "SELECT id, group_id FROM releases WHERE number = $1", release)
    await execute(
        replica,
        "INSERT INTO rollouts (release_id, group_id, policy, state, step, step_since, waits_since, measured_from,"
        " made_at) VALUES ($1, $2, '{}', 'running', $3, $4, $4, $4, $4) ON CONFLICT DO NOTHING",
        *(release_id, group_id, step, at),
    )
    for node in nodes:
        await execute(
            replica,
            "INSERT INTO rollout_nodes (release_id, node_id, step, generation, started_at) VALUES ($1, $2, $3, 1, $4)",
            *(release_id, UUID(node.id), step, at),
        )
    return MeasuredStep(release_id, group_id, "default", release, step, at, at, [])


@asynccontextmanager
async def measuring_at(replica: Replica, clock: SetClock) -> AsyncIterator[Measuring]:
    services = replica.services
    made = Measuring(services.db, clock, services.numbers, WebhookClient(LOOPBACK, clock))
    async with made:
        yield made


async def two_releases(replica: Replica) -> TestNode:
    """A node that runs release 2 of `default`. Like release 1, it has alpha and beta."""
    for function in ("beta", "alpha"):
        await seeds.function(replica, function)
    await seeds.release(replica, functions={"beta": 1, "alpha": 1})
    node = await replica.join("one")
    await node.sync()
    await seeds.release(replica, functions={"beta": await seeds.function(replica, "beta"), "alpha": 1})
    await node.sync()
    return node


_sequence = iter(range(1, 10**6))


async def tell(node: TestNode, *functions: wire.FunctionNumbers, seconds: float = 60.0) -> None:
    """Have the node tell of calls, which are counted when this returns."""
    sent = numbers.message(functions, sequence=next(_sequence), seconds=seconds)
    assert (await numbers.tell(node, sent)).status == 204
    await node.replica.services.numbers.resolve()


async def passes(replica: Replica, clock: SetClock, seconds: float = 0.0, **parts: float) -> None:
    """Have so much time pass; the replica has read its targets since."""
    clock.advance(seconds, **parts)
    await replica.services.fleet.refresh()


def hour(calls: int, errors: int = 0, name: str = "alpha") -> bytes:
    counted = numbers.function(0, calls=calls, **({"guest_trap": errors} if errors else {}))
    return msgspec.msgpack.encode(wire.HourBefore(3600, [counted], [name]))


async def test_calls_of_a_release_that_a_node_has_left_never_count_for_the_next(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        step = (await started(replica, 2, [node], NOON))._replace(gates=[ERRORS])
        # What the node tells after its flip is of the release before, too.
        await tell(node, numbers.function(release=1, calls=100, guest_trap=100))
        (said,) = await found.measure_step(step)
        assert (said.outcome, said.calls) == ("unknown", 0)
        await passes(replica, clock, measuring.PERIOD)
        await tell(node, numbers.function(release=2, calls=100, guest_trap=3))
        (said,) = await found.measure_step(step)
        assert (said.outcome, said.measured, said.calls) == ("passed", 0.03, 100)
        # And the next one's begin with none.
        await seeds.release(replica, functions={"beta": 1, "alpha": 1})
        await execute(replica, "UPDATE rollouts SET state = 'superseded'")
        next_one = (await started(replica, 3, [node], NOON))._replace(gates=[ERRORS])
        (said,) = await found.measure_step(next_one)
        assert (said.outcome, said.calls) == ("unknown", 0)


async def test_calls_that_other_replicas_counted_count_too(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with (
        control_site.running(clock=clock) as replica,
        control_site.running(clock=clock) as other,
        measuring_at(replica, clock) as found,
    ):
        node = await two_releases(replica)
        step = (await started(replica, 2, [node], NOON))._replace(gates=[ERRORS])
        await tell(node, numbers.function(release=2, calls=10))
        node.replica = other
        await other.services.fleet.refresh()
        await tell(node, numbers.function(1, release=2, calls=10, guest_trap=5), seconds=5)
        await other.services.numbers.write(clock.now())
        (said,) = await found.measure_step(step)
        assert (said.outcome, said.measured, said.calls) == ("failed", 0.25, 20)
        # Of one function alone.
        alpha = msgspec.structs.replace(ERRORS, function="alpha")
        await passes(replica, clock, measuring.PERIOD)
        (said,) = await found.measure_step(step._replace(gates=[alpha]))
        assert (said.outcome, said.measured, said.calls) == ("passed", 0.0, 10)


async def test_calls_on_the_release_of_a_rollout_are_known_to_other_replicas_within_seconds(control_site: Site) -> None:
    """However long after the flip: nodes tell of their calls once a minute then."""
    clock = SetClock(NOON, timers="stand")
    async with (
        control_site.running(clock=clock) as replica,
        control_site.running(clock=clock) as other,
        measuring_at(other, clock) as found,
    ):
        for function in ("beta", "alpha"):
            await seeds.function(replica, function)
        await seeds.release(replica, functions={"beta": 1, "alpha": 1})
        node = await replica.join("one")
        await node.sync()
        functions = {"beta": await seeds.function(replica, "beta"), "alpha": 1}
        rollout = await open_rollout(replica, functions=functions)
        await rollout.start(replica, [node])
        await node.sync()
        ids = UUID(rollout.id), UUID(rollout.group_id)
        step = MeasuredStep(*ids, "default", rollout.number, 1, NOON, NOON, [ERRORS])
        await passes(replica, clock, 1800)
        await passes(other, clock)
        await tell(node, numbers.function(release=2, calls=10))
        await replica.services.numbers.write(clock.now())
        (said,) = await found.measure_step(step)
        assert said.calls == 10
        # Once the group has the release, nobody waits for its numbers.
        await rollout.finish(replica)
        await passes(replica, clock, 60)
        await tell(node, numbers.function(release=2, calls=5))
        await replica.services.numbers.write(clock.now())
        (said,) = await found.measure_step(step)
        assert said.calls == 10


async def test_a_node_reports_its_hour_before_once_and_only_where_a_rollout_has_it(
    control_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        for function in ("beta", "alpha"):
            await seeds.function(replica, function)
        await seeds.release(replica, functions={"beta": 1, "alpha": 1})
        one, two, three, four = [await replica.join(name) for name in ("one", "two", "three", "four")]
        step = (await started(replica, 1, [one, two, three], NOON))._replace(gates=[COMPARED])
        sent = [hour(1000, 10), hour(3000, 70, "gone"), b"\xc1", hour(1, 1)]
        for node, before in zip((one, two, three, four), sent, strict=True):
            plan = await node.plan()
            node.apply(plan)
            for again in (before, hour(9, 9)):
                answer = await node.report(plan.sync_id, "succeeded", before=again)
                assert answer.json()["status"] == "succeeded"
        # A node whose disk was replaced flips again: by now the release's own calls are among those of its last hour.
        one.inventory, one.generation = wire.Inventory(database_id="another"), 0
        plan = await one.plan()
        one.apply(plan)
        await one.report(plan.sync_id, "succeeded", before=hour(9, 9))
        stored = {str(id): before for id, before in await rows(replica, "SELECT node_id, before FROM rollout_nodes")}
        assert stored == {one.id: sent[0], two.id: sent[1], three.id: None}
        assert f"hour before of node {three.id} are left out" in caplog.text
        await tell(one, numbers.function(calls=100, guest_trap=4))
        (said,) = await found.measure_step(step)
        assert (said.outcome, said.before, said.allowed) == ("passed", 0.02, 0.04)
        # A function that is new has no hour before.
        await passes(replica, clock, measuring.PERIOD)
        beta = msgspec.structs.replace(COMPARED, function="beta")
        (said,) = await found.measure_step(step._replace(gates=[beta]))
        assert said.outcome == "unknown"


async def test_hours_that_can_not_be_true_are_left_out_when_they_are_read(
    control_site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PAGE", 2)
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        others = [await replica.join(f"n{number}") for number in range(5)]
        step = (await started(replica, 2, [node, *others], NOON))._replace(gates=[COMPARED])
        wrong = [
            hour(10)[:-3],
            msgspec.msgpack.encode([3600, [[1, 1, [], b"\0\x05\x05"]], ["alpha"]]),
            msgspec.msgpack.encode([3600, [[0, 1, [2, 9], b"\0\x04"]], ["alpha"]]),
            msgspec.msgpack.encode([3600, [[0, 1, [], b"\xff"]], ["alpha"]]),
        ]
        for at, before in zip((*others, node), (*wrong, hour(100, 1), hour(100, 3)), strict=True):
            statement = "UPDATE rollout_nodes SET before = $2 WHERE node_id = $1"
            await execute(replica, statement, UUID(at.id), before)
        await tell(node, numbers.function(release=2, calls=100))
        with caplog.at_level(logging.WARNING, "skerry.rollouts"):
            for _ in range(3):
                (said,) = await found.measure_step(step)
                assert said.before == 0.02
                await passes(replica, clock, measuring.PERIOD)
        assert caplog.text.count("are left out") == len(wrong)


async def test_calls_before_the_step_or_a_pause_do_not_count(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        first = (await started(replica, 2, [node], NOON))._replace(gates=[ERRORS])
        await passes(replica, clock, 30)
        await tell(node, numbers.function(release=2, calls=10))
        (said,) = await found.measure_step(first)
        assert said.calls == 10
        # The next step begins: what was told in this minute may be older.
        await passes(replica, clock, 20)
        second = first._replace(step=2, step_since=clock.now(), measured_from=clock.now())
        await tell(node, numbers.function(release=2, calls=20))
        (said,) = await found.measure_step(second)
        assert said.calls == 0
        await passes(replica, clock, 10)
        await tell(node, numbers.function(release=2, calls=30))
        (said,) = await found.measure_step(second)
        assert said.calls == 30
        # After a pause nodes still tell of calls that they had before it.
        resumed = second._replace(measured_from=clock.now())
        await passes(replica, clock, 70)
        await tell(node, numbers.function(release=2, calls=40, guest_trap=40))
        (said,) = await found.measure_step(resumed)
        assert said.calls == 0
        await passes(replica, clock, 60)
        await tell(node, numbers.function(release=2, calls=50))
        (said,) = await found.measure_step(resumed)
        assert (said.outcome, said.calls) == ("passed", 50)
        # It stays so when the hours are summed up.
        await passes(replica, clock, hours=4)
        await replica.services.numbers.write(clock.now(), everything=True)
        assert await replica.services.numbers_kept.work(clock.now(), 60)
        await tell(node, numbers.function(release=2, calls=60))
        (said,) = await found.measure_step(resumed)
        assert (said.outcome, said.calls) == ("passed", 110)


async def test_numbers_that_can_not_be_read_are_unknown(control_site: Site) -> None:
    clock = SetClock(NOON)
    async with (
        cutting(control_site.settings.metadata_url) as proxy,
        control_site.at(proxy.url).running(clock=clock) as replica,
        measuring_at(replica, clock) as found,
    ):
        node = await two_releases(replica)
        step = (await started(replica, 2, [node], NOON))._replace(gates=[ERRORS])
        await tell(node, numbers.function(release=2, calls=50))
        proxy.refusing = True
        proxy.cut_all()
        (said,) = await found.measure_step(step)
        assert said.outcome == "unknown"
        assert said.why.startswith("the calls can't be read now: ")
        proxy.refusing = False
        (said,) = await found.measure_step(step)
        assert said.outcome == "passed"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


async def answered(found: Measuring, step: MeasuredStep, why: str) -> GateVerdict:
    """What the step's only gate says, once its reason has these words."""
    said: list[GateVerdict] = []

    async def there() -> bool:
        said[:] = await found.measure_step(step)
        return why in said[0].why

    await until(there)
    return said[0]


async def test_a_webhook_is_asked_and_its_answer_is_the_gates(control_site: Site, receiver: Receiver) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        step = (await started(replica, 2, [node], NOON))._replace(gates=[Gate(webhook=receiver.url)])
        await tell(node, numbers.function(release=2, calls=7))
        (said,) = await found.measure_step(step)
        assert (said.outcome, said.why) == ("unknown", measuring.NOT_ASKED)
        assert (await answered(found, step, "204")).outcome == "passed"
        assert receiver.received[0].body == {"group": "default", "number": 2, "step": 1, "nodes": 1, "calls": 7}
        for status, outcome in ((403, "failed"), (500, "unknown"), (302, "unknown"), (200, "passed")):
            receiver.answers = lambda message, status=status: status  # type: ignore[misc]
            # Not asked again before its time.
            asked = len(receiver.received)
            await found.measure_step(step)
            assert len(receiver.received) == asked
            await passes(replica, clock, measuring.ASK_EVERY)
            assert (await answered(found, step, str(status))).outcome == outcome
            assert len(receiver.received) == asked + 1


async def test_an_answer_for_fewer_nodes_or_another_step_does_not_pass(control_site: Site, receiver: Receiver) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        step = (await started(replica, 2, [node], NOON))._replace(gates=[Gate(webhook=receiver.url)])
        assert (await answered(found, step, "204")).outcome == "passed"
        await started(replica, 2, [await replica.join("two")], NOON)
        await passes(replica, clock, measuring.PERIOD)
        (said,) = await found.measure_step(step)
        assert said.outcome == "unknown"
        assert "more nodes were started" in said.why
        await passes(replica, clock, measuring.ASK_EVERY)
        assert (await answered(found, step, "204")).outcome == "passed"
        assert [message.body["nodes"] for message in receiver.received] == [1, 2]
        (said,) = await found.measure_step(step._replace(step=2, measured_from=clock.now()))
        assert said.outcome == "unknown"


async def test_a_webhook_that_is_away_slow_or_private_is_unknown(control_site: Site, receiver: Receiver) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        await seeds.function(replica, "alpha")
        await seeds.release(replica, functions={"alpha": 1})
        step = await started(replica, 1, [], NOON)
        receiver.answers = lambda message: 60.0
        slow = step._replace(gates=[Gate(webhook=receiver.url)])
        await found.measure_step(slow)
        await until(lambda: _true(receiver.received))
        await passes(replica, clock, measuring.ASK_LIMIT)
        assert (await answered(found, slow, "hadn't answered after 10 s")).outcome == "unknown"
        for number, (url, why) in enumerate(
            {
                "http://127.0.0.1:9/": "failed",
                "https://10.1.2.3/hook?token=secret": "isn't public",
                "http://127.0.0.1:9/?token=secret": "failed",
            }.items(),
            2,
        ):
            other = step._replace(step=number, gates=[Gate(webhook=url)])
            said = await answered(found, other, why)
            assert said.outcome == "unknown"
            assert "secret" not in said.why


async def _true(value: object) -> bool:
    return bool(value)


async def test_what_gates_say_is_stored_and_replaced(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        step = await started(replica, 2, [node], NOON)
        gates = {"gate": [msgspec.to_builtins(ERRORS), msgspec.to_builtins(COMPARED)]}
        await execute(replica, "UPDATE rollouts SET policy = $1", gates)
        written = []
        for calls in (0, 20, 0, 0):
            await tell(node, numbers.function(release=2, calls=calls)) if calls else None
            stored = await replica.services.db.read(lambda conn: store.by_release(conn, step.release_id))
            assert stored is not None
            said = await found.measure(stored)

            async def save(
                conn: Connection, stored: store.StoredRollout = stored, said: list[GateVerdict] = said
            ) -> None:
                await found.save(conn, stored, said, clock.now())

            await replica.services.db.transaction(save)
            rows_now = await replica.services.db.read(lambda conn: store.gates(conn, step.release_id))
            values = [
                (1, place, v.outcome, v.measured, v.allowed, v.before, v.calls, v.why) for place, v in enumerate(said)
            ]
            assert [tuple(row)[:-1] for row in rows_now] == values
            written.append([row.measured_at for row in rows_now])
            await passes(replica, clock, 10)
        assert [said.outcome for said in said] == ["passed", "unknown"]
        # Not again and again: the third time, nothing was new.
        assert [(at - NOON).total_seconds() for at, _ in written] == [0, 10, 10, 30]


async def test_gates_are_measured_once_nodes_are_started_and_in_pauses_too(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica, measuring_at(replica, clock) as found:
        node = await two_releases(replica)
        step = await started(replica, 2, [node], NOON)
        policy = {"steps": [{"pause": "1h"}, "1", {"pause": "2h"}, "100%"], "gate": [msgspec.to_builtins(ERRORS)]}
        counts = []
        for number in range(5):
            await execute(replica, "UPDATE rollouts SET policy = $1, step = $2", policy, number)
            stored = await replica.services.db.read(lambda conn: store.by_release(conn, step.release_id))
            assert stored is not None
            counts.append(len(await found.measure(stored)))
        assert counts == [0, 0, 1, 1, 1]
