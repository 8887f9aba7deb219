"""`skerry login`, `logout` and `console`, as programs, with somebody at a browser."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control.access.sessions import COOKIE
from control.local.pki import Pki
from tests.support.control import Control, until
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.deadlines import deadline
from tests.support.environment import without_settings


@dataclass
class Terminal:
    """Commands with a folder of their own for what is kept, and nothing of SKERRY in their environment."""

    folder: Path
    more: dict[str, str]

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        kept = without_settings()
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control.cli", *arguments),
            env={**kept, "PYTHONPATH": os.getcwd(), "XDG_CONFIG_HOME": str(self.folder), **self.more},
            cwd=self.folder,
            stdout=pipe,
            stderr=pipe,
        )

    async def run(self, *arguments: str, ends: int = 0) -> str:
        """What a command says, to stdout and stderr together."""
        process = await self.start(*arguments)
        out, err = await process.communicate()
        text = out.decode() + err.decode()
        assert process.returncode == ends, text
        return text


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, {})


@pytest.fixture
async def browser(control: Control) -> AsyncIterator[ConsoleBrowser]:
    connector, jar = control.session.connector, aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, connector_owner=False, cookie_jar=jar) as session:
        yield ConsoleBrowser(control.url, session)


async def log_in(
    terminal: Terminal, browser: ConsoleBrowser, *arguments: str, answer: str = "allow"
) -> tuple[int, str]:
    """Run `skerry login`, whose code somebody types; its exit code and what it says."""
    process = await terminal.start("login", *arguments)
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    found = re.search(r"open (\S+) in a browser, and type the code (\S+) there", line)
    assert found, line + (await process.stderr.read()).decode()
    await browser.open(found[1])
    await browser.send("/login", code=found[2])
    await browser.send("/login", answer=answer)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode() + err.decode()


async def test_a_login_is_kept_used_and_ended(
    control: Control, terminal: Terminal, browser: ConsoleBrowser, pki: Pki
) -> None:
    token = await control.operator("anna", "deploy")
    await terminal.run("group", "list", ends=2)
    await browser.sign_in(token)
    code, said = await log_in(terminal, browser, control.url, "--ca", str(pki.ca))
    assert code == 0, said
    assert f"signed in to {control.url} as anna until " in said
    assert "(in 12 h)" in said
    kept = terminal.folder / "skerry" / "logins.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    secret = json.loads(kept.read_text())[0]["token"]
    assert secret not in said
    await terminal.run("group", "create", "north")
    (row,) = [r for r in await control.items("/v1/audit?actor=anna") if r["action"] == "group.create"]
    assert (row["details"]["session"]["in"], row["details"]["session"]["by"]) == ("cli", "token")
    # In another folder, too, and for the control that SKERRY_URL names; but for no other one.
    terminal.more = {"SKERRY_URL": control.url}
    await terminal.run("group", "list")
    terminal.more = {"SKERRY_URL": "https://127.0.0.1:1"}
    assert "no token for https://127.0.0.1:1" in await terminal.run("group", "list", ends=2)
    terminal.more = {}
    following = await terminal.start("logs", "-f")

    async def begun() -> bool:
        return any(view.begun for view in control.services.watching.views.values())

    await until(begun)
    assert "signed out of" in await terminal.run("logout")
    async with deadline(30):
        said = (await following.communicate())[1].decode()
    assert (following.returncode, "session_ended" in said, "run `skerry login`" in said) == (3, True, True), said
    assert (await control.call("GET", "/v1/groups", token=secret)).code == "session_ended"
    assert "skerry login" in await terminal.run("group", "list", ends=2)
    await terminal.run("logout", ends=2)


async def test_a_login_that_has_ended_says_what_to_do(
    control: Control, terminal: Terminal, browser: ConsoleBrowser, pki: Pki
) -> None:
    await browser.sign_in(control.token)
    terminal.more = {"SKERRY_CA": str(pki.ca), "SKERRY_URL": control.url}
    code, said = await log_in(terminal, browser, "--json")
    assert code == 0, said
    assert '"operator": "admin"' in said
    control.clock.advance(hours=13)
    said = await terminal.run("group", "list", ends=3)
    assert "session_ended" in said
    assert "run `skerry login`" in said
    kept = terminal.folder / "skerry" / "logins.json"
    # Its end, whose year isn't now's for ever.
    kept.write_text(re.sub(r'"20\d\d-', '"2020-', kept.read_text()))
    said = await terminal.run("group", "list", ends=2)
    assert "run `skerry login` again" in said
    # What has ended at control is forgotten all the same.
    await terminal.run("logout")
    kept.write_text("{")
    assert "can't be read" in await terminal.run("group", "list", ends=2)


async def test_a_login_that_is_refused(control: Control, terminal: Terminal, browser: ConsoleBrowser, pki: Pki) -> None:
    await browser.sign_in(control.token)
    code, said = await log_in(terminal, browser, control.url, "--ca", str(pki.ca), answer="refuse")
    assert (code, "login_refused" in said) == (3, True)
    assert not (terminal.folder / "skerry").exists()


async def test_a_code_for_the_console(control: Control, terminal: Terminal, browser: ConsoleBrowser, pki: Pki) -> None:
    terminal.more = {"SKERRY_CA": str(pki.ca), "SKERRY_URL": control.url, "SKERRY_TOKEN": control.token}
    made: dict[str, Any] = json.loads(await terminal.run("console", "--json"))
    await browser.open(made["url"])
    await browser.send("/sign-in", code=made["code"])
    assert COOKIE in browser.cookies
    assert re.search(r"type the code [A-Z]{4}-[A-Z]{4} there", await terminal.run("console"))


@pytest.mark.parametrize(
    "url",
    ["http://control.example", "http://127.control.example", "ftp://127.0.0.1", "control.example", "https://[::1"],
)
async def test_a_secret_goes_by_https_alone(terminal: Terminal, url: str) -> None:
    assert "must be an https URL" in await terminal.run("login", url, ends=2)
