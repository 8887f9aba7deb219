"""The console in a real browser, Debian's Chromium driven by Playwright, as an operator who is signed in sees it."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from control.access.auth import Principal
from control.access.rights import of_row
from control.access.sessions import COOKIE
from control.api.services import Services
from tests.support.replica import Replica

AXE = Path(__file__).parents[2] / "lock/axe/node_modules/axe-core/axe.min.js"
FLAGS = (
    # Root has none of its sandbox, and it opens nothing but control's own pages.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WIDTHS = (1440, 360)
THEMES = ("light", "dark")


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
        assert response.status == 200, (path, response.status)

    async def is_live(self) -> None:
        """Wait until the page says that it is live."""
        await self.page.locator("#live", has_text="Live").wait_for()

    async def violations(self) -> list[str]:
        """What axe has to say against the page as it is: WCAG 2.2 AA, and what it calls good practice."""
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


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser without a window, until the block ends."""
    program = shutil.which("chromium")
    assert program is not None, "Debian's package chromium isn't installed: `just setup` does it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


async def session_of(services: Services, name: str = "admin") -> str:
    """The secret of a new session of an operator."""
    operator = next(found for found in services.fleet.operators.values() if found.name == name)
    who = Principal(operator.id, name, of_row(operator.role, operator.grants), operator.expires_at)
    scope = {"type": "http", "client": ("127.0.0.1", 1), "request_id": b"test", "headers": []}
    return await services.sessions.begin(scope, who, "console", "token")


@contextlib.asynccontextmanager
async def look(
    browser: Browser,
    replica: Replica,
    *,
    width: int = 1440,
    theme: str = "light",
    scripts: bool = True,
    secret: str | None = None,
) -> AsyncIterator[Look]:
    """A tab of an operator who is signed in, the admin without another `secret`. In the end nothing was said."""
    context: BrowserContext = await browser.new_context(
        ignore_https_errors=True,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    secret = await session_of(replica.services) if secret is None else secret
    await context.add_cookies([{"name": COOKIE, "value": secret, "url": replica.url, "secure": True}])
    page = await context.new_page()
    page.set_default_timeout(30_000)
    found = Look(page, replica.url)

    def says(message: ConsoleMessage) -> None:
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
