"""Each page of the console in a real browser, on a real control: both themes, wide and narrow, by keyboard, without a
script; what is live, and what it says when control is away."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from control.console import node_functions
from control.console.pages import overview
from control.problems import ProblemError
from control.storage.connection import Connection
from tests.support import console_walk
from tests.support.console import MARKUP, session_of
from tests.support.console_browser import THEMES, WIDTHS, chromium, look
from tests.support.console_walk import LONG_PATHS, PATHS
from tests.support.deadlines import deadline, scaled
from tests.support.live import asked, send
from tests.support.programs import control_program
from tests.support.replica import Replica, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOLD = tuple(
    {"t": "2026-11-28T07:00:00Z", "kind": "function", "since": "2026-11-27T07:00:00Z", "function": name, **more}
    for name, more in (
        ("orders", {"release": 2, "version": 17, "calls": 98_765, "failed": 1_234, "outcomes": {"guest_trap": 1_234}}),
        ("a-name-that-is-as-long-as-names-of-functions-may-be-in-this-one", {"calls": 3, "p50": 0.0004, "p99": 29.0}),
        (MARKUP, {"release": 1, "calls": 2, "outcomes": {MARKUP: 2}}),
    )
)
"""What a node has counted."""


@dataclass
class Console:
    """A control with a fleet, and a browser."""

    browser: Browser
    replica: Replica


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console(shared_site: Site) -> AsyncIterator[Console]:
    """One control and one browser for all tests."""
    async with chromium() as browser, shared_site.running() as replica:
        async with look(browser, replica) as tab:
            await tab.open("/")
            assert await tab.violations() == []
            await tab.is_live()
            first = await replica.join("edge-000")
            # By itself: the page was told, and is another one now.
            await expect(tab.page.locator("#say")).to_contain_text("Nothing is wrong")
        await console_walk.fill(replica, first)
        yield Console(browser, replica)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_each_page_can_be_read_by_everybody(console: Console, width: int, theme: str) -> None:
    """Nothing that axe finds, nothing in the browser's console, nothing to scroll sideways for, and no fault that
    `console_walk` knows: what is cut off, a time without its zone, `1 nodes`, a code that leads nowhere."""
    async with look(console.browser, console.replica, width=width, theme=theme) as tab:
        found: dict[str, list[str]] = {}
        for path in PATHS:
            await tab.open(path)
            if await tab.page.locator("#live").count():
                await tab.is_live()
            faults = await console_walk.faults(tab, width)
            if theme == THEMES[0] or path not in LONG_PATHS:
                faults += await tab.violations()
            if faults:
                found[path] = faults
            assert await tab.page.locator("h1").count() == 1, path
            assert await tab.page.locator("img").count() == 0, "a node's text became markup"
        assert found == {}


async def test_by_keyboard_alone(console: Console) -> None:
    async with look(console.browser, console.replica) as tab:
        keys = tab.page.keyboard
        await tab.open("/")
        await keys.press("Tab")
        # The first stop skips the navigation.
        await tab.gets_focus("#main")
        await keys.press("Enter")
        await tab.gets_focus("main")
        await keys.press("/")
        await tab.gets_focus("q")
        await keys.type("edge-001")
        await keys.press("Enter")
        await tab.page.wait_for_url("**/nodes/edge-001")
        await keys.press("g")
        await keys.press("n")
        await tab.page.wait_for_url("**/nodes")
        # The node of the long name is the first one.
        for _ in range(3):
            await keys.press("j")
        await tab.gets_focus("/nodes/edge-001")
        await keys.press("x")
        await expect(tab.page.locator("[data-count]")).to_have_text("1")
        outline = await tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "what has the focus can be seen"
        await keys.press("k")
        await keys.press("Enter")
        await tab.page.wait_for_url("**/nodes/edge-000")
        for _ in range(40):
            if await tab.focused() == "Retry now":
                break
            await keys.press("Tab")
        await keys.press("Enter")
        await tab.page.wait_for_url("**/nodes/edge-000?done=retry")
        await expect(tab.page.get_by_role("status")).to_contain_text("It tries again with its next poll")
        await keys.press("t")
        await expect(tab.page.locator("#facts time").first).to_contain_text("UTC")
        await keys.press("t")
        await keys.press("?")
        await expect(tab.page.locator("#keys")).to_be_visible()
        await keys.press("Escape")
        await expect(tab.page.locator("#keys")).not_to_be_visible()


async def test_the_theme_is_written_by_the_server(console: Console) -> None:
    async with look(console.browser, console.replica) as tab:
        await tab.open("/nodes?standing=failing")
        html = tab.page.locator("html")
        ground = "getComputedStyle(document.body).backgroundColor"
        light = await tab.page.evaluate(ground)
        for theme in ("light", "dark"):
            async with tab.page.expect_navigation():
                await tab.page.keyboard.press("Shift+D")
            await expect(html).to_have_attribute("data-theme", theme)
            assert tab.page.url.endswith("/nodes?standing=failing")
        assert await tab.page.evaluate(ground) != light
        async with tab.page.expect_navigation():
            await tab.page.keyboard.press("Shift+D")
        assert await html.get_attribute("data-theme") is None


async def test_without_a_script_pages_are_read_and_forms_are_sent(console: Console) -> None:
    async with look(console.browser, console.replica, scripts=False) as tab:
        for path in PATHS:
            await tab.open(path)
            assert await tab.page.locator("#live").count() == 0 or not await tab.page.locator("#live").is_visible()
        await tab.open("/nodes")
        await tab.page.get_by_label("Standing").select_option("failing")
        await tab.page.get_by_role("button", name="Show").click()
        await expect(tab.page).to_have_url(re.compile("standing=failing"))
        await tab.page.get_by_label("Select edge-000").check()
        await tab.page.get_by_role("button", name="Move …", exact=True).click()
        await tab.page.get_by_label("To which group").select_option("shops")
        await tab.page.get_by_role("button", name="Show what it would change").click()
        await tab.page.get_by_role("button", name="Move edge-000").click()
        await expect(tab.page.get_by_role("status")).to_contain_text("It is in group shops now")
        await tab.page.get_by_role("button", name="Change theme").click()
        await expect(tab.page.locator("html")).to_have_attribute("data-theme", "light")


async def test_a_filter_changes_the_list_and_the_url_without_another_page(console: Console) -> None:
    async with look(console.browser, console.replica) as tab:
        await tab.open("/nodes")
        await tab.page.evaluate("window.same = true")
        await tab.page.get_by_label("Part of the name").fill("edge-00")
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("tbody tr")).to_have_count(10)
        await expect(tab.page).to_have_url(re.compile("find=edge-00"))
        assert await tab.page.evaluate("window.same"), "the page was loaded again"
        await expect(tab.page.locator("#counted")).to_have_text("10 shown")
        # What is live is the list that is shown now.
        groups = tab.page.locator("#nav-groups")
        before = await groups.inner_text()
        await console.replica.join("late-0")
        await expect(groups).not_to_have_text(before)
        assert await tab.page.locator("#counted").inner_text() == "10 shown"
        await tab.page.go_back()
        await expect(tab.page.locator("tbody tr")).to_have_count(50)


async def test_a_count_is_of_the_list_below_it(console: Console) -> None:
    """Rows stay while a page is open, and so does their number."""
    await console.replica.call("POST", "/v1/groups", {"name": "counted"})
    await console.replica.join("counted-1", "counted")
    async with look(console.browser, console.replica) as tab:
        await tab.open("/nodes?group=counted")
        await tab.is_live()
        counted = tab.page.locator("#counted b")
        await expect(counted).to_have_text("1")
        await console.replica.join("counted-2", "counted")
        await expect(tab.page.locator("#nav-groups")).to_contain_text("counted 2")
        changed = tab.page.get_by_text("The list has changed")
        await changed.wait_for()
        assert (await counted.inner_text(), await tab.page.locator("tbody tr").count()) == ("1", 1)
        await changed.click()
        await expect(counted).to_have_text("2")
        await expect(tab.page.locator("tbody tr")).to_have_count(2)


async def test_what_is_pushed_waits_for_the_pointer_and_the_rest_goes_on(console: Console) -> None:
    async with look(console.browser, console.replica) as tab:
        # Those that are there go offline, and are overdue, minutes after they were made.
        await console.replica.join("late-1")
        await tab.open("/nodes/late-1")
        await tab.is_live()
        await expect(tab.page.locator("#state")).not_to_contain_text("offline")
        groups = tab.page.locator("#nav-groups")
        await expect(groups).to_contain_text("default")
        await groups.locator("a").first.hover()
        # From here on; until now nodes may still have gone offline in it.
        before = await groups.inner_text()

        async def change(conn: Connection) -> None:
            await conn.execute("UPDATE nodes SET state = 'offline', state_since = now() WHERE name = 'late-1'")

        await console.replica.join("late-2")
        await console.replica.services.db.transaction(change)
        await expect(tab.page.locator("#state")).to_have_text("offline")
        await expect(tab.page).to_have_title("offline · late-1 · Skerry")
        assert await groups.inner_text() == before
        await tab.page.mouse.move(700, 10)
        await expect(groups).not_to_have_text(before)
        await tab.page.keyboard.press(".")
        await expect(tab.page.locator("#live")).to_have_text("Stopped")
        await tab.page.keyboard.press(".")
        await tab.is_live()


async def test_a_node_tells_the_calls_of_its_functions_while_its_page_is_open(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both themes and widths, by what a node has told, and without a script when it is asked for."""
    # A page without a script waits for the answer once, and what is asked goes through the database.
    for seconds in ("PATIENCE", "LINGER"):
        monkeypatch.setattr(node_functions, seconds, 60.0)
    node = await console.replica.join("telling-1")
    node.protocol, node.capabilities = 2, {"questions": ["functions"]}
    await node.sync()
    await node.poll()

    async def tell() -> None:
        while True:
            questions = await asked(node)
            for question in questions:
                await send(node, question.id, *TOLD, done=True)

    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell())
        async with look(console.browser, console.replica, scripts=False) as tab:
            await tab.open("/nodes/telling-1")
            await tab.page.get_by_role("button", name="Ask the node now").click()
            await expect(tab.page.locator("#functions")).to_contain_text("guest_trap 1,234")
        for theme, width in zip(THEMES, WIDTHS, strict=True):
            async with look(console.browser, console.replica, width=width, theme=theme) as tab:
                await tab.open("/nodes/telling-1")
                part = tab.page.locator("#functions")
                await expect(part).to_contain_text("guest_trap 1,234")
                assert await tab.violations() == []
                assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width
                assert await tab.page.locator("img").count() == 0, "a node's text became markup"
        telling.cancel()


