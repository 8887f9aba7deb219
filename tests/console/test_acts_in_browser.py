"""What is done with the console's forms in a real browser: by keyboard alone, without a script, and what is seen of it;
and the pages that only come up on the way, for everybody to read."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from control.protocol import wire
from tests.support import deploy, numbers
from tests.support.console import session_of
from tests.support.console_browser import THEMES, WIDTHS, Look, chromium, look
from tests.support.control import module
from tests.support.replica import Replica, Site, TestNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = (
    "/releases?group=shops",
    "/releases/shops/2",
    "/releases/shops/1",
    "/releases/shops/1/rollback",
    "/releases/new?group=shops&f:orders=3&remove=stock&do=plan",
    "/functions/orders",
    "/functions/orders?range=24h&version=1",
    "/schema/3",
    "/schema/new",
    "/schema/3/amend",
    "/schema/3/withdraw",
    "/audit?action=release.create",
    "/operators/ci",
    "/operators/ci/revoke",
    "/make-operator",
    "/join-tokens?state=open",
    "/join-tokens/new",
    "/calls",
)


@dataclass
class Shops:
    """A control with a fleet that has a failing node, and a browser."""

    browser: Browser
    replica: Replica
    nodes: list[TestNode]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shops(shared_site: Site) -> AsyncIterator[Shops]:
    """One control and one browser for all tests."""
    async with chromium() as browser, shared_site.running() as replica:
        yield Shops(browser, replica, await fill(replica))


async def fill(replica: Replica) -> list[TestNode]:
    """Releases of a group, the second of which one of its nodes fails at."""
    await deploy.ok(replica, "POST", "/v1/groups", {"name": "shops"})
    for number in range(4):
        await deploy.push(replica, "orders", module(str(number)), sql="read" if number % 2 else "write")
    for name in ("stock", "loyalty"):
        await deploy.push(replica, name, module(name), route={"path": f"/{name}"})
    await deploy.schema(replica, "CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER);", "orders")
    await deploy.release(replica, "shops", functions={"orders": 2, "stock": 1, "loyalty": 1}, reason="first")
    nodes = [await replica.join(f"shop-{number}", "shops") for number in range(3)]
    for node in nodes:
        await node.sync()
    await deploy.schema(replica, "CREATE INDEX by_total ON orders (total);", "by total")
    await deploy.schema(replica, "DELETE FROM orders WHERE total IS NULL;", "clean up")
    await deploy.release(replica, "shops", functions={"orders": 4}, remove=["loyalty"], allow_loss=True)
    plan = await nodes[0].plan()
    await nodes[0].report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room for the artifact"))
    await nodes[1].sync()
    calls = [numbers.function(0, release=2, calls=200, seconds=0.002, guest_trap=5)]
    assert (await numbers.tell(nodes[1], numbers.message(calls))).status == 204
    await replica.services.numbers.resolve()
    grants = [{"role": "push", "group": "shops", "functions": ["orders"]}]
    await deploy.ok(replica, "POST", "/v1/operators", {"name": "ci", "grants": grants})
    await deploy.ok(replica, "POST", "/v1/join-tokens", {"group": "shops"})
    return nodes


async def is_sound(tab: Look, width: int) -> list[str]:
    """What axe finds, and whether it is wider than the screen."""
    wide = await tab.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, (tab.page.url, wide)
    assert await tab.page.locator("h1").count() == 1, tab.page.url
    return await tab.violations()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_each_page_on_the_way_can_be_read_by_everybody(shops: Shops, width: int, theme: str) -> None:
    async with look(shops.browser, shops.replica, width=width, theme=theme) as tab:
        found: dict[str, list[str]] = {}
        for path in PATHS:
            await tab.open(path)
            if violations := await is_sound(tab, width):
                found[path] = violations
        # Pages that are answers to a form.
        await tab.open("/schema/3/amend")
        await tab.page.get_by_label("SQL").fill("DELETE FROM orders WHERE total IS NULL OR total < 0;")
        await tab.page.get_by_role("button", name="Show the plan").click()
        await expect(tab.page.get_by_role("heading", name="What it will do")).to_be_visible()
        found["amendment"] = await is_sound(tab, width)
        await tab.open("/join-tokens/new")
        await tab.page.get_by_role("button", name="Make the token").click()
        await expect(tab.page.locator("pre").first).to_contain_text("skj_")
        found["token"] = await is_sound(tab, width)
        assert {path: some for path, some in found.items() if some} == {}


async def test_who_may_not_is_told_what_it_takes(shops: Shops) -> None:
    looker = {"name": "looker", "grants": [{"role": "read", "group": "shops"}]}
    token = (await deploy.ok(shops.replica, "POST", "/v1/operators", looker))["token"]
    # A replica knows an operator from the first time that it asks.
    await deploy.ok(shops.replica, "GET", "/v1/groups", token=token)
    secret = await session_of(shops.replica, "looker")
    async with look(shops.browser, shops.replica, secret=secret) as tab:
        for path in ("/releases", "/releases/shops/2", "/functions/orders", "/schema", "/schema/1"):
            await tab.open(path)
            assert await is_sound(tab, 1440) == [], path
            disabled = tab.page.locator("main [aria-disabled=true]")
            assert await disabled.count() > 0, path
            for text in await disabled.all_inner_texts():
                assert re.search(r"needs (push|deploy|admin)$", text.strip()), text
            assert await tab.page.locator("main form[method=post]").count() == 0, path


async def test_a_release_is_made_by_keyboard_alone_and_followed(shops: Shops) -> None:
    async with look(shops.browser, shops.replica) as tab:
        keys = tab.page.keyboard
        await tab.open("/releases/new?group=default")
        for text in ("items", "schema", "reason"):
            while await tab.focused() != text:
                await keys.press("Tab")
            await keys.type({"items": "orders=1 stock=1", "schema": "0", "reason": "by hand"}[text])
        await keys.press("Enter")
        await expect(tab.page.get_by_role("heading", name="What release 1 of default will do")).to_be_visible()
        while await tab.focused() != "Make release 1 of default":
            await keys.press("Tab")
        await keys.press("Enter")
        await tab.page.wait_for_url("**/releases/default/1")
        await tab.is_live()
        node = await shops.replica.join("by-hand")
        await expect(tab.page.locator("#standings")).to_contain_text("0 of 1 node at target")
        await node.sync()
        await expect(tab.page.locator("#standings")).to_contain_text("1 of 1 node at target")
        await expect(tab.page.locator("#verdict")).to_have_text("at target on 1 node")
        await expect(tab.page).to_have_title(re.compile("at target on 1 node · default 1"))


async def test_without_a_script_a_release_is_rolled_back_as_it_was_shown(shops: Shops) -> None:
    async with look(shops.browser, shops.replica, scripts=False) as tab:
        page = tab.page
        await tab.open("/releases/shops/2")
        await page.get_by_role("link", name="Roll back to 1").click()
        await page.get_by_label("Why").fill("loyalty is needed")
        await page.get_by_role("button", name="Put it into the plan").click()
        await expect(page.get_by_role("heading", name="What release 3 of shops will do")).to_be_visible()
        # Meanwhile somebody else makes a release.
        await deploy.release(shops.replica, "shops", functions={"stock": 1}, schema=3)
        await page.get_by_role("button", name="Roll back: make release 3").click()
        await expect(page.get_by_role("alert")).to_contain_text("plan_changed")
        await page.get_by_role("button", name="Roll back: make release 4").click()
        await page.wait_for_url("**/releases/shops/4")
        await expect(page.locator("main")).to_contain_text("loyalty is needed")
        # What takes something away asks for its name: the browser first, then control.
        await tab.open("/releases/new?group=shops&remove=loyalty&schema=1&do=plan")
        await page.get_by_label("Type shops/5").fill("shops/4")
        await page.get_by_role("button", name="Make release 5").click()
        await expect(page.get_by_role("alert")).to_contain_text("type shops/5 to confirm it")
        await page.get_by_label("Type shops/5").fill("shops/5")
        await page.get_by_role("button", name="Make release 5").dblclick()
        await page.wait_for_url("**/releases/shops/5")
        made = await deploy.items(shops.replica, "/v1/releases?group=shops")
        assert [release["number"] for release in made] == [5, 4, 3, 2, 1], "two clicks, one release"
        # The browser says that it was answered with 409 and 422; nothing else may be said.
        tab.said = [text for text in tab.said if "409" not in text and "422" not in text]
