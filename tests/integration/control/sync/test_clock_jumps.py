"""A clock that was an hour ahead, and is right again: within a minute everything is as if it had never been."""

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from control import clock as clocks
from control.clock import AHEAD, SystemClock
from control.protocol import wire
from control.sync import monitor
from control.web.server import StartError
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Replica, Site, TestNode

HOUR = 3600.0
LEASE = monitor.LEASE.total_seconds()
DISK_FULL = wire.SyncError("disk_full", "no room")
# A pass of the replica's own that began before a jump would still go by the time from before it.


async def behind(replica: Replica) -> TestNode:
    """The node "one", whose next poll begins a sync."""
    node = await replica.join("one")
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    return node


async def look(replica: Replica) -> None:
    """Heartbeats written, and one pass of the monitor."""
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())


async def within_a_minute(replica: Replica, clock: SetClock, living: TestNode | None = None) -> None:
    """A minute of passes, in which a node that lives polls as often as one is held."""
    for second in range(0, 60, 5):
        clock.advance(5)
        if living is not None and second % 25 == 0:
            assert (await living.poll()).status == 204
        await look(replica)
        if living is not None:
            shown = await replica.node("living")
            assert (shown["state"], shown["warnings"]) == ("online", []), second


async def test_a_silent_node_is_offline_and_a_living_one_is_not(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        silent, living = await replica.join("silent"), await replica.join("living")
        for node in (silent, living):
            await node.poll()
        await look(replica)
        clock.jump(HOUR)
        for node in (silent, living):
            await node.poll()
        await look(replica)
        clock.jump(-HOUR)
        await within_a_minute(replica, clock, living)
        assert (await replica.node("silent"))["state"] == "offline"
        assert datetime.fromisoformat((await replica.node("silent"))["last_seen_at"]) <= clock.now()


async def test_a_heartbeat_puts_right_what_is_stored(control_site: Site) -> None:
    """Without the monitor, which another replica may do."""
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await replica.join("one")
        await node.poll()
        clock.jump(HOUR)
        await node.poll()
        await replica.services.heartbeats.flush()
        await node.poll()  # heard of while the clock is ahead, written when it is right again
        clock.jump(-HOUR)
        await replica.services.heartbeats.flush()
        shown = await replica.node("one")
        assert {shown["last_seen_at"], shown["last_sync_at"]} == {clock.now().isoformat().replace("+00:00", "Z")}


async def test_a_node_that_was_confirmed_then_is_overdue_like_others(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await seeds.function(replica, "hello")
        clock.jump(HOUR)
        joined = await replica.join("one")
        await joined.poll()
        await seeds.release(replica, functions={"hello": 1})
        await joined.sync()
        await replica.services.heartbeats.flush()
        clock.jump(-HOUR)
        # It joined and succeeded in the hour to come; from now on it is silent.
        await look(replica)
        shown = await replica.node("one")
        for name in ("joined_at", "last_sync_at", "last_seen_at"):
            assert datetime.fromisoformat(shown[name]) <= clock.now(), name
        for _ in range(12):
            clock.advance(5)
            await look(replica)
        # Its last confirmation is believed to be as old as is possible: five minutes from joining are still its own.
        clock.advance(241)
        await look(replica)
        assert [warning["kind"] for warning in (await replica.node("one"))["warnings"]] == ["overdue"]


async def test_an_open_sync_expires(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await behind(replica)
        clock.jump(HOUR)
        await node.plan()
        clock.jump(-HOUR)
        await look(replica)
        await within_a_minute(replica, clock)
        (sync,) = (await replica.call("GET", "/v1/syncs?node=one")).json()["items"]
        assert sync["status"] == "expired"


async def test_an_open_sync_that_goes_on_is_not_ended(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await behind(replica)
        clock.jump(HOUR)
        plan = await node.plan()
        clock.jump(-HOUR)
        for _ in range(5):
            clock.advance(20)
            await look(replica)
            assert (await node.report(plan.sync_id, "running")).json()["status"] == "running"
        node.apply(plan)
        assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"


async def test_a_wait_that_was_told_then_is_not_waited_for(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await behind(replica)
        clock.jump(HOUR)
        plan = await node.plan()
        node.failed = wire.FailedGeneration(plan.generation, clock.now() + timedelta(seconds=30))
        await node.report(plan.sync_id, "failed", error=DISK_FULL, retry_at=node.failed.retry_at)
        assert (await node.ask()).status == 204
        clock.jump(-HOUR)
        await node.plan()


async def test_a_join_token_is_not_good_for_longer(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        clock.jump(HOUR)
        token = (await replica.call("POST", "/v1/join-tokens", {"expires_in": 120})).json()["token"]
        clock.jump(-HOUR)
        await look(replica)
        clock.advance(121)
        answer = await replica.call("POST", "/v1/nodes", wire.Join("one", str(uuid4())), token=token)
        assert answer.json()["code"] == "token_expired"


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_the_monitor_goes_on_when_a_replica_with_a_wrong_clock_died(control_site: Site, jump: float) -> None:
    wrong, right = SetClock(timers="stand"), SetClock(timers="stand")
    wrong.jump(jump)
    async with (
        control_site.running(clock=wrong) as one,
        control_site.running(clock=right) as two,
    ):
        first, second = one.services.monitor(), two.services.monitor()
        assert await first.tick()
        if jump > 0:
            # It lives: its lease changes, and isn't taken however far ahead it is.
            for _ in range(8):
                wrong.advance(LEASE / 4)
                right.advance(LEASE / 4)
                assert await first.tick()
                assert not await second.tick()
            right.advance(LEASE - 0.1)
            assert not await second.tick()
            right.advance(0.2)
        assert await second.tick()
        assert await second.tick()


async def test_a_replica_that_is_behind_takes_nothing_from_a_living_one(control_site: Site) -> None:
    behind, right = SetClock(timers="stand"), SetClock(timers="stand")
    behind.jump(-HOUR)
    async with control_site.running(clock=behind) as one, control_site.running(clock=right) as two:
        first, second = one.services.monitor(), two.services.monitor()
        assert await second.tick()
        for _ in range(8):
            behind.advance(LEASE / 4)
            right.advance(LEASE / 4)
            assert await second.tick()
            assert not await first.tick()


async def test_a_replica_goes_by_the_databases_clock_where_its_own_is_wrong(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        truly = time.time
        clock = replica.services.clock
        for jump in (HOUR, -HOUR, 0.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: truly() + jump)
            # Neither at once nor after a comparison.
            for _ in range(2):
                assert abs(clock.now() - datetime.fromtimestamp(truly(), UTC)) < AHEAD
                await replica.services.fleet.refresh()
            await node.poll()
            await replica.services.heartbeats.flush()
            seen = datetime.fromisoformat((await replica.node("one"))["last_seen_at"])
            assert abs(seen - datetime.fromtimestamp(truly(), UTC)) < AHEAD


async def until(check: Callable[[], Any]) -> None:
    async with deadline(60):
        while not check():
            await asyncio.sleep(0.01)


async def test_a_machine_whose_clock_was_put_right_is_believed_again(
    control_site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    truly = time.time
    monkeypatch.setattr(time, "time", lambda: truly() + HOUR)
    with caplog.at_level("INFO", "skerry.clock"):
        async with control_site.running() as replica:
            # From its start on, before anything is served.
            assert abs(replica.services.clock.now() - datetime.fromtimestamp(truly(), UTC)) < AHEAD
            monkeypatch.setattr(time, "time", truly)
            await until(lambda: any("agree again" in record.message for record in caplog.records))
    told = [record.message for record in caplog.records if record.name == "skerry.clock"]
    assert len(told) == 2
    # How long the database's answer took is within the difference.
    assert re.search(r"\b36\d\d s ahead of the database's", told[0])


async def test_a_start_that_does_not_know_the_time_asks_the_database(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_a_battery:
        without_a_battery.setattr(time, "time", datetime(2000, 1, 1, tzinfo=UTC).timestamp)
        clock = SystemClock()
    assert clock.now().year == 2000
    async with control_site.running(clock=clock) as replica:
        assert abs(replica.services.clock.now() - datetime.now(UTC)) < AHEAD
    # Where the database doesn't know either, control doesn't start.
    monkeypatch.setattr(clocks, "EARLIEST", time.time() + HOUR)
    with pytest.raises(StartError, match="neither it nor the database's says a time that can be right"):
        async with control_site.running(clock=SystemClock()):
            pass
