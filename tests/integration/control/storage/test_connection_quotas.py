"""Connections to the metadata database are shared out: one kind of work that has all of its own stops no other."""

import asyncio
from uuid import uuid4

import pytest

from control.protocol import wire
from control.storage import connection_quotas, database
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
