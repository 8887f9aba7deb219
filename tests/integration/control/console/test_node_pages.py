"""The pages of nodes on a real control: filters, one node, and what is done with nodes, as the operator may."""

import asyncio
import re
from datetime import UTC, datetime
from functools import partial
from html import unescape

import pytest

from control.cli import nodes, status
from control.protocol import wire
from control.storage.connection import Connection
from tests.support import numbers, seeds, standings
from tests.support.clock import SetClock
from tests.support.console import MARKUP, ShownPage, fails, live, page, release, send
from tests.support.deadlines import deadline
from tests.support.live import asked, record
from tests.support.live import joined as joined_live
from tests.support.live import send as send_lines
from tests.support.replica import Replica, Site


def names(shown: ShownPage) -> list[str]:
    """The nodes of a list."""
    assert shown.status == 200, shown.text
    return re.findall(r'<th scope="row"><a href="/nodes/([^"]+)"', shown.text)


def fields(shown: ShownPage) -> dict[str, str]:
    """The hidden fields of the form that has an act done; of several with one name the first."""
    (form,) = re.findall(r'<form[^>]*method="post" action="/acts/.*?</form>', shown.text, re.DOTALL)
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
    return {name: unescape(value) for name, value in reversed(found)}


async def _set_labels(id: str, labels: dict[str, str], conn: Connection) -> None:
    await conn.execute("UPDATE nodes SET labels = $2 WHERE id = $1", id, labels)


async def joined(replica: Replica, count: int, **labels: str) -> None:
    for number in range(count):
        node = await replica.join(f"edge-{number}")
        if labels:
            set_labels = partial(_set_labels, node.id, labels)
            await replica.services.db.transaction(set_labels)


