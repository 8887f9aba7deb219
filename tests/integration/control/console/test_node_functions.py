"""A node's page has the calls of its functions, which the node is asked for while somebody looks, and not else."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from control.console import node_functions
from control.protocol import wire
from tests.support.console import MARKUP, LivePage, live, page
from tests.support.live import asked, send, viewing
from tests.support.replica import Replica, Site, TestNode

SINCE = "2026-11-28T06:00:00.000Z"


def counted(function: str, number: int = 1, *, t: str = "2026-11-28T07:00:00.000Z", **more: Any) -> dict[str, Any]:
    """What a node tells of a function's calls on a release."""
    told = {"t": t, "since": SINCE, "function": function, "version": 3, "release": number, "calls": 10}
    return {"kind": "function", **told, "p50": 0.004, "p99": 0.25, **more}


async def able(replica: Replica, name: str, *questions: str) -> TestNode:
    """A node that knows questions of these kinds."""
    node = await replica.join(name)
    node.protocol, node.capabilities = 2, {"abi": ["wagi"], "questions": list(questions)}
    await node.poll()
    return node


def functions(stream: LivePage) -> str:
    return " ".join(stream.parts.get("functions", "").split())


async def question(node: TestNode) -> wire.Question:
    """What the node is asked about its functions."""
    while not (found := [one for one in await asked(node) if one.kind == "functions"]):
        await asyncio.sleep(0.02)
    return found[0]


