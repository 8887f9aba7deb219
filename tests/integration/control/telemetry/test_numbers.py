"""What nodes tell of their calls: taken once, bounded, written by minute, summed up by hour, deleted when old."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from control.protocol import histogram, wire
from control.telemetry import call_history, ingest
from control.telemetry.call_history import Tallies
from control.telemetry.node_health import OF_NODE
from tests.support import deploy, numbers, seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Replica, Site, TestNode
from tests.support.rollouts import open_rollout

NOON = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)


async def at_release(replica: Replica, name: str = "one") -> TestNode:
    """A node that runs release 1 of `default`, with the functions alpha and beta."""
    node = await replica.join(name)
    if name == "one":
        for function in ("beta", "alpha"):
            await seeds.function(replica, function)
        await seeds.release(replica, functions={"beta": 1, "alpha": 1})
    await node.sync()
    return node


async def totals(replica: Replica) -> dict[tuple[str, int], tuple[int, int]]:
    """Calls and errors by function and release, once the names of functions are known."""
    await replica.services.numbers.resolve()
    return {key: (tally.calls, tally.errors) for key, tally in counted(replica).items()}


def counted(replica: Replica) -> Tallies:
    """All calls of all groups since the replica's start."""
    numbers, found = replica.services.numbers, Tallies()
    for group_id in numbers.groups():
        for part in numbers.totals(group_id):
            call_history.add_tallies(found, part)
    return found


async def stored(replica: Replica, query: str = "SELECT * FROM group_minutes ORDER BY minute") -> list[Any]:
    rows: list[Any] = await replica.services.db.read(lambda conn: conn.fetch(query))  # type: ignore[arg-type]
    return rows


