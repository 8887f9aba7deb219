"""A real OpenID provider for tests: npm's certified `oidc-provider` under node, and what a person does at its pages.

`scripts/openid-provider` installs it.
"""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp

from control.local.process import ending_with_us
from tests.support.control import Control, running
from tests.support.deadlines import deadline
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "lock" / "oidc" / "node_modules" / "oidc-provider" / "lib" / "index.js"
CLIENT_ID = "skerry"
CLIENT_SECRET = "a secret: of / the client"


@dataclass
class OpenIdProvider:
    """The provider: its issuer, and its accounts: claims by login."""

    port: int
    redirect_uri: str
    accounts: dict[str, dict[str, Any]]
    more: dict[str, Any] = field(default_factory=dict)
    _process: asyncio.subprocess.Process | None = None

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, with keys that it has just made."""
        client = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "redirect_uris": [self.redirect_uri],
            "response_types": ["code"],
            "grant_types": ["authorization_code"],
        }
        options = {"port": self.port, "issuer": self.issuer, "client": client, "accounts": self.accounts, **self.more}
        script = Path(__file__).with_name("openid_provider.mjs")
        program = shutil.which("node")
        assert program is not None, "scripts/openid-provider installs node"
        self._process = await asyncio.create_subprocess_exec(
            *ending_with_us([program, str(script), MODULE.as_uri(), json.dumps(options)]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with deadline(60):
            assert await self._process.stdout.readline() == b"listens\n"

    async def stop(self) -> None:
        """End it, with all that it knows."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@contextlib.asynccontextmanager
async def provider(control_url: str, accounts: dict[str, dict[str, Any]], **more: Any) -> AsyncIterator[OpenIdProvider]:
    """A provider that knows the console at this URL as its client."""
    made = OpenIdProvider(free_port(), f"{control_url}/sign-in/provider/done", accounts, more)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@contextlib.asynccontextmanager
async def control_beside(
    host: str, accounts: dict[str, dict[str, Any]], grants: str, folder: Path, *servers: Any, **more: Any
) -> AsyncIterator[tuple[Control, OpenIdProvider, str]]:
    """A control at `host`, a provider that knows it, and the control's URL.

    `grants` says what the provider's groups may; `folder` is for the files of both; `servers` and `more` are as
    `running` takes them.
    """
    port = free_port()
    url = f"https://{host}:{port}"
    (folder / "secret").write_text(CLIENT_SECRET + "\n")
    (folder / "grants.toml").write_text(grants)
    async with (
        provider(url, accounts) as made,
        running(
            *servers,
            port=port,
            public_url=url,
            oidc_issuer=made.issuer,
            oidc_client_id=CLIENT_ID,
            oidc_client_secret=folder / "secret",
            oidc_scopes="openid profile groups",
            oidc_grants=folder / "grants.toml",
            **more,
        ) as control,
    ):
        yield control, made, url


async def pass_through(address: str, login: str, *, allow: bool = True) -> str:
    """Sign in at the provider's pages in a browser of its own; returns where it sends the browser back to."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        method, form = "GET", None
        for _ in range(12):
            async with session.request(method, address, data=form, allow_redirects=False) as answer:
                text, to = await answer.text(), answer.headers.get("location")
            if to is not None:
                to = urljoin(address, to)
                if "/sign-in/provider/done" in to:
                    return to
                method, address, form = "GET", to, None
                continue
            found = re.search(r'<form[^>]* action="([^"]+)"', text)
            assert found, (answer.status, text)
            if not allow:
                method, address, form = "GET", urljoin(address, found[1]) + "/abort", None
                continue
            login_page = 'name="login"' in text
            form = {"prompt": "login", "login": login, "password": "x"} if login_page else {"prompt": "consent"}
            method, address = "POST", urljoin(address, found[1])
    raise AssertionError(f"the provider leads round in a circle: {address}")