async def test_which_release_a_failing_node_runs_is_said_alike_everywhere(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("edge-1")
        for version in (1, 2):
            await seeds.function(replica, "hello")
            await seeds.release(replica, functions={"hello": version})
            if version == 1:
                await node.sync()
        await fails(node, "disk_full", "no room")

        async def said() -> tuple[str, ...]:
            told = await replica.node("edge-1")
            shown = (await page(replica, "/nodes/edge-1")).part("target")
            listed = (await page(replica, "/nodes")).part("release-edge-1")
            return status.release_of(told), dict(nodes._details(told))["release"], listed, shown

        *short, detail = await said()
        assert short == ["1 → 2"] * 3
        assert "Target and what it runs release 1 → 2" in detail
        await node.sync()
        *short, detail = await said()
        assert short == ["2"] * 3
        # In another group it runs none of that one's releases yet.
        await replica.call("POST", "/v1/groups", {"name": "other"})
        await seeds.release(replica, "other", functions={"hello": 1})
        await replica.call("POST", "/v1/nodes/edge-1/move", {"group": "other"})
        assert (await said())[:3] == ("none → 1",) * 3


async def test_filters_are_the_url_and_pages_go_on_by_a_cursor(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await joined(replica, 3, site="ams", note=MARKUP)
        shop = await replica.join("shop-1", "shops")
        await release(replica, "default")
        await release_of(replica, "shops")
        await fails(shop, "disk_full", MARKUP)
        shown = await page(replica, "/nodes")
        assert names(shown) == ["edge-0", "edge-1", "edge-2", "shop-1"]
        assert shown.part("counted") == "4 nodes"
        assert "<img" not in shown.text
        for query, expected in {
            "group=shops": ["shop-1"],
            "standing=failing": ["shop-1"],
            "error=disk_full&group=shops": ["shop-1"],
            "error=disk_full&group=default": [],
            "find=ge-1": ["edge-1"],
            "label=site%3Dams&group=": ["edge-0", "edge-1", "edge-2"],
            "find=site%3Dams": ["edge-0", "edge-1", "edge-2"],
            "label=site%3Dber": [],
            "label=site": ["edge-0", "edge-1", "edge-2"],
            "unseen=3600": [],
            "overdue=true": [],
            "group=shops&release=1": [],
            "block=shops-1": ["shop-1"],
            "block=default-1": ["edge-0", "edge-1", "edge-2"],
        }.items():
            assert names(await page(replica, f"/nodes?{query}")) == expected, query
        for wrong in ("group=%00", "standing=well", "block=shops-9", "block=x", "unseen=-1", "cursor=x", "release=x"):
            shown = await page(replica, f"/nodes?{wrong}")
            assert (shown.status, "<code>invalid_parameter</code>" in shown.text) == (422, True), wrong
        shown = await page(replica, "/nodes?group=nowhere")
        assert (shown.status, "<code>unknown_group</code>" in shown.text) == (404, True)


async def test_a_node_of_a_group_that_was_just_made_is_listed(control_site: Site) -> None:
    """The fleet was counted before there was the group."""
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        assert names(await page(replica, "/nodes")) == []
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await replica.join("shop-1", "shops")
        shown = await page(replica, "/nodes")
        assert (names(shown), shown.part("release-shop-1")) == (["shop-1"], "\u2013")
        assert shown.part("counted") == "1 node"


async def release_of(replica: Replica, group: str) -> None:
    answer = await replica.call("POST", "/v1/releases", {"group": group, "now": True})
    assert answer.status == 201, answer.body


async def test_a_list_has_an_order_on_all_its_pages(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.console.pages.node_list.LIMIT", 2)
    async with control_site.running() as replica:
        await standings.group(replica, "shops", 1)
        kinds = {
            "c": {"code": "disk_full"},
            "b": {"state": "offline"},
            "d": {"state": "syncing"},
            "e": {"confirmed": 10},
        }
        for name in "abcde":
            # None of them polls, so their times stay as they are.
            await standings.node(replica, name, "shops", **kinds.get(name, {}))

        async def age(conn: Connection) -> None:
            for minutes, name in enumerate("dcabe"):
                await conn.execute(
                    "UPDATE node_presence p SET last_seen_at = now() - interval '1 minute' * $2::int8 FROM nodes n "
                    "WHERE n.id = p.node_id AND n.name = $1",
                    *(name, minutes),
                )

        await replica.services.db.transaction(age)
        for sort, expected in (("standing", "cbdae"), ("seen", "ebacd"), ("name", "abcde")):
            found, path = "", f"/nodes?sort={sort}&group=shops"
            while path:
                shown = await page(replica, path)
                found += "".join(names(shown))
                following = re.findall(r'<a href="([^"]+)" rel="next"', shown.text)
                path = unescape(following[0]) if following else ""
            assert found == expected, sort
            assert (f"--sort {sort}" in shown.text) == (sort != "name")
        # A cursor is of one order.
        cursor = (await replica.call("GET", "/v1/nodes?limit=1")).json()["next"]
        answer = await replica.call("GET", f"/v1/nodes?sort=seen&cursor={cursor}")
        assert (answer.status, answer.json()["field"]) == (422, "cursor")


async def test_a_long_list_has_a_next_page(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.console.pages.node_list.LIMIT", 2)
    async with control_site.running() as replica:
        await joined(replica, 3)
        first = await page(replica, "/nodes?standing=at_target")
        (following,) = re.findall(r'<a href="([^"]+)" rel="next"', first.text)
        assert names(first) + names(await page(replica, unescape(following))) == ["edge-0", "edge-1", "edge-2"]


async def test_a_node_shows_target_beside_actual_and_its_syncs(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("edge-1")
        await release(replica, "default")
        async with live(replica, "/nodes/edge-1") as stream, live(replica, "/nodes") as list_stream:
            await stream.until(lambda s: "behind" in s.parts.get("state", ""))
            await list_stream.until(lambda s: "behind" in s.parts.get("standing-edge-1", ""))
            await fails(node, "schema_change_failed", MARKUP)
            await stream.until(lambda s: "failing" in s.parts["state"])
            await list_stream.until(lambda s: "failing" in s.parts["standing-edge-1"])
            assert stream.parts["title"] == "failing · edge-1 · Skerry"
            assert MARKUP not in "".join(stream.parts.values()) + "".join(list_stream.parts.values())
        shown = await page(replica, "/nodes/edge-1")
        assert "<title>failing · edge-1 · Skerry</title>" in shown.text
        assert "Schema 0 at least 1 1 change" in shown.part("target")
        assert "schema_change_failed &lt;img src=x onerror=alert(1)&gt;" in shown.part("syncs")
        assert "schema_change_failed" in shown.part("trouble")
        assert "<img" not in shown.text
        for path, status, code in (("/nodes/nobody", 404, "unknown_node"), ("/nodes/A%20B", 422, "invalid_parameter")):
            shown = await page(replica, path)
            assert (shown.status, f"<code>{code}</code>" in shown.text) == (status, True)


async def test_acts_show_their_plan_and_do_no_more_than_it_says(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await joined(replica, 3)
        node = await replica.join("edge-9")
        await release(replica, "default")
        await fails(node, "disk_full", "no room")
        # Light: at once, by the button of the node's page.
        shown = await send(replica, "/acts/retry", **fields(await page(replica, "/nodes/edge-9")))
        assert (shown.status, shown.headers["location"]) == (303, "/nodes/edge-9?done=retry")
        assert "It tries again with its next poll" in (await page(replica, "/nodes/edge-9?done=retry")).words
        # With a plan, which must still be so.
        asked = await page(replica, "/acts/move?node=edge-0&node=edge-1&to=shops")
        assert "2 nodes" in asked.words
        form = fields(asked)
        shown = await send(replica, "/acts/move", **{**form, "digest": "0" * 32})
        assert (shown.status, "The plan has changed" in shown.words) == (409, True)
        assert (await replica.node("edge-0"))["group"] == "default"
        shown = await send(replica, "/acts/move", **{**fields(await page(replica, "/acts/move?node=edge-0&to=shops"))})
        assert (shown.status, shown.headers["location"]) == (303, "/nodes/edge-0?done=move")
        assert (await replica.node("edge-0"))["group"] == "shops"
        # Heavy: the number, or the name, has to be typed.
        form = fields(await page(replica, "/acts/revoke?all=1&group=default"))
        shown = await send(replica, "/acts/revoke", **{**form, "typed": "3", "node": "edge-1"})
        assert shown.status == 409, "the plan was of other nodes"
        form = fields(await page(replica, "/acts/remove?node=edge-1"))
        assert (await send(replica, "/acts/remove", **form, typed="edge-2")).status == 422
        assert (await page(replica, "/nodes/edge-1")).status == 200
        shown = await send(replica, "/acts/remove", **form, typed="edge-1")
        assert (shown.status, "1 of 1 node done" in shown.words) == (200, True)
        assert (await page(replica, "/nodes/edge-1")).status == 404
        # The button again: the node isn't there any more.
        assert (await send(replica, "/acts/remove", **form, typed="edge-1")).status == 409
        log = (await replica.call("GET", "/v1/audit?actor=admin")).json()["items"]
        assert [entry["action"] for entry in log if entry["action"].startswith("node.")] == [
            "node.remove",
            "node.move",
            "node.retry",
        ]
        for path, code in (("/acts/dance?node=edge-2", "no_such_path"), ("/acts/retry", "invalid_parameter")):
            assert f"<code>{code}</code>" in (await page(replica, path)).text


async def test_what_a_role_and_a_group_allow_is_all_that_is_done(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("POST", "/v1/groups", {"name": "shops"})
        await joined(replica, 1)
        await replica.join("shop-1", "shops")
        grants = [{"role": "read", "group": "default"}, {"role": "deploy", "group": "shops"}]
        token = (await replica.call("POST", "/v1/operators", {"name": "one", "grants": grants})).json()["token"]
        shown = await page(replica, "/nodes/edge-0", token=token)
        assert "needs deploy" in shown.words
        asked = await page(replica, "/acts/retry?node=edge-0&node=shop-1", token=token)
        assert "Retry shop-1?" in asked.words
        assert "edge-0" in asked.words[asked.words.index("Left out") :]
        shown = await send(replica, "/acts/retry", token=token, node="edge-0", light="1", key="k")
        assert (shown.status, "There is nothing to do" in shown.words) == (409, True)
        shown = await page(replica, "/acts/revoke?node=shop-1", token=token)
        assert (shown.status, "<code>role_insufficient</code>" in shown.text) == (403, True)
        shown = await page(replica, "/acts/move?node=shop-1&to=default", token=token)
        assert (shown.status, "<code>role_insufficient</code>" in shown.text) == (403, True)
        other = (await replica.call("POST", "/v1/operators", {"name": "two", "grants": grants[1:]})).json()["token"]
        assert names(await page(replica, "/nodes", token=other)) == ["shop-1"]
        for path in ("/nodes/edge-0", "/nodes?group=default"):
            assert (await page(replica, path, token=other)).status == 404
        assert names(await page(replica, "/nodes?block=shops-1", token=other)) == ["shop-1"]
        assert (await page(replica, "/nodes?block=default-1", token=other)).status == 422


async def test_a_node_says_how_large_it_is(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("edge-1")
        await node.poll()
        assert "It hasn't told any." in (await page(replica, "/nodes/edge-1")).part("numbers").replace("&#39;", "'")
        told = wire.NodeNumbers(
            412_000_000, 1_500_000, 3_100_000_000, 186_000_000, certificate_ends=2**50, edge=MARKUP[:32]
        )
        await numbers.tell(node, numbers.message([], node=told))
        await replica.services.numbers.nodes.write()
        shown = await page(replica, "/nodes/edge-1")
        assert "Database 412 MB Its log (WAL) 1.5 MB Free disk 3.1 GB Memory 186 MB" in shown.part("numbers")
        assert "Certificate ends it has none" in shown.part("numbers")
        assert "<img" not in shown.text
        assert (await replica.node("edge-1"))["numbers"]["database_bytes"] == 412_000_000
        assert shown.part("schedules") == ""


async def test_when_functions_start_by_themselves_is_shown_of_a_node_and_of_a_group(control_site: Site) -> None:
    clock = SetClock(datetime(2026, 12, 3, 12, tzinfo=UTC), timers="stand")
    async with control_site.running(clock=clock) as replica:
        await seeds.function(replica, "nightly")
        now = int(clock.now().timestamp())
        ok = wire.LineNumbers("nightly", "0 3 * * *", now - 7200, "ok", now + 7200, 3, 0)
        failed = wire.LineNumbers("nightly", "0 3 * * *", now - 10_800, "time_limit", now - 240, 240, 2)
        odd = wire.LineNumbers("other", MARKUP + "\0", 2**53, MARKUP, 2**53, 2**53, 2**53)
        never = wire.LineNumbers("nightly")
        for name, lines in (("edge-1", [ok]), ("edge-2", [failed, never]), ("edge-3", [odd]), ("edge-4", [])):
            node = await replica.join(name)
            await numbers.tell(node, numbers.message([], node=wire.NodeNumbers(1, schedules=lines)))
        await replica.services.numbers.nodes.write()
        lines = (await page(replica, "/nodes/edge-2")).part("schedules")
        assert "nightly after releases none \u2013 \u2013 \u2013 0" in lines
        assert "nightly 0 3 * * * 3 h ago failed time_limit 4 min ago 4 min 2" in lines
        lines = (await page(replica, "/nodes/edge-1")).part("schedules")
        assert "nightly 0 3 * * * 2 h ago ok in 2 h \u2013 0" in lines
        assert "<img" not in (await page(replica, "/nodes/edge-3")).text
        shown = await page(replica, "/functions/nightly")
        assert "default 0 3 * * * 2 h ago 1 of 2 nodes as edge-2 4 min ago 4 min 2" in shown.words
        assert "default after releases none none of 1 node \u2013 \u2013 0" in shown.words
        found = (await replica.call("GET", "/v1/fleet/schedules?group=default&function=nightly")).json()["schedules"]
        assert [(line["cron"], line["nodes"], line["failing"], line["example"]) for line in found] == [
            ("", 1, 0, None),
            ("0 3 * * *", 2, 1, "edge-2"),
        ]
        assert (found[1]["last_run_at"], found[1]["next_run_at"]) == ("2026-12-03T10:00:00Z", "2026-12-03T11:56:00Z")
        assert (found[1]["late_seconds"], found[1]["failures"]) == (240, 2)
        metrics = (await replica.call("GET", "/metrics")).body.decode()
        assert 'skerry_group_failing_schedules{group="default"} 2\n' in metrics
        # What was told long ago, and by a node that is gone, doesn't count.
        clock.advance(3601)
        assert (await replica.call("GET", "/v1/fleet/schedules")).json()["schedules"] == []


async def test_what_a_node_logs_comes_as_it_is_and_without_markup(control_site: Site) -> None:
    # The node answers, but perhaps slowly.
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        node = await joined_live(replica, "edge-1")
        shown = await page(replica, "/nodes/edge-1/log?level=warning&function=orders")
        assert 'data-stream="/nodes/edge-1/log/live?level=warning&amp;function=orders"' in shown.text
        headers = {"authorization": f"Bearer {replica.admin}"}
        url = f"{replica.url}/nodes/edge-1/log/live?level=warning"
        async with replica.session.get(url, headers=headers) as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
            (question,) = await asked(node)
            assert (question.level, question.follow, question.history) == ("warning", True, True)
            await send_lines(node, question.id, record(1, "error", message=MARKUP))
            text = ""
            async with deadline(60):
                while "l-error" not in text:
                    text += (await answer.content.readline()).decode()
        assert MARKUP not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        # Without a script: what the node has, in the page.
        asking = asyncio.create_task(page(replica, "/nodes/edge-1/log?once=1&kind=lines"))
        while not (found := [q for q in await asked(node) if not q.follow]):
            await asyncio.sleep(0.02)
        await send_lines(node, found[0].id, record(2, "warning", message=MARKUP), done=True)
        shown = await asking
        assert "warning orders &lt;img" in shown.part("log")
        asking = asyncio.create_task(page(replica, "/nodes/edge-1/log?once=1&kind=calls"))
        while not (found := [q for q in await asked(node) if q.kind == "calls"]):
            await asyncio.sleep(0.02)
        bare = b'{"kind":"call","t":"2026-11-28T06:00:00.123Z"}\n'
        told = b'"outcome":"guest_trap","path":"/<b>","status":500,"seconds":0.5'
        failed = b'{"kind":"call","t":"2026-11-28T06:00:01Z",%s}\n' % told
        await send_lines(node, found[0].id, raw=bare + failed, done=True)
        shown = await asking
        assert "06:00:01Z guest_trap /&lt;b&gt; 500 500 ms" in shown.part("log")
        assert "<img" not in shown.text
        for path, status in (("/nodes/nobody/log", 404), ("/nodes/edge-1/log?level=loud", 422)):
            assert (await page(replica, path)).status == status
