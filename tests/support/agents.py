"""A real control in the test's process, an operator's calls to it, and nodes that have joined it."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from control.local.pki import Pki
from control.protocol import wire
from control.settings import ControlSettings
from control.web.server import ControlServer
from edge_runtime.front import Front
from edge_runtime.settings import EdgeSettings as EdgeSettings
from edge_runtime.state import State
from edge_runtime.sync import identity
from edge_runtime.sync.agent import Agent
from edge_runtime.sync.control_client import ControlClient
from edge_runtime.sync.join import join
from edge_runtime.wasmedge import QUICK
from tests.support import moved_clock, replica
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.services import admin_of
from tests.support.ways import at_once

DEADLINE = 60.0


class Refused(Exception):
    """Control's problem+json."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(str(problem))
        self.code = problem["code"]


@dataclass
class Control:
    """A running control, and an admin's session to it."""

    settings: ControlSettings
    pki: Pki
    token: str
    http: aiohttp.ClientSession
    server: ControlServer
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        """The URL of control, over TLS."""
        return f"https://127.0.0.1:{self.settings.port}"

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Make a call as the admin; return the answer's JSON, None for none.

        Raises: Refused, when control answers with a problem.
        """
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": str(uuid4())}
        url = f"{self.url}/v1/{path}"
        async with self.http.request(method, url, json=body, headers=headers, **more) as answer:
            found = await answer.json(content_type=None) if answer.status != 204 else None
            if answer.status >= 300:
                raise Refused(found)
            return found

    async def join_token(self, **body: Any) -> str:
        """Make a join token and return it."""
        return str((await self.call("POST", "join-tokens", body))["token"])

    async def push(self, name: str, wasm: bytes, manifest: dict[str, Any] | None = None) -> int:
        """Upload a version of a function; its number."""
        sha256 = hashlib.sha256(wasm).hexdigest()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/wasm"}
        async with self.http.put(f"{self.url}/v1/artifacts/{sha256}", data=wasm, headers=headers) as answer:
            assert answer.status in (200, 201), await answer.text()
        made = await self.call("POST", f"functions/{name}/versions", {"sha256": sha256, "manifest": manifest or {}})
        return int(made["version"])

    async def release(self, **body: Any) -> Any:
        """Make a release of the fields in `body`, and return it."""
        return await self.call("POST", "releases", {**at_once(body), **body})

    async def node(self, name: str = "edge-1") -> Any:
        """Return a node as control sees it."""
        return await self.call("GET", f"nodes/{name}")

    async def until(self, condition: Callable[[Any], bool], name: str = "edge-1") -> Any:
        """The node as control sees it, as soon as `condition` holds for it."""
        node: Any = None
        try:
            async with deadline(DEADLINE):
                while not condition(node := await self.node(name)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"in {DEADLINE:.0f} s it never came true for {node}") from None
        return node

    async def start(self) -> None:
        """Start the server (again), on the port that it had."""
        self.server, self.task = await replica.start(self.settings)

    async def stop(self) -> None:
        """End the server in order, and wait for its end."""
        self.server.should_exit = True
        await self.task


@asynccontextmanager
async def running_control(database_url: str, bucket_url: str, pki: Pki, **more: Any) -> AsyncIterator[Control]:
    """Run a control until the block ends, over TLS on a free port; it needs an empty database and bucket."""
    settings = ControlSettings(
        metadata_url=database_url,
        artifacts_url=bucket_url,
        port=free_port(),
        tls_cert=pki.certificate,
        tls_key=pki.key,
        ca_cert=pki.ca,
        **more,
    )
    token = await admin_of(database_url)
    server, task = await replica.start(settings)
    tls = ssl.create_default_context(cafile=str(pki.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
        control = Control(settings, pki, token, http, server, task)
        try:
            yield control
        finally:
            await control.stop()


async def joined(control: Control, state: Path, name: str = "edge-1", **token: Any) -> identity.Identity:
    """Join a node that control doesn't know yet: write its identity into `state`, and return it."""
    return await join(state, control.url, await control.join_token(**token), name, {}, pause=0.01)


@dataclass
class Edge:
    """A node's front with its agent, in the test's process, on real workers."""

    front: Front
    agent: Agent
    http: aiohttp.ClientSession

    async def call(self, path: str) -> tuple[int, bytes]:
        """Call a function; return status and body."""
        async with self.http.get(f"/functions/{path}") as answer:
            return answer.status, await answer.read()

    async def status(self) -> Any:
        """Return the node's own status."""
        async with self.http.get("/_skerry/status") as answer:
            assert answer.status == 200
            return await answer.json()

    async def until(self, condition: Callable[[Any], Any], limit: float | None = None) -> Any:
        """The node's own status, as soon as `condition` holds for it."""
        found: Any = None
        try:
            async with deadline(DEADLINE, limit):
                while not condition(found := await self.status()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"in {limit or DEADLINE:.0f} s it never came true for {found}") from None
        return found


@asynccontextmanager
async def edge(state: Path, *, otlp_url: str = "", **agent: Any) -> AsyncIterator[Edge]:
    """Run the joined node of this state directory until the block ends; `agent` are settings of its agent."""
    made: list[Agent] = []

    def make(runtime: Any, compiler: Any) -> Agent:
        made.append(Agent(state, identity.read(state), runtime, compiler, **agent))
        return made[0]

    # A process of the node before, which is in the background, may take a while to end on a busy machine.
    with State(state, DEADLINE) as opened:
        settings = EdgeSettings(
            state=state, workers=1, listen="127.0.0.1:0", stop_limit=2.0, compile_wait=60.0, otlp_url=otlp_url
        )
        front = Front(settings, opened, make)
        front.compiler.best = QUICK
        running = asyncio.ensure_future(front.run())
        try:
            async with deadline(DEADLINE):
                while not front.ready.is_set():
                    if running.done():
                        running.result()
                    await asyncio.sleep(0.01)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{front.port}") as http:
                yield Edge(front, made[0], http)
        finally:
            moved_clock.let_go()
            front.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await running


def change_plans(monkeypatch: pytest.MonkeyPatch, change: Callable[[wire.Plan], None]) -> None:
    """Have `change` change each plan that control answers a poll with, before the node sees it."""
    real = ControlClient.poll

    async def changed(self: ControlClient, poll: wire.Poll) -> wire.Answer | None:
        answer = await real(self, poll)
        if isinstance(answer, wire.Plan):
            change(answer)
        return answer

    monkeypatch.setattr(ControlClient, "poll", changed)
