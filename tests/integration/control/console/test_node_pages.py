"""The pages of nodes on a real control: filters, one node, and what is done with nodes, as the operator may."""

import re
from functools import partial
from html import unescape

import pytest

from control.storage.connection import Connection
from tests.support.console import MARKUP, ShownPage, fails, live, page, release, send
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
        assert shown.part("counted") == "4 of 4 nodes"
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


async def release_of(replica: Replica, group: str) -> None:
    answer = await replica.call("POST", "/v1/releases", {"group": group})
    assert answer.status == 201, answer.body


async def test_a_long_list_has_a_next_page(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.console.node_list.LIMIT", 2)
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
