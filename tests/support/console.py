"""The console as a browser gets it, without one: pages, and the events of a live page."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from control.access import auth
from tests.support.deadlines import deadline
from tests.support.replica import Replica, TestNode

MARKUP = "<img src=x onerror=alert(1)>'\"&"
"""What a node may have in its labels and errors."""


@dataclass
class ShownPage:
    """A page as it came."""

    status: int
    text: str
    headers: Any

    def part(self, id: str) -> str:
        """The text of what is in an element of this id that has no element of its own name in it."""
        found = re.search(rf'<(\w+)[^>]* id="{id}"[^>]*>(.*?)</\1>', self.text, re.DOTALL)
        assert found, (id, self.text)
        return words(found[2])

    @property
    def words(self) -> str:
        """All its text, without markup."""
        return words(re.sub(r"(?s)<(svg|script|head)\b.*?</\1>", "", self.text))


def words(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


async def session_of(replica: Replica, name: str = "admin") -> str:
    """The secret of a new session of an operator, in a browser."""
    services = replica.services
    known = next(found for found in services.fleet.operators.values() if found.name == name)
    operator = auth.principal(known, services.clock.now())
    scope = {"type": "http", "client": ("127.0.0.1", 1), "request_id": b"test", "headers": []}
    return await services.sessions.begin(scope, operator, "console", "token")


async def page(control: Replica, path: str, *, token: str | None = None, cookie: str = "") -> ShownPage:
    """Get a page as the admin, with another `token`, or with a cookie alone."""
    headers = {"accept": "text/html"}
    if cookie:
        headers["cookie"] = cookie
    elif token != "":
        headers["authorization"] = f"Bearer {control.admin if token is None else token}"
    async with control.session.get(control.url + path, headers=headers, allow_redirects=False) as answer:
        return ShownPage(answer.status, await answer.text(), answer.headers)


async def send(
    control: Replica, path: str, *, token: str | None = None, headers: dict[str, str] | None = None, **fields: str
) -> ShownPage:
    """Send a form as a page of control's own would."""
    sent = {"accept": "text/html", "origin": control.url, **(headers or {})}
    if token != "" and "cookie" not in sent:
        sent["authorization"] = f"Bearer {control.admin if token is None else token}"
    async with control.session.post(control.url + path, headers=sent, data=fields, allow_redirects=False) as answer:
        return ShownPage(answer.status, await answer.text(), answer.headers)


@dataclass
class LivePage:
    """A stream of events, and what came in it."""

    answer: aiohttp.ClientResponse
    parts: dict[str, str] = field(default_factory=dict)
    """The newest of each part; also `title` and `kind`."""
    events: list[str] = field(default_factory=list)
    """The names of the events so far."""
    ended: bool = False

    async def until(self, check: Any, seconds: float | None = None) -> None:
        """Read events until `check(self)` is true. Raises: TimeoutError."""
        async with deadline(60, seconds):
            while not check(self):
                await self.read()

    async def read(self) -> None:
        """Read the next event, or see the stream's end."""
        lines = []
        while (line := (await self.answer.content.readline()).decode()).strip():
            lines.append(line.strip())
        if not lines:
            self.ended = True
            return
        name, data = lines[0].partition(": ")[2], json.loads(lines[1].partition(": ")[2])
        self.events.append(name)
        if name == "parts":
            self.parts |= data["parts"]
        elif name in ("title", "kind"):
            self.parts[name] = data


@contextlib.asynccontextmanager
async def live(control: Replica, path: str, *, token: str | None = None) -> AsyncIterator[LivePage]:
    """Be sent what changes on a page, until the block ends."""
    headers = {"authorization": f"Bearer {control.admin if token is None else token}"}
    # Parts are one long line each.
    async with (
        aiohttp.ClientSession(connector=control.session.connector, connector_owner=False, read_bufsize=1 << 24) as own,
        own.get(control.url + "/live", params={"page": path}, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        yield LivePage(answer)


async def release(replica: Replica, group: str) -> None:
    """A release that nodes have something to do for."""
    for path, body in (
        ("schema-changes", {"name": "first", "sql": "CREATE TABLE t (a)"}),
        ("releases", {"group": group, "now": True}),
    ):
        answer = await replica.call("POST", f"/v1/{path}", body)
        assert answer.status == 201, answer.body


async def fails(node: TestNode, code: str, message: str) -> None:
    """Have a node begin a sync, and report that it failed."""
    plan = await node.plan()
    answer = await node.report(plan.sync_id, "failed", error={"code": code, "message": message})
    assert answer.status == 200, answer.body
