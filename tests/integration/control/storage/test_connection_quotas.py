"""Connections to the metadata database are shared out: one kind of work that has all of its own stops no other."""

import asyncio
from uuid import uuid4

import pytest

from control import wire
from control.problems import ProblemError
from control.storage import connection_quotas, database
from control.storage.batched_lookups import Lookups
from control.storage.connection_quotas import ASKS, LONGEST, WAIT, Share
from control.telemetry.shared_reading import SharedReading
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.deadlines import deadline
from tests.support.locks import locked
from tests.support.replica import Site, TestNode
from tests.support.services import is_cockroachdb

SOON = 40.0


async def test_lists_that_wait_leave_the_rest_its_connections(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.connect.__kwdefaults__, "lock_timeout", 2 * SOON)
    monkeypatch.setattr(connection_quotas, "WAIT", 3.0)
    async with control_site.running(database_timeout=2 * SOON) as replica:
        if await replica.services.db.read(is_cockroachdb):
            pytest.skip("CockroachDB has no LOCK TABLE")
        token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
        async with (
            asyncio.timeout(SOON),
            locked(control_site.settings.metadata_url, "LOCK TABLE auth_failures IN ACCESS EXCLUSIVE MODE"),
        ):
            lists = [asyncio.create_task(replica.call("GET", "/v1/auth-failures")) for _ in range(40)]
            # Lists have half of all, and one who asks half of these; the others are told soon that there is none.
            quarter = replica.server.app._settings.database_connections // 4
            done, stuck = set(), set(lists)
            while len(done) < 40 - quarter:
                more, stuck = await asyncio.wait(stuck, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            for task in done:
                assert (task.result().status, task.result().json()["code"]) == (503, "database_busy")
                assert "connections for lists" in task.result().json()["detail"]
            # Meanwhile all else goes on.
            answer = await replica.call("POST", "/v1/nodes", wire.Join("one", str(uuid4())), token=token)
            assert answer.status == 201, answer
            node = TestNode(replica, answer.json()["node_id"], answer.json()["credential"])
            assert (await node.poll()).status == 204

            async def ready() -> bool:
                return (await replica.call("GET", "/readyz", token="")).status == 200

            await until(ready)
            assert (await node.poll()).status == 204
            await replica.services.heartbeats.flush()
            await replica.services.monitor().tick()
            assert not any(task.done() for task in stuck)
        assert {answer.status for answer in await asyncio.gather(*stuck)} == {200}


async def test_a_share_is_given_back_however_its_use_ends() -> None:
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(use())
    await clock.passes(WAIT - 0.01)
    assert not waiting.done()
    await clock.passes(0.01)
    with pytest.raises(ProblemError, match=r"database_busy.*for tests"):
        await waiting
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ValueError, match="mine"):
        async with share.one():
            raise ValueError("mine")
    async with share.one():
        pass


async def test_many_that_are_quick_are_all_served_in_their_order() -> None:
    clock = SetClock(timers="stand")
    share, order = Share(2, "tests", clock), []

    async def use(number: int) -> None:
        async with share.one():
            await clock.sleep(WAIT / 5)
            order.append(number)

    tasks = [asyncio.create_task(use(number)) for number in range(20)]
    # Many wait for longer than `WAIT`, but in no such time does none of the connections become free.
    await clock.passes(2 * WAIT)
    await asyncio.gather(*tasks)
    assert [number // 2 for number in order] == [number // 2 for number in range(20)]


async def test_who_waits_for_longer_than_the_longest_is_refused_though_others_are_served() -> None:
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await clock.sleep(2.1)

    tasks = [asyncio.create_task(use()) for _ in range(20)]
    await clock.passes(LONGEST + 2.1)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(error, ProblemError) for error in ended] == [False] * 10 + [True] * 10


async def test_behind_those_that_fail_nobody_waits_for_long() -> None:
    """As those do which wait for a locked row: one after the other would take for ever."""
    clock = SetClock(timers="stand")
    share = Share(1, "tests", clock)

    async def use() -> None:
        async with share.one():
            await clock.sleep(WAIT * 2 / 3)
            raise ProblemError("database_locked", "no")

    tasks = [asyncio.create_task(use()) for _ in range(20)]
    await clock.passes(2 * WAIT)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    codes = [error.code for error in ended if isinstance(error, ProblemError)]
    # The second one begins within `WAIT` and is under way at its end, when all others are refused.
    assert codes == ["database_locked"] * 2 + ["database_busy"] * 18
    async with share.one():
        pass


async def test_who_goes_away_while_it_waits_takes_none() -> None:
    share, free = Share(1, "tests", SetClock(timers="stand")), asyncio.Event()

    async def use() -> None:
        async with share.one():
            await free.wait()

    holding = asyncio.create_task(use())
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    # This one is given it in the same moment.
    free.set()
    await holding
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with deadline(20), share.one():
        pass
    assert share._places.free == 1


async def test_whoever_asks_for_much_waits_for_its_own() -> None:
    clock = SetClock(timers="stand")
    share, order = Share(4, "tests", clock), []

    async def use(who: str) -> None:
        ASKS.set(who)
        async with share.one():
            await clock.sleep(1)
            order.append(who)

    tasks = [asyncio.create_task(use(who)) for who in [*["much"] * 20, "other", "another", "other"]]
    # Half of the share is left to others, and they have turns after one another.
    await clock.passes(1)
    assert order == ["much", "much", "other", "another"]
    await clock.passes(1)
    assert sorted(order[4:]) == ["much", "much", "other"]
    await clock.passes(20)
    await asyncio.gather(*tasks)
    places = share._places
    assert (places.free, places.held, places.waiting) == (4, {}, {})


async def test_what_many_wait_for_together_is_asked_for_none_of_them() -> None:
    """It would wait behind all that the first one has asked for."""
    asked = []

    async def find(*_: object) -> dict[str, None]:
        asked.append(ASKS.get())
        return {}

    async def first() -> None:
        ASKS.set("much")
        await Lookups("tests", find).find("one")
        await SharedReading(find, 1.0, SetClock()).get()

    await asyncio.create_task(first())
    assert asked == ["", ""]


async def test_requests_are_those_of_who_asks(control_site: Site) -> None:
    """Also the console's, which are asked for by the same operator."""
    async with control_site.running(database_connections=4) as replica:
        tokens = [
            (await replica.call("POST", "/v1/operators", {"name": name, "role": "read"})).json()["token"]
            for name in ("much", "other")
        ]
        share, busy, asked = replica.services.databases.lists._share, asyncio.Event(), []

        async def hold() -> None:
            async with share.one():
                await busy.wait()

        async def ask(token: str, path: str) -> None:
            assert (await replica.call("GET", path, token=token)).status == 200
            asked.append(token)

        async def waits(*counts: int) -> None:
            async with deadline(60):
                while tuple(map(len, share._places.waiting.values())) != counts:
                    await asyncio.sleep(0.01)

        holding = [asyncio.create_task(hold()) for _ in range(2)]
        much = [asyncio.create_task(ask(tokens[0], path)) for path in ["/v1/nodes", "/nodes"] * 5]
        await waits(10)
        other = asyncio.create_task(ask(tokens[1], "/v1/nodes"))
        await waits(10, 1)
        busy.set()
        await asyncio.gather(*holding, *much, other)
        # Behind all of the other's ten without turns; answers may pass each other.
        assert asked.index(tokens[1]) < 8
