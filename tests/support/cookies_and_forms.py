"""What a browser does that matters for signing in: cookies by their rules, Origin, redirects; without a browser."""

import re
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from tests.support.console import ShownPage


@dataclass
class ConsoleBrowser:
    """One browser at one control."""

    url: str
    session: aiohttp.ClientSession
    cookies: dict[str, str] = field(default_factory=dict)
    at: str = ""
    """The address of the page that is shown."""
    shown: ShownPage = None  # type: ignore[assignment]

    async def open(self, path: str) -> ShownPage:
        """Open an address of control's, and where it leads to there."""
        return await self._go("GET", urljoin(self.url, path), None, {})

    async def send(self, path: str, *, headers: dict[str, str] | None = None, **fields: str) -> ShownPage:
        """Send a form of the page that is shown: its hidden fields, and these."""
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', self.shown.text))
        sent = {"origin": self.url, "sec-fetch-site": "same-origin"} if headers is None else headers
        return await self._go("POST", urljoin(self.url, path), {**hidden, **fields}, sent)

    async def sign_in(self, token: str, **fields: str) -> ShownPage:
        """Sign in by a token, at the page for it."""
        await self.open("/sign-in")
        return await self.send("/sign-in", token=token, **fields)

    async def _go(self, method: str, url: str, fields: dict[str, str] | None, headers: dict[str, str]) -> ShownPage:
        for _ in range(5):
            self.at = url
            sent = {"accept": "text/html", **headers}
            if self.cookies:
                sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            async with self.session.request(method, url, data=fields, headers=sent, allow_redirects=False) as answer:
                self.shown = ShownPage(answer.status, await answer.text(), answer.headers)
                for line in answer.headers.getall("set-cookie", []):
                    self._keep(line)
            to = answer.headers.get("location")
            if answer.status != 303 or to is None:
                return self.shown
            if urlsplit(urljoin(url, to)).netloc != urlsplit(self.url).netloc:
                self.at = to
                return self.shown
            method, url, fields, headers = "GET", urljoin(url, to), None, {}
        raise AssertionError(f"it leads round in a circle: {url}")

    def _keep(self, line: str) -> None:
        jar: Any = SimpleCookie(line)
        for name, morsel in jar.items():
            if name.startswith("__Host-"):
                assert (morsel["secure"], morsel["path"], morsel["domain"]) == (True, "/", ""), line
                assert (morsel["httponly"], morsel["samesite"]) == (True, "Lax"), line
            if morsel["max-age"] == "0":
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = morsel.value
