"""The overview of a real control: what it says, to whom, and that it goes on by itself."""

import asyncio
import itertools
import ssl
from datetime import timedelta

import pytest

from control.console import rendering
from control.console.pages import overview
from control.telemetry import fleet_summary
from control.telemetry.fleet_summary import FleetGrid
from control.web import connection_limits
from tests.support import deploy, numbers, seeds
from tests.support.console import MARKUP, fails, live, page, release
from tests.support.control import until
from tests.support.deadlines import deadline
from tests.support.replica import Site


async def test_from_no_node_to_the_overview_by_itself(control_site: Site) -> None:
    async with control_site.running() as replica:
        shown = await page(replica, "/")
        assert shown.status == 200
        assert "No node has joined yet" in shown.words
        assert f"skerry-edge join --control {replica.url}" in shown.words
        async with live(replica, "/") as stream:
            await stream.until(lambda s: s.parts.get("kind") == "first-run")
            await replica.join("edge-1")
            await stream.until(lambda s: s.parts["kind"].startswith("overview-"))
            kind = stream.parts["kind"]
            shown = await page(replica, "/")
            assert f'data-kind="{kind}"' in shown.text
            # Only a page that is loaded again has the cells of a group that had no node before.
            await replica.call("POST", "/v1/groups", {"name": "shops"})
            await replica.join("shop-1", "shops")
            await stream.until(lambda s: s.parts["kind"] not in ("first-run", kind))
        assert shown.part("say") == "Nothing is wrong 1 of 1 node at target, in 1 group"
        assert "<title>Nothing is wrong · Overview · Skerry</title>" in shown.text


async def test_behind_a_proxy_the_commands_name_its_address(control_site: Site) -> None:
    async with control_site.running(public_url="https://control.example") as replica:
        shown = await page(replica, "/")
        assert "skerry-edge join --control https://control.example --name" in shown.words