async def test_a_tab_that_nobody_can_see_has_no_stream(console: Console) -> None:
    async with look(console.browser, console.replica) as tab:
        hub = console.replica.server.app.hub
        await tab.open("/")
        await tab.is_live()

        async def there_are(streams: int) -> None:
            async with deadline(60):
                while hub.streams != streams:
                    await tab.page.wait_for_timeout(20)

        # Those of tabs that were closed before may be about to end.
        await there_are(1)
        hide = "on => {Object.defineProperty(document, 'hidden', {value: on, configurable: true});"
        await tab.page.evaluate(hide + " document.dispatchEvent(new Event('visibilitychange'))}", True)
        await there_are(0)
        await tab.page.evaluate(hide + " document.dispatchEvent(new Event('visibilitychange'))}", False)
        await tab.is_live()


async def test_a_stale_connection_is_shown_and_mended(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database doesn't answer for some seconds, then the replica stops, and another one takes its place."""
    read = overview._read
    answers = False

    async def broken(visit: object) -> object:
        if not answers:
            raise ProblemError("database_unavailable", "a test says so")
        return await read(visit)  # type: ignore[arg-type]

    async with look(console.browser, console.replica) as tab:
        await tab.open("/")
        await tab.is_live()
        monkeypatch.setattr(overview, "_read", broken)
        await expect(tab.page.locator("#live")).to_contain_text("Stale, ")
        answers = True
        await tab.is_live()
        # A replica that stops: refuse what comes, as one that has ended does, until the next one is there.
        hub = console.replica.server.app.hub
        hub.close()
        await expect(tab.page.locator("#live")).to_contain_text("Not connected, again in ")
        hub._closing = False
        await tab.is_live()
        # The browser says that it was refused; nothing else may be said.
        tab.said = [text for text in tab.said if "503" not in text]


async def test_a_control_that_stands_still_does_not_look_live(
    console: Console, shared_site: Site, tmp_path: Path
) -> None:
    """A process that is stopped keeps its connections, and says nothing in them."""
    secret = await session_of(console.replica)
    async with (
        control_program(shared_site, tmp_path / "control") as (program, other),
        look(console.browser, other, secret=secret) as one,
        look(console.browser, other, secret=secret) as log,
    ):
        await log.open("/nodes/edge-000/log")
        await one.open("/")
        await one.is_live()
        await log.page.locator("#fed", has_text="Live").wait_for()
        assert program._process is not None
        os.kill(program._process.pid, signal.SIGSTOP)
        try:
            # Both know nothing else of it, within some seconds.
            await expect(one.page.locator("#live")).to_contain_text("No answer for ", timeout=scaled(12) * 1000)
            await expect(log.page.locator("#fed")).to_contain_text("No answer for ", timeout=scaled(20) * 1000)
        finally:
            os.kill(program._process.pid, signal.SIGCONT)
        await one.is_live()
        await log.page.locator("#fed", has_text="Live").wait_for()


async def test_a_form_of_another_session_does_nothing(console: Console) -> None:
    secret = await session_of(console.replica)
    async with (
        look(console.browser, console.replica) as one,
        look(console.browser, console.replica, secret=secret) as two,
    ):
        await one.open("/nodes/edge-002")
        await two.open("/nodes/edge-002")
        token = await two.page.locator("#theme input[name=form_token]").input_value()
        await one.page.evaluate(
            "token => document.querySelectorAll('[name=form_token]').forEach(field => { field.value = token })", token
        )
        await one.page.get_by_role("button", name="Retry now").click()
        await expect(one.page.locator("main")).to_contain_text("form_refused")
        one.said = [text for text in one.said if "403" not in text]
