"""Releases in the console: what the pages say, to whom, live; and how one is made, once, as it was shown."""

import html
import re
from typing import Any

from control.protocol import wire
from tests.support import deploy
from tests.support.console import MARKUP, ShownPage, live, page, send
from tests.support.control import module, until
from tests.support.replica import Replica, Site


async def push(replica: Replica, name: str, text: str, **manifest: object) -> None:
    await deploy.push(replica, name, module(text), **manifest)


async def ok(replica: Replica, path: str, body: dict[str, Any]) -> Any:
    """A success; a release goes to all nodes at once."""
    return await deploy.ok(replica, "POST", path, {**body, "now": True} if path == "/v1/releases" else body)


async def numbers(replica: Replica, group: str = "default") -> list[int]:
    items = (await replica.call("GET", f"/v1/releases?group={group}")).json()["items"]
    return [release["number"] for release in items]


def fields(shown: ShownPage) -> dict[str, str]:
    """What the form of a plan sends."""
    form = re.search(r'<form[^>]* id="plan".*?</form>', shown.text, re.DOTALL)
    assert form, shown.words
    pairs = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[0])
    return {name: html.unescape(value) for name, value in pairs}


async def test_what_the_pages_say_and_to_whom(control_site: Site) -> None:
    async with control_site.running() as replica:
        shown = await page(replica, "/releases")
        assert "No release has been made yet" in shown.words
        await push(replica, "orders", "1", sql="read")
        await push(replica, "orders", "2")
        await push(replica, "loyalty", "3")
        await ok(replica, "/v1/schema-changes", {"name": MARKUP, "sql": "CREATE TABLE t (a)"})
        await ok(replica, "/v1/groups", {"name": "shops"})
        node = await replica.join("edge-1")
        await ok(replica, "/v1/releases", {"functions": {"orders": 1, "loyalty": 1}, "schema": 0})
        await ok(replica, "/v1/releases", {"functions": {"orders": 2}, "remove": ["loyalty"], "reason": MARKUP})
        await ok(replica, "/v1/releases", {"group": "shops", "functions": {"orders": 2}})
        shown = await page(replica, "/releases/default/2")
        assert shown.status == 200
        assert "<img" not in shown.text
        assert MARKUP.replace("<", "&lt;").replace(">", "&gt;")[:20] in shown.text
        plan = shown.words[shown.words.index("What it changed") :]
        removed, changed, added = (plan.index(w) for w in ("function loyalty 1", "orders 1 → 2", "schema change 1"))
        assert removed < changed < added, "removals are on top"
        assert "grant of orders: sql" in plan
        assert "schema floor 0 → 1" in plan
        async with live(replica, "/releases/default/2") as stream:
            await stream.until(lambda s: "standings" in s.parts)
            found = await node.plan()
            error = wire.SyncError("schema_change_failed", MARKUP)
            await node.report(found.sync_id, "failed", error=error)
            await stream.until(lambda s: "schema_change_failed" in s.parts["failing"])
            assert "1 failing" in stream.parts["title"]
            assert MARKUP not in stream.parts["failing"]
            assert "edge-1" in stream.parts["failing"]
        shown = await page(replica, "/releases/default/1")
        assert "superseded by 2" in shown.words
        assert "Roll back to this one" in shown.words
        shown = await page(replica, "/releases?group=default")
        assert [row in shown.words for row in ("default 2", "default 1", "shops 1")] == [True, True, False]
        assert "1 failing" in shown.words
        for path, status in (
            ("/releases/default/9", 404),
            ("/releases/nowhere/1", 404),
            ("/releases/default/0", 422),
            ("/releases?group=%3Cb%3E", 422),
            ("/releases?cursor=x", 422),
        ):
            assert (await page(replica, path)).status == status, path

        # An operator of another group: what isn't its own isn't there, and what it may not do says so.
        grants = [{"role": "read", "group": "shops"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        shown = await page(replica, "/releases", token=str(token))
        assert "shops 1" in shown.words
        assert "default" not in shown.words
        assert 'aria-disabled="true"' in shown.text
        assert (await page(replica, "/releases/default/2", token=str(token))).status == 404
        shown = await page(replica, "/releases/shops/1", token=str(token))
        assert "Try failing nodes again needs deploy" in shown.words
        assert "Make the next one … needs push" in shown.words
        assert (await page(replica, "/releases/new", token=str(token))).status == 403
        assert (await send(replica, "/releases/shops/1/retry", token=str(token), key="k" * 10)).status == 403


async def test_the_failing_nodes_are_told_to_try_again(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "/v1/schema-changes", {"name": "first", "sql": "CREATE TABLE t (a)"})
        node = await replica.join("edge-1")
        await ok(replica, "/v1/releases", {})
        plan = await node.plan()
        await node.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
        shown = await send(replica, "/releases/default/1/retry", key="a" * 10)
        assert (shown.status, shown.headers["location"]) == (303, "/releases/default/1?retried=1")
        assert "1 failing node tries again" in (await page(replica, shown.headers["location"])).words
        again = await send(replica, "/releases/default/1/retry", key="a" * 10)
        assert again.headers["location"] == shown.headers["location"]
        await node.sync()
        assert (await send(replica, "/releases/default/1/retry")).status == 422, "without a key"


async def test_a_release_is_made_once_as_it_was_shown_or_not_at_all(control_site: Site) -> None:
    async with control_site.running() as replica:
        for text in "12":
            await push(replica, "orders", text)
        await push(replica, "loyalty", "3")
        shown = await page(replica, "/releases/new")
        assert "orders" in shown.words
        asked = "/releases/new?group=default&f:orders=1&items=loyalty%3D1&reason=" + "first%20%3Cb%3E&do=plan"
        shown = await page(replica, asked)
        assert "What release 1 of default will do" in shown.words
        assert "Sure?" not in shown.words
        assert await numbers(replica) == []
        # Two clicks make one release.
        sent = fields(shown)
        for _ in range(2):
            made = await send(replica, "/releases/new", **sent)
            assert (made.status, made.headers["location"]) == (303, "/releases/default/1")
        assert await numbers(replica) == [1]
        assert "first &lt;b&gt;" in (await page(replica, "/releases/default/1")).text

        # What takes something away asks for its name.
        shown = await page(replica, "/releases/new?group=default&remove=loyalty&do=plan")
        assert "Type default/2" in shown.words
        sent = fields(shown)
        untyped = await send(replica, "/releases/new", **sent)
        assert untyped.status == 422
        assert "type default/2 to confirm it" in untyped.words
        wrong = await send(replica, "/releases/new", **sent, typed="default/1")
        assert wrong.status == 422
        # Meanwhile another release comes: nothing is done, and the new plan is shown.
        await ok(replica, "/v1/releases", {"functions": {"orders": 2}})
        changed = await send(replica, "/releases/new", **sent, typed="default/2")
        assert changed.status == 409
        assert "plan_changed" in changed.words
        assert "What release 3 of default will do" in changed.words
        assert await numbers(replica) == [2, 1]
        sent = fields(changed)
        for _ in range(2):
            made = await send(replica, "/releases/new", **sent, typed="default/3")
            assert made.headers["location"] == "/releases/default/3"
        assert await numbers(replica) == [3, 2, 1]

        # And back to an earlier one.
        shown = await page(replica, "/releases/default/1/rollback?reason=again")
        assert "What release 4 of default will do" in shown.words
        assert "loyalty 1" in shown.words
        made = await send(replica, "/releases/default/1/rollback", **fields(shown))
        assert made.headers["location"] == "/releases/default/4"
        shown = await page(replica, "/releases/default/4")
        assert "Rolled back to 1" in shown.words
        # The page of the newest release offers the last one that a node has run.
        node = await replica.join("edge-1")
        await node.sync()
        for _ in range(2):
            await ok(replica, "/v1/releases", {"functions": {"orders": 2}})

        async def offered() -> bool:
            return "Roll back to 4 …" in (await page(replica, "/releases/default/6")).words

        await until(offered)
        await ok(replica, "/v1/releases", {"rollback_to": 4})

        # A floor that was lowered stays, and the plan says so.
        await ok(replica, "/v1/schema-changes", {"name": "t", "sql": "CREATE TABLE t (id INTEGER)"})
        await ok(replica, "/v1/releases", {})
        assert "schema floor 1 → 0" in (await page(replica, "/releases/default/7/rollback")).words
        await ok(replica, "/v1/releases", {"rollback_to": 7})
        told = "Stays schema floor 0, to which it was lowered the newest schema change is 1"
        assert told in (await page(replica, "/releases/new?group=default&do=plan")).words

        # What is wrong is said at the form, and nothing is made of it.
        for wrong_fields, text in (
            ("f:orders=99", "there is no version 99 of orders"),
            ("f:orders=x", "Expected"),
            ("items=orders", "neither name=version nor -name"),
            ("items=-nothing", "has no function nothing"),
            ("schema=7", "there is no 7"),
        ):
            shown = await page(replica, f"/releases/new?group=default&{wrong_fields}&do=plan")
            assert shown.status >= 400, wrong_fields
            assert text in shown.words, (wrong_fields, shown.words)
        assert await numbers(replica) == [9, 8, 7, 6, 5, 4, 3, 2, 1]


async def test_losses_and_unfit_nodes_are_shown_and_allowed_one_by_one(control_site: Site) -> None:
    async with control_site.running() as replica:
        await push(replica, "orders", "1", cors={"origins": ["https://shop.example"]})
        await ok(replica, "/v1/schema-changes", {"name": "first", "sql": "CREATE TABLE t (a)"})
        await ok(replica, "/v1/releases", {})
        node = await replica.join("edge-1")
        await node.sync()
        await ok(replica, "/v1/schema-changes", {"name": "second", "sql": "DROP TABLE t"})
        shown = await page(replica, "/releases/new?group=default&f:orders=1&do=plan")
        assert "Loses schema change 2" in shown.words
        assert "Also where rows are lost, as shown" in shown.words
        sent = fields(shown)
        refused = await send(replica, "/releases/new", **sent, typed="default/2")
        assert refused.status == 409
        assert "loss_not_allowed" in refused.words
        assert await numbers(replica) == [1]
        made = await send(replica, "/releases/new", **fields(refused), typed="default/2", allow_loss="yes")
        assert made.headers["location"] == "/releases/default/2", made.words
