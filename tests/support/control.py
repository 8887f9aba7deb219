"""A control plane in the test's own process, on real servers and over TLS, and a client of its API."""

import asyncio
import contextlib
import hashlib
import io
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from control.api.services import Services
from control.local.pki import Pki
from control.web.server import ControlServer
from tests.support import repeating, replica
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.ways import at_once


@dataclass
class Reply:
    """An answer: its JSON as `body`, or its bytes where it is something else."""

    status: int
    body: Any
    headers: Any

    @property
    def code(self) -> str:
        """The problem's code; an answer that is no problem fails the test."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.body)
        assert self.body["status"] == self.status
        return str(self.body["code"])


@dataclass
class Joined:
    """A node that has joined."""

    id: str
    name: str
    credential: str


@dataclass
class Control:
    """A running replica of control, and calls to it as its admin."""

    server: ControlServer
    token: str
    clock: SetClock
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def services(self) -> Services:
        return self.server.app.services

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        token: str | None = None,
        data: Any = None,
        key: str = "",
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Make a request as the admin, or with another `token` ('' for none)."""
        sent = dict(headers or {})
        if not key and method in ("POST", "DELETE"):
            key = repeating.key()
        token = self.token if token is None else token
        if token:
            sent.setdefault("authorization", f"Bearer {token}")
        if key:
            sent["idempotency-key"] = key
        if json is not None:
            data = orjson.dumps(json)
            sent.setdefault("content-type", "application/json")

        async def ask() -> Reply:
            # Large bytes must come as a file.
            body = io.BytesIO(data) if isinstance(data, bytes) else data
            async with self.session.request(
                method, self.url + path, data=body, headers=sent, allow_redirects=False
            ) as response:
                content = await response.read()
                is_json = "/json" in (kind := response.headers.get("content-type", "")) or "+json" in kind
                found = orjson.loads(content) if is_json and content else content
                return Reply(response.status, found, response.headers)

        return await repeating.answered(ask, lambda reply: reply.status == 503 and reply.body)

    async def ok(self, method: str, path: str, json: Any = None, **more: Any) -> Any:
        """The body of an answer that must be a success."""
        reply = await self.call(method, path, json, **more)
        assert 200 <= reply.status < 300, (method, path, reply.status, reply.body)
        return reply.body

    async def items(self, path: str) -> list[Any]:
        """All items of a list, page by page."""
        found: list[Any] = []
        cursor = None
        while True:
            page = await self.ok("GET", f"{path}{'&' if '?' in path else '?'}cursor={cursor}" if cursor else path)
            found += page["items"]
            cursor = page["next"]
            if cursor is None:
                return found

    async def upload(self, wasm: bytes) -> str:
        """Upload an artifact and return its sha256."""
        sha256 = hashlib.sha256(wasm).hexdigest()
        await self.ok("PUT", f"/v1/artifacts/{sha256}", data=wasm, headers={"content-type": "application/wasm"})
        return sha256

    async def push(self, name: str, wasm: bytes, **manifest: Any) -> Any:
        """Upload and make a version; returns it."""
        sha256 = await self.upload(wasm)
        return await self.ok("POST", f"/v1/functions/{name}/versions", {"sha256": sha256, "manifest": manifest})

    async def release(self, **body: Any) -> Any:
        """Make a release of the fields in `body`, and return it."""
        return await self.ok("POST", "/v1/releases", {**at_once(body), **body})

    async def join(self, name: str, group: str = "default", **more: Any) -> Joined:
        """Make a token and join with it, and with `more` fields."""
        token = (await self.ok("POST", "/v1/join-tokens", {"group": group}))["token"]
        body = {"name": name, "attempt": str(uuid4()), **more}
        joined = await self.ok("POST", "/v1/nodes", body, token=token)
        return Joined(joined["node_id"], name, joined["credential"])

    async def operator(self, name: str, role: str) -> str:
        """Make an operator and return its token."""
        return str((await self.ok("POST", "/v1/operators", {"name": name, "role": role}))["token"])


@contextlib.asynccontextmanager
async def running(database_url: str, artifacts_url: str, pki: Pki, **settings: Any) -> AsyncIterator[Control]:
    """Run a replica on a database of `services.fresh_database` or an empty one, and an empty bucket, until the block
    ends. The test can move the replica's clock on.
    """
    clock = SetClock(time="run")
    site = await replica.prepare(database_url, artifacts_url, pki, Path(tempfile.gettempdir()))
    async with site.running(clock=clock, **settings) as found:
        yield Control(found.server, site.admin, clock, found.session)


async def until(check: Any, seconds: float | None = None) -> Any:
    """Wait until `check()` (a coroutine function) returns something true, and return that."""
    async with deadline(60, seconds):
        while True:
            found = await check()
            if found:
                return found
            await asyncio.sleep(0.02)


def module(text: str = "") -> bytes:
    """A tiny module that nodes can run; another `text`, other bytes."""
    # (module (memory (export "memory") 1) (func (export "_start"))), then a custom section with the text
    base = bytes.fromhex(
        "0061736d01000000 010401600000 03020100 0503010001 071302066d656d6f72790200065f73746172740000 0a040102000b"
    )
    name = b"text" + text.encode()
    section = bytes([4]) + name
    return base + b"\x00" + _leb(len(section)) + section


def _leb(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)
