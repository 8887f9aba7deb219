"""Signing in in a real Chromium: what it keeps of cookies, what the pages' policy lets it do, and what its keys do."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from control.access.sessions import COOKIE
from control.local.pki import Pki
from tests.support.console_browser import Look, chromium, tab
from tests.support.control import Control
from tests.support.openid_provider import control_beside


async def names(page: Page) -> set[str]:
    return {cookie["name"] for cookie in await page.context.cookies() if "name" in cookie}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest.fixture
async def started(
    long_waits: None, database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> AsyncIterator[tuple[Control, str]]:
    """A control that a browser reaches as another site than its provider, and its URL there."""
    accounts: dict[str, dict[str, Any]] = {"u-1": {"preferred_username": "Ada", "groups": ["ops"]}}
    grants = '[groups]\nops = ["admin"]\n'
    servers = database_url, bucket_url, pki
    async with control_beside("control.example", accounts, grants, tmp_path, *servers) as (control, _, url):
        yield control, url


async def test_by_keyboard_alone_by_token_code_and_out(started: tuple[Control, str], browser: Browser) -> None:
    control, url = started
    async with tab(browser, url) as found:
        page = found.page
        await page.goto(f"{url}/login")
        assert page.url == f"{url}/sign-in?next=/login"
        await page.focus("input[name=token]")
        await page.keyboard.type(control.token)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{url}/login")
        assert COOKIE in await names(page)
        assert await page.evaluate("document.cookie.includes('__Host-skerry')") is False
        made = await control.ok("POST", "/v1/logins", {"machine": "laptop"}, token="")
        await give_code(page, made["user_code"])
        await page.get_by_role("button", name="Allow").press("Enter")
        await page.get_by_text("The login is allowed").wait_for()
        await page.goto(f"{url}/")
        await page.get_by_role("button", name="Sign out").press("Enter")
        await page.wait_for_url(f"{url}/sign-in")
        assert COOKIE not in await names(page)
        code = (await control.ok("POST", "/v1/sign-in-codes"))["code"]
        await page.goto(f"{url}/sign-in?by=code")
        await give_code(page, code)
        await page.wait_for_url(f"{url}/")


async def test_at_a_provider_of_another_site(started: tuple[Control, str], browser: Browser) -> None:
    """The way there and back goes over another site, and the session's cookie comes with the page after it."""
    _, url = started
    # The provider's own pages ask for fonts of the internet's.
    async with tab(browser, url, heard=f"{url}/") as found:
        page = found.page
        await page.goto(f"{url}/sign-in?next=/login")
        await page.get_by_role("link", name="Sign in with").click()
        await page.fill("input[name=login]", "u-1")
        await page.fill("input[name=password]", "x")
        await page.click("button[type=submit]")
        # The next page's button, and not this one's once more.
        await page.locator("input[name=password]").wait_for(state="detached")
        await page.click("button[type=submit]")
        await page.wait_for_url(f"{url}/login")
        assert await names(page) >= {COOKIE}
        assert await page.get_by_text("ada-").count() > 0
        await page.goto(f"{url}/")
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("link", name="Sign out there, too").wait_for()
        assert COOKIE not in await names(page)


async def test_a_page_of_another_site_sends_no_form(started: tuple[Control, str], browser: Browser) -> None:
    """A sibling of the same site even, which a browser gives the cookie to."""
    control, url = started
    async with tab(browser, url, heard=f"{url}/") as found:
        page = found.page
        await page.goto(f"{url}/sign-in")
        await page.fill("input[name=token]", control.token)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{url}/")
        sibling = url.replace("control.example", "sibling.example")
        for origin in (sibling, url.replace("control.example", "other.localhost")):
            await page.goto(f"{origin}/healthz")
            await page.set_content(f"<form method=post action='{url}/sign-out'><button>x</button></form>")
            await page.click("button")
            await page.get_by_text("form_refused").or_(page.get_by_text("credentials_missing")).first.wait_for()
        await page.goto(f"{url}/login")
        assert page.url == f"{url}/login"
        # The browser says that forms were refused.
        found.said = [text for text in found.said if "403" not in text and "401" not in text]


async def test_pages_for_signing_in_are_accessible(started: tuple[Control, str], browser: Browser) -> None:
    """In both themes, on a phone and on a desk; each of them by axe, and without a scroll bar sideways."""
    control, url = started
    async with tab(browser, url) as found:
        page = found.page
        for scheme, width in (("light", 1440), ("dark", 360)):
            await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            await page.set_viewport_size({"width": width, "height": 900})
            await page.context.clear_cookies()
            for path in ("/sign-in", "/sign-in?by=code"):
                await page.goto(url + path)
                await is_accessible(found)
            await page.goto(f"{url}/sign-in?next=/login")
            await page.fill("input[name=token]", "sko_wrong")
            await page.keyboard.press("Enter")
            await page.get_by_role("alert").wait_for()
            await is_accessible(found)
            await page.fill("input[name=token]", control.token)
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"{url}/login")
            await is_accessible(found)
            made = await control.ok("POST", "/v1/logins", {"machine": "laptop"}, token="")
            await give_code(page, made["user_code"])
            await page.get_by_role("button", name="Allow").wait_for()
            await is_accessible(found)
        # That the token was wrong is all that the browser has to say.
        found.said = [text for text in found.said if "401" not in text]


async def give_code(page: Page, code: str) -> None:
    """Type a code by keyboard alone: its field gets the focus a moment after the page is there."""
    await expect(page.locator("[autofocus]")).to_be_focused()
    await page.keyboard.type(code)
    await page.keyboard.press("Enter")


async def is_accessible(found: Look) -> None:
    assert await found.violations() == [], found.page.url
    assert await found.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), found.page.url
