"""Connections to the metadata database are shared out: one kind of work that has all of its own stops no other."""

import asyncio
from uuid import uuid4

import pytest

from control import wire
from control.problems import ProblemError
from control.storage import connection_quotas, database
from control.storage.connection_quotas import Share
from tests.support.control import until
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
            # Half of all get a connection, and the others are told soon that there is none.
            half = replica.server.app._settings.database_connections // 2
            done, stuck = set(), set(lists)
            while len(done) < 40 - half:
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


async def test_a_share_is_given_back_however_its_use_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_quotas, "WAIT", 0.05)
    share = Share(1, "tests")

    async def use() -> None:
        async with share.one():
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    with pytest.raises(ProblemError, match=r"database_busy.*for tests"):
        async with share.one():
            pass
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ValueError, match="mine"):
        async with share.one():
            raise ValueError("mine")
    async with share.one():
        pass


async def test_many_that_are_quick_are_all_served_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_quotas, "WAIT", 2.0)
    share, order = Share(2, "tests"), []

    async def use(number: int) -> None:
        async with share.one():
            await asyncio.sleep(0.1)
            order.append(number)

    await asyncio.gather(*(use(number) for number in range(80)))  # for four seconds
    assert [number // 2 for number in order] == [number // 2 for number in range(80)]


async def test_behind_those_that_fail_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those do which wait for a locked row: one after the other would take for ever."""
    monkeypatch.setattr(connection_quotas, "WAIT", 0.3)
    share = Share(1, "tests")

    async def use() -> None:
        async with share.one():
            await asyncio.sleep(0.2)
            raise ProblemError("database_locked", "no")

    ended = await asyncio.gather(*(use() for _ in range(20)), return_exceptions=True)
    codes = [error.code for error in ended if isinstance(error, ProblemError)]
    assert len(codes) == 20
    assert codes.count("database_busy") > 10
    async with share.one():
        pass


async def test_who_goes_away_while_it_waits_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    share, free = Share(1, "tests"), asyncio.Event()

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
    async with asyncio.timeout(20), share.one():
        pass
    assert share._free._value == 1