async def ended(replica: Replica) -> None:
    """Wait until nothing is watched any more."""
    async with asyncio.timeout(60):
        while replica.services.fleet.watches.alive:
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it seen sooner that nobody looks any more."""
    monkeypatch.setattr(node_functions, "LINGER", 4.0)
    monkeypatch.setattr("control.telemetry.watching.view.HEARTBEAT", 0.5)


async def test_a_node_is_asked_while_somebody_looks(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await able(replica, "edge-1", "functions")
        shown = await page(replica, "/nodes/edge-1")
        assert "Ask the node now" in shown.part("functions")
        assert not replica.services.fleet.watches.alive, "a page that is only loaded asks nothing"
        async with live(replica, "/nodes/edge-1") as one, live(replica, "/nodes/edge-1?done=retry") as other:
            told = await question(node)
            assert (told.follow, told.history, told.limit) == (True, True, node_functions.MOST)
            await one.until(lambda s: "The node is asked" in functions(s))
            worst = counted("orders", 2, calls=200, failed=50, outcomes={"guest_trap": 49, "client_gone": 3})
            answer = await send(node, told.id, worst, counted("stock"), counted("orders", 1, version=0), done=True)
            assert answer.status == 200
            for stream in (one, other):
                await stream.until(lambda s: "guest_trap" in functions(s))
            shown = await page(replica, "/nodes/edge-1")
            text = shown.part("functions")
            assert "orders 3 2 200 50 25.0 % 4 ms 250 ms guest_trap 49, client_gone 3" in text
            # By name, the newest release first, whatever comes first.
            assert text.index("25.0 %") < text.index(" 1 10 0 ") < text.index("stock 3 1 10")
            # What is gone at the node goes; a part of a telling takes nothing away.
            for second in (5, 10):
                t = f"2026-11-28T07:00:{second:02}.000Z"
                await send(node, told.id, counted("stock", calls=10 + second, t=t))
            await one.until(lambda s: ">20<" in functions(s) and "orders" not in functions(s))
            assert len(replica.services.fleet.watches.alive) == 1, "it is asked once, whoever looks"
        await ended(replica)
        assert await asked(node) == []


async def test_what_a_node_tells_is_text_within_bounds(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_functions, "SHOWN", 2)
    async with control_site.running() as replica:
        node = await able(replica, "edge-1", "functions")
        asking = asyncio.create_task(page(replica, "/nodes/edge-1?ask=yes"))
        told = await question(node)
        hostile = counted(MARKUP, since="2026-99-99T99:99:99Z", failed=9, outcomes={MARKUP: 9}, p50=1e9, p99=1e9)
        wrong: list[dict[str, Any]] = [
            counted("a", t="now"),
            counted("b", calls=-1),
            counted("c", p50=float("inf")),
            counted("d", outcomes={f"code_{n}": 1 for n in range(300)}),
            {"kind": "log", "t": SINCE, "level": "info", "message": "no"},
        ]
        more = [counted(f"f-{number}", calls=number) for number in range(3)]
        await send(node, told.id, *wrong, hostile, *more, left_out=1, done=True)
        shown = await asking
        text = shown.part("functions")
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        assert "<img" not in shown.text
        assert "f-2" in text
        assert "f-1" not in text, "two are shown"
        assert "There are more." in text
        # The log's page has no such kind.
        assert (await page(replica, "/nodes/edge-1/log?kind=functions")).status == 422


async def test_who_cannot_be_asked_is_said(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_functions, "PATIENCE", 0.5)
    async with control_site.running() as replica:
        await able(replica, "old", "lines", "calls")
        await able(replica, "silent", "functions")
        gone = await able(replica, "gone", "functions")
        await replica.join("older")

        async def leave(conn: Any) -> None:
            await conn.execute("UPDATE nodes SET state = 'offline' WHERE name = 'gone'")

        await replica.services.db.transaction(leave)
        for name, text in {
            "old": "Its version of skerry-edge doesn't tell this. What nodes of default told",
            "older": "Its version of skerry-edge doesn't tell this.",
            "gone": "It is offline, so it can't be asked.",
            "silent": "It hasn't answered within 6 s.",
        }.items():
            shown = await page(replica, f"/nodes/{name}?ask=yes")
            assert text in shown.part("functions"), name
            async with live(replica, f"/nodes/{name}") as stream:
                await stream.until(lambda s, said=text[:20]: said in functions(s).replace("<code>", ""))
        await ended(replica)
        # It is back: the page that was open asks.
        async with live(replica, "/nodes/gone") as stream:
            await stream.until(lambda s: "It is offline" in functions(s))

            async def come(conn: Any) -> None:
                await conn.execute("UPDATE nodes SET state = 'online' WHERE name = 'gone'")

            await replica.services.db.transaction(come)
            await send(gone, (await question(gone)).id, counted("orders"), done=True)
            await stream.until(lambda s: "orders" in functions(s))


async def test_pages_and_logs_take_no_views_from_each_other(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.telemetry.watching.watch_service.MOST_OF_OPERATOR", 1)
    monkeypatch.setattr(node_functions, "RETRY", 0.2)
    async with control_site.running() as replica:
        one, two = await able(replica, "one", "functions", "lines"), await able(replica, "two", "functions", "lines")
        async with viewing(replica, follow="true", node="one"), AsyncExitStack() as looking:
            first = await looking.enter_async_context(live(replica, "/nodes/one"))
            await send(one, (await question(one)).id, counted("orders"), done=True)
            await first.until(lambda s: "orders" in functions(s))
            async with live(replica, "/nodes/two") as second:
                await second.until(lambda s: "Control can't ask it now" in functions(s))
                log = await replica.call("GET", "/v1/logs?node=two")
                assert (log.status, log.json()["code"]) == (503, "too_many_watches")
                # The first page is closed: the second one asks by itself.
                await looking.aclose()
                await send(two, (await question(two)).id, counted("stock"), done=True)
                await second.until(lambda s: "stock" in functions(s))


async def test_the_api_tells_it_of_one_node_to_its_end(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await able(replica, "edge-1", "functions")
        answer = await replica.call("GET", "/v1/logs?kind=functions")
        assert (answer.status, answer.json()["code"], answer.json()["field"]) == (422, "invalid_parameter", "node")
        async with viewing(replica, kind="functions", node="edge-1", function="orders") as view:
            told = await question(node)
            assert (told.function, told.follow) == ("orders", False)
            await send(node, told.id, counted("orders", node="another"), done=True)
            found = await view.rest()
        (record,) = [line for line in found if line["kind"] == "function"]
        assert (record["node"], record["calls"], record["p99"]) == ("edge-1", 10, 0.25)
        # An operator who may not see the node asks it nothing.
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        grants = [{"role": "read", "group": "shops"}]
        token = (await replica.call("POST", "/v1/operators", {"name": "shop", "grants": grants})).json()["token"]
        for path in ("/v1/logs?kind=functions&node=edge-1", "/nodes/edge-1?ask=yes"):
            answer = await replica.call("GET", path, token=token)
            assert answer.status == 404, path
        await ended(replica)