async def test_what_is_wrong_is_said_first_by_cause_and_without_markup(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = [await replica.join(f"edge-{number}") for number in range(3)]
        await release(replica, "default")
        async with live(replica, "/") as stream:
            await stream.until(lambda s: "wrong" in s.parts)
            await fails(nodes[0], "disk_full", MARKUP)
            await fails(nodes[1], "disk_full", MARKUP)
            await stream.until(lambda s: "2 nodes failing" in s.parts["say"])
            assert stream.parts["title"] == "2 nodes failing · Overview · Skerry"
            assert MARKUP not in stream.parts["wrong"]
        shown = await page(replica, "/")
        assert shown.part("say") == "2 nodes failing of 3 nodes in 1 group"
        assert "disk_full in default &lt;img src=x onerror=alert(1)&gt;&#39;&#34;&amp;" in shown.part("wrong")
        assert "<img" not in shown.text
        assert "edge-0, edge-1" in shown.part("wrong").replace(" ,", ",")
        assert shown.part("flight").startswith("Releases in flight default 1 0 of 3 at target")
        assert "edge-1 failed its sync to release 1 disk_full" in shown.part("events")
        assert "admin: release.create default/1" in shown.part("events")

        async def drawn() -> bool:
            return '<path stroke="url(#k-fail)" d="m0,3h12"/>' in (await page(replica, "/")).text

        # Two cells beside each other are one line. The grid is read for itself, and may be some seconds behind.
        await until(drawn)


async def test_a_revoked_node_is_a_standing_of_its_own_on_every_page(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = [await replica.join(f"edge-{number}") for number in range(2)]
        await release(replica, "default")
        for node in nodes:
            await node.sync()
        await deploy.ok(replica, "POST", "/v1/nodes/edge-1/revoke")
        async with live(replica, "/") as stream:
            await stream.until(lambda s: "1 node revoked" in s.parts.get("say", ""))
            assert stream.parts["title"] == "1 node revoked · Overview · Skerry"

        async def drawn() -> bool:
            return '<path stroke="url(#k-rev)" d="m6,3h6"/>' in (await page(replica, "/")).text

        await until(drawn)
        shown = await page(replica, "/")
        assert shown.part("say") == "1 node revoked of 2 nodes in 1 group"
        assert "Revoked 1 50.0 %" in shown.words
        assert "1 node Revoked Control refuses them" in shown.part("wrong")
        assert 'href="/nodes?standing=revoked"' in shown.text
        listed = await page(replica, "/nodes?standing=revoked")
        assert "1 of 2 nodes" in listed.part("counted")
        assert "revoked" in listed.part("standing-edge-1")
        assert "revoked (1)" in listed.words
        shown = await page(replica, "/nodes/edge-1")
        assert shown.part("state") == "revoked"
        assert "skerry node token --rejoin edge-1" in shown.part("trouble")
        assert "skerry node delete edge-1" in shown.part("trouble")
        assert "1 of 2 nodes at target" in (await page(replica, "/releases/default/1")).part("standings")


async def test_what_happens_again_and_again_is_one_line(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with control_site.running() as replica:
        node = await replica.join("edge-1")
        await release(replica, "default")
        for failures in (3, 13):
            while failures > (await deploy.ok(replica, "GET", "/v1/nodes/edge-1"))["failures"]:
                await fails(node, "disk_full", "no room")
            events = (await page(replica, "/")).part("events")
            assert events.count("edge-1 failed its sync") == 1
            # The log of syncs has ten lines of the thirteen.
            assert f"edge-1 failed its sync to release 1 disk_full , {failures} times" in events
            assert "or more" not in events
        assert "admin: release.create default/1" in events
        monkeypatch.setattr(overview, "EVENTS", 4)
        assert "disk_full , 7 times or more" in (await page(replica, "/")).part("events")


async def test_an_operator_of_a_group_sees_that_group_alone(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await replica.join("edge-1")
        other = await replica.join("shop-1", "shops")
        await release(replica, "shops")
        await fails(other, "disk_full", "secret of shops")
        grants = [{"role": "read", "group": "default"}]
        made = await replica.call("POST", "/v1/operators", {"name": "one", "grants": grants})
        token = made.json()["token"]
        shown = await page(replica, "/", token=token)
        assert shown.part("say") == "Nothing is wrong 1 of 1 node at target, in 1 group"
        assert "shop" not in shown.text
        async with live(replica, "/", token=token) as stream:
            await stream.until(lambda s: "wrong" in s.parts)
            assert not [text for text in stream.parts.values() if "shop" in text]
            # With another right, or none, the stream ends at once, and the browser asks again.
            await replica.call("DELETE", "/v1/operators/one")
            await replica.join("edge-2")
            await stream.until(lambda s: s.ended)
        assert (await page(replica, "/", token=token)).status == 303


async def test_the_end_of_a_replica_is_told_to_pages(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.join("edge-1")
        async with live(replica, "/") as stream, live(replica, "/?what=ever") as other:
            await stream.until(lambda s: "say" in s.parts)
            await other.until(lambda s: "say" in s.parts)
            assert replica.server.app.hub.streams == 2
            assert len(replica.server.app.hub._topics) == 1, "what the page doesn't depend on makes no other topic"
            assert b"skerry_console_streams 2.0" in replica.services.metrics.render()
            replica.server.app.close()
            await stream.until(lambda s: s.ended)
            await other.until(lambda s: s.ended)
            assert stream.events[-1] == other.events[-1] == "bye"
            assert (await page(replica, "/live?page=/")).status == 503


async def test_who_is_not_signed_in_is_sent_there(control_site: Site) -> None:
    async with control_site.running() as replica:
        for path, at in (("/", "/"), ("/?a=b&c", "/%3Fa%3Db%26c")):
            shown = await page(replica, path, token="")
            assert (shown.status, shown.headers["location"]) == (303, f"/sign-in?next={at}")
        shown = await page(replica, "/live?page=/", token="")
        assert (shown.status, shown.headers["content-type"]) == (401, "text/html; charset=utf-8")
        shown = await page(replica, "/live?page=/theme")
        assert shown.status == 422


async def test_a_group_that_the_grid_does_not_have_yet(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid of a large fleet is read more seldom than the numbers."""
    async with control_site.running() as replica:
        await replica.join("edge-1")
        reader = replica.services.standings
        grid = await reader.grid()
        monkeypatch.setattr(fleet_summary, "LATE", timedelta(0))

        async def old_grid() -> FleetGrid:
            return grid

        monkeypatch.setattr(reader, "grid", old_grid)
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await replica.join("shop-1", "shops")
        async with live(replica, "/") as stream:
            await stream.until(lambda s: "g-shops" in s.parts and "2 of 2 nodes" in s.parts["say"])
        shown = await page(replica, "/")
        assert (shown.status, "shops 1 node, no release yet" in shown.words) == (200, True)


async def test_who_reads_nothing_is_let_go(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_SECONDS", 1.0)
    count = itertools.count()
    large = "x" * 1_000_000
    monkeypatch.setattr(rendering, "parts", lambda *_, **__: lambda *_, **__: f"<p>{next(count)}{large}</p>")
    async with control_site.running() as replica:
        await replica.join("edge-1")
        tls = ssl.create_default_context(cafile=str(replica.ca))
        port = int(replica.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1")
        head = f"GET /live?page=/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {replica.admin}\r\n\r\n"
        writer.write(head.encode())
        for streams in (1, 0):
            async with deadline(60):
                while replica.server.app.hub.streams != streams:
                    await asyncio.sleep(0.02)
        writer.close()


async def test_a_release_whose_calls_fail_is_wrong_though_all_is_at_target(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("edge-1")
        await seeds.function(replica, "orders")
        await seeds.release(replica, functions={"orders": 1})
        await node.sync()
        await numbers.tell(node, numbers.message([numbers.function(calls=40, guest_trap=39)]))
        await replica.services.numbers.resolve()
        async with live(replica, "/") as stream:
            await stream.until(lambda s: "Calls fail in 1 group" in s.parts.get("say", ""))
            assert "Calls fail in default 1" in stream.parts["wrong"]
            assert '<a href="/errors/guest_trap"><code>guest_trap</code></a> 39' in stream.parts["wrong"]
