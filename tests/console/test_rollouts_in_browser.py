"""Rollouts in a real browser: each state for everybody to read, and what is done about them, also without a script."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.support import console_rollouts, console_walk, deploy
from tests.support.console import session_of
from tests.support.console_browser import THEMES, WIDTHS, chromium, look
from tests.support.replica import Replica, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

TITLES = {
    "baking": "baking at step 2 of 4",
    "gated": "held at step 2 of 4",
    "rehearsed": "held by its rehearsal",
    "stopped": "aborted at step 2 of 4",
    # Nodes that nobody has heard of for a while are offline.
    "finished": r"at target on \d+ nodes?",
}
PATHS = (
    "/",
    "/releases",
    "/releases?group=policied",
    "/releases/gated/1",
    "/releases/gated/2/nodes",
    "/releases/rehearsed/2/rehearsal",
    "/releases/gated/2/rollout/resume",
    "/releases/gated/2/rollout/promote",
    "/releases/gated/2/rollout/abort",
    "/releases/gated/2/rollout/rollback",
    "/releases/stopped/2/rollout/retry",
    "/releases/new?group=policied&reason=again&do=plan",
)


@dataclass
class Steps:
    """A control with a rollout in each state, and a browser."""

    browser: Browser
    replica: Replica


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def steps(shared_site: Site) -> AsyncIterator[Steps]:
    """One control and one browser for all tests."""
    async with chromium() as browser, shared_site.running() as replica:
        await console_rollouts.fill(replica)
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "policied"})
        await deploy.ok(replica, "PUT", "/v1/groups/policied/policy", console_rollouts.POLICY)
        yield Steps(browser, replica)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_each_state_can_be_read_by_everybody(steps: Steps, width: int, theme: str) -> None:
    async with look(steps.browser, steps.replica, width=width, theme=theme) as tab:
        found: dict[str, list[str]] = {}
        for path in (*(f"/releases/{group}/2" for group in console_rollouts.STATES), *PATHS):
            await tab.open(path)
            if await tab.page.locator("#live").count():
                await tab.is_live()
            faults = [*await console_walk.faults(tab, width), *await tab.violations()]
            if faults:
                found[path] = faults
            assert await tab.page.locator("h1").count() == 1, path
            assert await tab.page.locator("img").count() == 0, "a node's text became markup"
        assert found == {}


async def test_a_tab_tells_the_state(steps: Steps) -> None:
    async with look(steps.browser, steps.replica) as tab:
        for group, state in TITLES.items():
            await tab.open(f"/releases/{group}/2")
            await expect(tab.page).to_have_title(re.compile(f"^{state} · {group} 2 · Skerry$"))
            await tab.is_live()
            await expect(tab.page.locator("#verdict")).to_have_text(re.compile(f"^{state}$"))


async def test_a_rollout_is_paused_resumed_and_followed(steps: Steps) -> None:
    """By keyboard; and a page of somebody else shows it without being loaded by hand."""
    async with look(steps.browser, steps.replica) as other, look(steps.browser, steps.replica) as tab:
        for each in (other, tab):
            await each.open("/releases/baking/2")
            await each.is_live()
        await console_rollouts.start_more(steps.replica, "baking", 5)
        await expect(tab.page.locator("#steps")).to_contain_text("5 of 40 nodes at target")
        while await tab.focused() != "Pause":
            await tab.page.keyboard.press("Tab")
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("main .note--ok[role=status]")).to_contain_text("no further node starts")
        await expect(tab.page.locator("#verdict")).to_have_text("paused at step 2 of 4")
        # What may be done is something else now, and so is the page.
        await expect(other.page.get_by_role("button", name="Resume")).to_be_visible()
        await expect(other.page).to_have_title("paused at step 2 of 4 · baking 2 · Skerry")
        await tab.page.get_by_role("button", name="Resume").click()
        await expect(other.page.get_by_role("button", name="Pause")).to_be_visible()


async def test_without_a_script_a_held_release_is_rolled_back(steps: Steps) -> None:
    async with look(steps.browser, steps.replica, scripts=False) as tab:
        page = tab.page
        await tab.open("/")
        await page.get_by_role("link", name="Decide on gated 2").click()
        await page.get_by_role("link", name="Roll back …").click()
        await page.get_by_label("Type gated/2").fill("gated/1")
        await page.get_by_label("Why").fill("wrong prices")
        # Meanwhile somebody resumes it.
        await deploy.ok(steps.replica, "POST", "/v1/rollouts/gated/2/resume", {})
        await page.get_by_role("button", name="Roll back release 2").click()
        await expect(page.get_by_role("alert")).to_contain_text("plan_changed")
        await page.get_by_label("Type gated/2").fill("gated/1")
        await page.get_by_role("button", name="Roll back release 2").click()
        await expect(page.get_by_role("alert")).to_contain_text("type gated/2 to confirm it")
        await page.get_by_label("Type gated/2").fill("gated/2")
        assert await page.get_by_label("Why").input_value() == "wrong prices"
        await page.get_by_role("button", name="Roll back release 2").dblclick()
        await page.wait_for_url("**/releases/gated/2?done=rollback")
        await expect(page.locator("h1")).to_contain_text("rolled back at step 2 of 4")
        made = await deploy.items(steps.replica, "/v1/releases?group=gated")
        assert [release["number"] for release in made] == [3, 2, 1], "two clicks, one release"
        # The browser says that it was answered with 409 and 422; nothing else may be said.
        tab.said = [text for text in tab.said if "409" not in text and "422" not in text]


async def test_who_may_not_is_told_what_it_takes(steps: Steps) -> None:
    looker = {"name": "looker", "grants": [{"role": "read", "group": "rehearsed"}]}
    token = (await deploy.ok(steps.replica, "POST", "/v1/operators", looker))["token"]
    # A replica knows an operator from the first time that it asks.
    await deploy.ok(steps.replica, "GET", "/v1/groups", token=token)
    secret = await session_of(steps.replica, "looker")
    async with look(steps.browser, steps.replica, secret=secret) as tab:
        await tab.open("/releases/rehearsed/2")
        for name in ("Resume …", "Promote …", "Abort …"):
            act = tab.page.locator("main [aria-disabled=true]", has_text=name)
            await expect(act).to_have_text(f"{name} needs deploy")
        assert await tab.page.locator("main form[method=post]").count() == 0
        assert await tab.violations() == []