async def test_numbers_are_counted_by_the_names_of_functions(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await at_release(replica)
        sent = [numbers.function(0, calls=5), numbers.function(1, calls=7, guest_trap=2, client_gone=1)]
        assert (await numbers.tell(node, numbers.message(sent))).status == 204
        assert await totals(replica) == {("alpha", 1): (5, 0), ("beta", 1): (7, 2)}
        beta = counted(replica)["beta", 1]
        assert beta.outcomes == {"guest_trap": 2, "client_gone": 1}
        assert beta.quantile(0.99) == pytest.approx(0.01, rel=0.1)


async def test_the_same_numbers_again_count_once(control_site: Site) -> None:
    """Until a poll that carried them was answered, a node sends them again; another boot begins anew."""
    async with control_site.running() as replica:
        node = await at_release(replica)
        sent = numbers.message([numbers.function(calls=5)], sequence=3)
        for _ in range(3):
            await numbers.tell(node, sent)
        assert await totals(replica) == {("alpha", 1): (5, 0)}
        await numbers.tell(node, numbers.message([numbers.function(calls=1)], sequence=2))
        assert await totals(replica) == {("alpha", 1): (5, 0)}
        await numbers.tell(node, numbers.message([numbers.function(calls=1)], sequence=4))
        await numbers.tell(node, sent, boot_id="another")
        assert await totals(replica) == {("alpha", 1): (11, 0)}
        assert (replica.services.numbers.taken, replica.services.numbers.again) == (3, 3)


HUGE = 2**47
HOSTILE = {
    "no msgpack": b"\xc1 not at all",
    "of other types": msgspec.msgpack.encode(["1", {}, 5]),
    "a negative count": msgspec.msgpack.encode([1, 60, [[0, 1, [2, -5], b"\0\x05\x05"]], None]),
    "a negative index": msgspec.msgpack.encode([1, 60, [[-1, 1, [], b"\0\x05\x05"]], None]),
    "an unknown function": numbers.message([numbers.function(2)]),
    "an unknown release": numbers.message([numbers.function(0, release=77)]),
    "more calls than can be": numbers.message([numbers.function(calls=HUGE)]),
    "more failures than calls": numbers.message([numbers.function(calls=1, guest_trap=2)]),
    "half a pair": numbers.message([wire.FunctionNumbers(0, 1, [2], b"\0\x05\x05")]),
    "no histogram": numbers.message([wire.FunctionNumbers(0, 1, [], b"\xff\xff")]),
    "too many functions": msgspec.msgpack.encode([1, 60, [[0, 1, [], b"\0\x05\x05"]] * 2001, None]),
    "too large": b"\x00" * (ingest.LONGEST + 1),
    "deep": b"\x91" * 10_000 + b"\x90",
    "a while that is no number": msgspec.msgpack.encode([1, float("nan"), [], None]),
}


async def test_what_can_not_be_true_is_refused_and_the_poll_answered(
    control_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with control_site.running() as replica:
        node = await at_release(replica)
        ingested = replica.services.numbers
        with caplog.at_level(logging.WARNING, "skerry.numbers"):
            for number, (what, sent) in enumerate(HOSTILE.items()):
                answer = await numbers.tell(node, sent, boot_id=str(number))
                assert answer.status == 204, what
                ingested._told.clear()
                await ingested.resolve()
                assert ingested.refused == number + 1, what
        assert await totals(replica) == {}
        # One line for all of them.
        assert len([r for r in caplog.records if "numbers of nodes are refused" in r.getMessage()]) == 1
        # A node that is refused once is heard the next time.
        await numbers.tell(node, numbers.message([numbers.function(calls=2)], sequence=9), boot_id="well")
        assert await totals(replica) == {("alpha", 1): (2, 0)}


async def test_a_node_that_tells_without_end_is_refused(control_site: Site) -> None:
    # As if all came at once, however slow the machine is.
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        node = await at_release(replica)
        ingested = replica.services.numbers
        for sequence in range(100):
            await numbers.tell(node, numbers.message([numbers.function(calls=1)], sequence=sequence))
        assert ingested.refused > 50
        assert ingested.taken + ingested.refused == 100


async def test_outcomes_of_newer_nodes_count_as_others(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await at_release(replica)
        code = len(wire.OUTCOMES) + 5
        sent = wire.FunctionNumbers(0, 1, [code, 3], histogram.pack({9: 4}, 64))
        await numbers.tell(node, numbers.message([sent]))
        assert await totals(replica) == {("alpha", 1): (4, 3)}


async def test_numbers_of_the_group_before_a_move_are_left_out(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await at_release(replica)
        await seeds.release(replica, group="default", functions={"beta": 1})
        cached, generation = replica.services.fleet.nodes[node.id], node.generation + 5
        cached.generation = cached.moved_generation = generation
        await numbers.tell(node, numbers.message([numbers.function(calls=2)]))
        assert await totals(replica) == {}
        await numbers.tell(node, numbers.message([numbers.function(calls=2)], sequence=2), generation=generation)
        assert await totals(replica) == {("alpha", 1): (2, 0)}


async def test_numbers_of_a_node_on_its_way_to_its_own_release_count(control_site: Site) -> None:
    """It serves its old release on, and for as long as the new one fails."""
    async with control_site.running() as replica:
        node = await at_release(replica)
        rollout = await open_rollout(replica, functions={"beta": await seeds.function(replica, "beta")})
        await rollout.start(replica, [node])
        await numbers.tell(node, numbers.message([numbers.function(calls=2)]))
        assert await totals(replica) == {("alpha", 1): (2, 0)}


async def test_a_minute_that_is_over_is_a_row(control_site: Site) -> None:
    clock = SetClock(NOON)
    async with control_site.running(clock=clock) as replica:
        node = await at_release(replica)
        services = replica.services
        await numbers.tell(node, numbers.message([numbers.function(calls=5)]))
        await services.numbers.resolve()
        await services.numbers.write(clock.now())
        assert await stored(replica) == []
        clock.advance(60)
        await numbers.tell(node, numbers.message([numbers.function(calls=6)], sequence=2))
        await services.numbers.write(clock.now())
        (row,) = await stored(replica)
        assert row["minute"] == NOON
        await services.numbers.write(clock.now())
        assert len(await stored(replica)) == 1
        # Both are in what is read, whether they are written or not, and once.
        for _ in range(2):
            assert await read(replica, NOON, NOON + timedelta(minutes=5)) == {("alpha", 1): 11}
            assert await read(replica, NOON, NOON + timedelta(minutes=1)) == {("alpha", 1): 5}
            await services.numbers.write(clock.now(), everything=True)
    # The end of the replica writes the rest.
    async with control_site.running(clock=clock) as replica:
        assert len(await stored(replica)) == 2
        assert await read(replica, NOON, NOON + timedelta(minutes=5)) == {("alpha", 1): 11}


async def read(replica: Replica, since: datetime, until: datetime, function: str = "") -> dict[tuple[str, int], int]:
    services = replica.services
    ingested = services.numbers
    found: Tallies = {}
    for span in await call_history.read(
        services.db, services.fleet.groups, since, until, ingested.unwritten(), ingested.replica, function
    ):
        call_history.add_tallies(found, span.counted)
    return {key: tally.calls for key, tally in found.items()}


async def test_numbers_after_a_change_are_written_at_once(control_site: Site) -> None:
    """Else a release that fails everywhere would show only after a minute on another replica."""
    clock = SetClock(NOON)
    async with control_site.running(clock=clock) as replica, control_site.running(clock=clock) as other:
        node = await at_release(replica)
        await numbers.tell(node, numbers.message([numbers.function(calls=5, guest_trap=5)], seconds=5))
        await replica.services.numbers.resolve()
        await replica.services.numbers.write(clock.now())
        assert await read(other, NOON, NOON + timedelta(minutes=1)) == {("alpha", 1): 5}
        await numbers.tell(node, numbers.message([numbers.function(1, calls=1)], seconds=5, sequence=2))
        await replica.services.numbers.write(clock.now())
        assert await read(other, NOON, NOON + timedelta(minutes=1)) == {("alpha", 1): 5, ("beta", 1): 1}
        assert await read(other, NOON, NOON + timedelta(minutes=1), "beta") == {("beta", 1): 1}


async def test_hours_are_summed_up_once_and_old_rows_deleted(control_site: Site) -> None:
    clock = SetClock(NOON)
    async with control_site.running(clock=clock) as one, control_site.running(clock=clock) as two:
        first, second = await at_release(one), await at_release(one, "two")
        second.replica = two
        for minute in range(5):
            for node in (first, second):
                await numbers.tell(node, numbers.message([numbers.function(calls=3)], sequence=minute))
                await node.replica.services.numbers.resolve()
            clock.advance(60)
        for replica in (one, two):
            await replica.services.numbers.write(clock.now())
        assert len(await stored(one)) == 10
        keeper = one.services.numbers_kept
        assert await keeper.work(clock.now(), 60)
        assert await stored(one, "SELECT * FROM group_hours") == []
        clock.advance(3600)
        for _ in range(2):
            assert await keeper.work(clock.now(), 60)
            (hour,) = await stored(one, "SELECT * FROM group_hours")
            assert hour["hour"] == NOON.replace(minute=0)
        assert await two.services.numbers_kept.work(clock.now(), 60)
        assert await read(one, NOON - timedelta(hours=1), clock.now()) == {("alpha", 1): 30}
        # Read by the hour now.
        clock.advance(3 * 3600)
        assert await read(one, NOON - timedelta(hours=1), clock.now()) == {("alpha", 1): 30}
        clock.advance(48 * 3600)
        assert await keeper.work(clock.now(), 60)
        assert (len(await stored(one)), len(await stored(one, "SELECT * FROM group_hours"))) == (0, 1)
        assert await read(one, NOON - timedelta(hours=1), clock.now()) == {("alpha", 1): 30}
        clock.advance(90 * 86400)
        assert await keeper.work(clock.now(), 60)
        assert await stored(one, "SELECT * FROM group_hours") == []


async def test_an_hour_is_summed_up_for_the_groups_that_had_calls(control_site: Site) -> None:
    """Else each pass would begin with all the groups that had none, and never get beyond them where they are many."""
    clock = SetClock(NOON)
    async with control_site.running(clock=clock) as replica:
        node = await at_release(replica)
        assert (await replica.call("POST", "/v1/groups", {"name": "idle"})).status == 201
        await numbers.tell(node, numbers.message([numbers.function(calls=5)]))
        await replica.services.numbers.resolve()
        clock.advance(2 * 3600)
        await replica.services.numbers.write(clock.now())
        hour = NOON.replace(minute=0)

        async def to_do() -> list[str]:
            between = hour, hour + call_history.HOUR
            return await replica.services.db.read(lambda conn: conn.column(call_history.WITHOUT_HOUR, *between))

        assert await to_do() == [replica.services.fleet.nodes[node.id].group_id]
        assert await replica.services.numbers_kept.work(clock.now(), 60)
        assert await to_do() == []


async def test_the_monitor_looks_after_them(control_site: Site) -> None:
    clock = SetClock(NOON, timers="stand")
    async with control_site.running(clock=clock) as replica:
        node = await at_release(replica)
        await numbers.tell(node, numbers.message([numbers.function(calls=5)]))
        await replica.services.numbers.resolve()
        clock.advance(2 * 3600)
        await replica.services.numbers.write(clock.now())
        assert await replica.services.monitor().retention(clock.now())
        assert len(await stored(replica, "SELECT * FROM group_hours")) == 1


async def test_what_is_written_late_was_told_before(control_site: Site) -> None:
    """Reports are written once a minute: a backup that has come up to then isn't behind because of that."""
    clock = SetClock(NOON)
    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        await deploy.ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 5})
        for told_at in (NOON, NOON + timedelta(seconds=100)):
            clock.advance((told_at - clock.now()).total_seconds())
            reached = int(told_at.timestamp())
            state = wire.BackupState("a" * 32, 7, reached, 0, "")
            message = numbers.message([], sequence=reached, node=wire.NodeNumbers(1000, backup=state))
            assert (await numbers.tell(node, message)).status in (200, 204)
            clock.advance(55)
            await replica.services.numbers.nodes.write()
            backup = await deploy.ok(replica, "GET", "/v1/nodes/one/backup")
            assert (backup["lag"], datetime.fromisoformat(backup["told_at"])) == (0, told_at)
            assert datetime.fromisoformat((await replica.node("one"))["numbers"]["told_at"]) == told_at


async def test_what_nodes_tell_of_themselves_is_kept(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        told = wire.NodeNumbers(
            1000, 200, 5_000_000, 77, 1_900_000_000, 0, "1.2.3", 2, 3, 4, "0123456789abcdef", 1_950_000_000
        )
        await numbers.tell(node, numbers.message([], node=told))
        nodes = replica.services.numbers.nodes
        await nodes.write()
        found = await replica.services.db.read(lambda conn: conn.fetchrow(OF_NODE, node.id))
        assert found is not None
        assert found[1:] == (1000, 200, 5_000_000, 77, 1_900_000_000, 0, "1.2.3", 1_950_000_000, [])
        (row,) = await nodes.of_groups()
        assert (row.nodes, row.database_max, row.certificate_ends_min, row.credential_ends_min) == (
            *(1, 1000),
            *(1_900_000_000, 0),
        )
        (events,) = nodes.events.values()
        assert (events.worker_deaths, events.log_dropped, events.failed_syncs) == (2, 3, 4)
        # The newest one counts.
        await numbers.tell(node, numbers.message([], node=wire.NodeNumbers(database=5), sequence=2))
        await nodes.write()
        found = await replica.services.db.read(lambda conn: conn.fetchrow(OF_NODE, node.id))
        assert found is not None
        assert found.database_bytes == 5


@pytest.mark.background("numbers")
async def test_a_replica_that_stops_writes_what_nodes_told_of_themselves(control_site: Site) -> None:
    """Also where it has just written what they told before."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        nodes = replica.services.numbers.nodes
        for sequence in (1, 2):
            told = wire.NodeNumbers(database=sequence)
            await numbers.tell(node, numbers.message([], node=told, sequence=sequence))
            await nodes.write_if_due(replica.services.clock.monotonic())
    async with control_site.running() as replica:
        found = await replica.services.db.read(lambda conn: conn.fetchrow(OF_NODE, node.id))
        assert found is not None
        assert found.database_bytes == 2


async def test_a_replica_that_stops_says_that_held_numbers_are_counted(control_site: Site) -> None:
    """Else the node would tell another replica the same, and they would count twice."""
    async with control_site.running() as replica:
        node = await at_release(replica)
        poll = wire.Poll(
            generation=node.generation,
            digest=wire.digest(node.inventory),
            wait=20,
            numbers=numbers.message([numbers.function()]),
        )
        held = asyncio.create_task(replica.call("POST", "/v1/poll", poll, token=node.credential))
        async with deadline(30):
            while node.id not in replica.services.fleet.waiters:
                await asyncio.sleep(0.01)
        replica.services.fleet.close()
        answer = await held
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        # A poll that comes then isn't counted, and is refused.
        assert (await numbers.tell(node, numbers.message([numbers.function()], sequence=2))).status == 503
        assert replica.services.numbers.taken == 1
