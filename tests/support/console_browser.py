"""The console in a real browser, Debian's Chromium driven by Playwright."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from control.access.sessions import COOKIE
from tests.support.browser import HOSTS, program
from tests.support.console import session_of
from tests.support.deadlines import deadline
from tests.support.replica import Replica

AXE = Path(__file__).parents[2] / "lock/axe/node_modules/axe-core/axe.min.js"
# Root has none of its sandbox, and it opens nothing but the tests' own pages.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", HOSTS)
WIDTHS = (1440, 360)
THEMES = ("light", "dark")
PATIENCE = 60_000
"""Milliseconds for anything that must come to be in a page."""


@dataclass
class Look:
    """A tab, and what its browser said of what it was given."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    """Messages of the console, errors of scripts, dialogs."""

    async def open(self, path: str) -> None:
        """Load a page, with all that it is made of."""
        response = await self.page.goto(self.url + path, wait_until="load")
        assert response is not None
        assert response.status == 200, (path, response.status, await self.page.inner_text("body"))

    async def is_live(self) -> None:
        """Wait until the page says that it is live."""
        await self.page.locator("#live", has_text="Live").wait_for()

    async def violations(self) -> list[str]:
        """What axe has to say against the page as it is: WCAG 2.2 AA, and what it calls good practice."""
        # What follows a form may be here in part yet.
        await self.page.wait_for_load_state("load")
        await self.page.evaluate(AXE.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = await self.page.evaluate("tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", tags)
        return [f"{v['id']}: {v['help']}: {[n['html'][:200] for n in v['nodes'][:5]]}" for v in found["violations"]]

    async def focused(self) -> str:
        """The element that has the focus: its text, its id, or its name."""
        text: str = await self.page.evaluate(
            "(e => e.id || e.getAttribute('href') || e.name || e.textContent.trim())(document.activeElement)"
        )
        return text

    async def gets_focus(self, what: str) -> None:
        """Wait until an element has the focus, as `focused` calls it."""
        async with deadline(PATIENCE / 1000):
            while await self.focused() != what:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser without a window, until the block ends."""
    expect.set_options(timeout=PATIENCE)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program(), args=list(FLAGS), timeout=PATIENCE)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def look(browser: Browser, replica: Replica, *, secret: str | None = None, **options: Any) -> AsyncIterator[Look]:
    """`tab` of an operator who is signed in, the admin without another `secret`."""
    secret = await session_of(replica) if secret is None else secret
    async with tab(browser, replica.url, **options) as found:
        await found.page.context.add_cookies([{"name": COOKIE, "value": secret, "url": replica.url, "secure": True}])
        yield found


@contextlib.asynccontextmanager
async def tab(
    browser: Browser, url: str, *, width: int = 1440, theme: str = "light", scripts: bool = True, heard: str = ""
) -> AsyncIterator[Look]:
    """A tab of a browser that has no cookie yet, for the control at a URL. In the end nothing was said.

    `heard`: how the addresses of the pages begin whose messages count; '' for all.
    """
    context = await browser.new_context(
        ignore_https_errors=True,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    found = Look(page, url)

    def says(message: ConsoleMessage) -> None:
        if message.location.get("url", "").startswith(heard):
            found.said.append(f"{message.type}: {message.text}")

    def dialog(shown: Any) -> None:
        found.said.append(f"dialog: {shown.message}")
        asyncio.get_running_loop().create_task(shown.dismiss())

    page.on("console", says)
    page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    page.on("dialog", dialog)
    try:
        yield found
        assert found.said == []
    finally:
        await context.close()
