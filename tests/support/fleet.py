"""A fleet as operators have one: replicas of control behind a balancer, real edges, and simulated nodes.

Replicas and edges are processes of their own, which a supervisor starts again when they have ended, as systemd does.
Everything listens on 127.0.0.1, and is gone when the block ends, or this process does.
"""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from control.clock import SystemClock
from control.local import embedded, pki
from control.storage import database, migrations
from edge_runtime.sync.join import join
from tests.support.balancer import balancing
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.services import POSTGRESQL, home_folder, like_cockroachdb, with_errors
from tests.support.simulated_nodes import Nature, SimulatedNodes
from tests.support.supervised import Supervised

LIMIT = 60.0
"""Seconds for anything that must come to be."""
JOINS = 20
"""Nodes that join at once."""
SHOWN = 30
"""Lines of each log in a failure's message."""


@dataclass
class FleetEdge:
    """A real node: `skerry-edge run` under a supervisor."""

    name: str
    program: Supervised
    url: str
    """Of its local HTTP."""
    state: Path


@dataclass
class Fleet:
    """A running fleet, and its admin."""

    folder: Path
    services: embedded.LocalServices
    replicas: list[Supervised]
    urls: list[str]
    """Of the replicas."""
    url: str
    """Of the balancer."""
    token: str
    """The admin's."""
    ca: Path
    session: aiohttp.ClientSession
    """Trusts control."""
    simulated: SimulatedNodes
    edges: dict[str, FleetEdge] = field(default_factory=dict)

    @property
    def faults(self) -> Path:
        """Return the folder of control's and the edges' fault points."""
        return self.folder / "faults"

    # Control, as an operator

    async def call(self, method: str, path: str, body: Any = None, *, refused: str = "") -> Any:
        """Return the body of a success; asked again, under one idempotency key, until a replica answers.

        Bytes are sent as an artifact, the rest as JSON. With `refused`, a problem with that code is an answer too, and
        None is returned.
        """
        wasm = isinstance(body, bytes)
        headers = {"authorization": f"Bearer {self.token}", "idempotency-key": str(uuid4())}
        headers["content-type"] = "application/wasm" if wasm else "application/json"
        data = body if wasm else orjson.dumps(body) if body is not None else None
        last, turn = "", 0
        async with deadline(LIMIT):
            while True:
                url = self.urls[turn % len(self.urls)]
                turn += 1
                try:
                    async with self.session.request(method, url + path, data=data, headers=headers) as answer:
                        content = await answer.read()
                        if answer.status < 300:
                            return orjson.loads(content) if content else None
                        last = f"{answer.status} {content.decode()}"
                        if refused and f'"{refused}"' in last:
                            return None
                        if answer.status not in (429, 502, 503):
                            raise self.failure(f"{method} {path}: {last}")
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    last = repr(error)
                await asyncio.sleep(0.05)
        raise self.failure(f"{method} {path} had no answer for {LIMIT:.0f} s; last {last}")

    async def items(self, path: str) -> list[Any]:
        """Return all items of a list."""
        found: list[Any] = []
        more, cursor = "&" if "?" in path else "?", ""
        while True:
            page = await self.call("GET", f"{path}{more}limit=1000{cursor}")
            found += page["items"]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    async def push(self, name: str, wasm: bytes, **manifest: Any) -> int:
        """Upload a version of a function, and return its number."""
        sha256 = hashlib.sha256(wasm).hexdigest()
        await self.call("PUT", f"/v1/artifacts/{sha256}", wasm)
        made = await self.call("POST", f"/v1/functions/{name}/versions", {"sha256": sha256, "manifest": manifest})
        return int(made["version"])

    async def change(self, name: str, sql: str) -> int:
        """Register the next schema change, and return its number."""
        return int((await self.call("POST", "/v1/schema-changes", {"name": name, "sql": sql}))["number"])

    async def release(self, functions: dict[str, int] | None = None, **more: Any) -> int:
        """Make a release of the group `default`, and return its number; `more` are further fields of the request."""
        body = {"functions": functions or {}, **more}
        return int((await self.call("POST", "/v1/releases", body))["number"])

    # Nodes

    async def add_simulated(self, names: list[str], label: Callable[[str], dict[str, str]] = lambda name: {}) -> None:
        """Join simulated nodes, and start them; `label` returns a node's labels."""
        slots = asyncio.Semaphore(JOINS)

        async def add(name: str) -> None:
            async with slots:
                token = (await self.call("POST", "/v1/join-tokens", {}))["token"]
                await self.simulated.add(name, token, label(name))

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(add(name))

    async def at_release(self, number: int, *, nodes: int, limit: float = LIMIT) -> None:
        """Wait until so many nodes of the group `default` run this release, by control's account."""
        found: list[Any] = []

        async def there() -> bool:
            found[:] = await self.items(f"/v1/nodes?group=default&release={number}")
            return len(found) >= nodes

        await self.until(f"{nodes} nodes run release {number}", there, lambda: len(found), limit=limit)

    # Faults

    def arm(self, point: str, action: str) -> None:
        """`hold` or `kill` the process that comes to the fault point next."""
        (self.faults / f"{point}.held").unlink(missing_ok=True)
        made = self.faults / f"{point}.made"
        made.write_text(action)
        made.rename(self.faults / point)

    def disarm(self) -> None:
        """Let go what is held, and have nothing be armed any more."""
        for file in self.faults.iterdir():
            file.unlink(missing_ok=True)

    async def reached(self, point: str, limit: float = LIMIT) -> int:
        """Wait until a process has come to the fault point; return its id."""
        held = self.faults / f"{point}.held"

        async def there() -> bool:
            return held.exists()

        await self.until(f"a process comes to {point}", there, limit=limit)
        return int(held.read_text())

    # Failures

    async def until(
        self,
        what: str,
        condition: Callable[[], Awaitable[bool]],
        seen: Callable[[], Any] = lambda: "",
        *,
        limit: float = LIMIT,
        pause: float = 0.1,
    ) -> None:
        """Wait until `condition()`; a failure says what was seen last, and what the logs say."""
        try:
            async with deadline(limit):
                while not await condition():
                    self.simulated.check()
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise self.failure(f"after {limit:.0f} s it still wasn't so that {what}; last seen: {seen()}") from None

    def failure(self, text: str) -> AssertionError:
        """Return an error with this message and the ends of the logs."""
        programs = [*self.replicas, *(edge.program for edge in self.edges.values())]
        tails = [f"--- {each.log.name}, ends {each.ends}\n{_tail(each.log)}" for each in programs]
        return AssertionError("\n".join([text, *tails]))


@asynccontextmanager
async def fleet(
    *, replicas: int = 2, edges: int = 0, nature: Nature | None = None, **settings: str
) -> AsyncIterator[Fleet]:
    """Run a fleet without simulated nodes until the block ends. `settings` are more of the replicas' environment."""
    async with AsyncExitStack() as stack:
        home = stack.enter_context(home_folder())
        folder = home.parent
        (folder / "faults").mkdir()
        services = await stack.enter_async_context(embedded.services(home, POSTGRESQL))
        metadata_url = stack.enter_context(like_cockroachdb(services.metadata_url))
        keys = pki.ensure(folder / "pki")
        db = await database.connect(metadata_url, connections=1)
        try:
            await migrations.migrate(db, SystemClock())
            token = await migrations.make_admin(db, SystemClock())
        finally:
            await db.close()
        ports = [free_port() for _ in range(replicas)]
        balancer = await stack.enter_async_context(balancing(ports))
        environment = {
            "SKERRY_METADATA_URL": with_errors(metadata_url),
            "SKERRY_ARTIFACTS_URL": services.artifacts_url,
            "SKERRY_TLS_CERT": str(keys.certificate),
            "SKERRY_TLS_KEY": str(keys.key),
            "SKERRY_CA_CERT": str(keys.ca),
            "SKERRY_SPOOL": str(folder),
            "SKERRY_FAULTS": str(folder / "faults"),
            **settings,
        }
        held = stack.enter_context((folder / "programs.lock").open("w"))
        programs = [
            Supervised(
                f"control-{number}",
                ["control.cli", "serve"],
                {**environment, "SKERRY_PORT": str(port)},
                folder,
                held.fileno(),
            )
            for number, port in enumerate(ports, 1)
        ]
        tls = ssl.create_default_context(cafile=str(keys.ca))
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0), timeout=aiohttp.ClientTimeout(60)
        )
        await stack.enter_async_context(session)
        urls = [f"https://127.0.0.1:{port}" for port in ports]
        simulated = SimulatedNodes(nature or Nature(), session, urls)
        made = Fleet(
            folder, services, programs, urls, f"https://127.0.0.1:{balancer}", token or "", keys.ca, session, simulated
        )
        supervising = [asyncio.create_task(program.run()) for program in programs]
        try:
            for number in range(1, edges + 1):
                supervising.append(await _start_edge(made, f"edge-{number}", held.fileno()))
            yield made
        finally:
            made.disarm()
            await simulated.end()
            # Edges first: they report to control what they have counted.
            for task in reversed(supervising):
                task.cancel()
            await asyncio.gather(*supervising, return_exceptions=True)


async def _start_edge(made: Fleet, name: str, lock: int) -> "asyncio.Task[None]":
    """Join an edge and start it; its supervisor's task is returned."""
    local, state = f"127.0.0.1:{free_port()}", made.folder / name
    token = (await made.call("POST", "/v1/join-tokens", {}))["token"]
    await join(state, made.url, token, name, {"kind": "real"})
    run = ["edge_runtime.cli.main", "run", "--state", str(state), "--listen", local, "--workers", "1"]
    program = Supervised(name, run, {"SKERRY_FAULTS": str(made.faults)}, made.folder, lock)
    made.edges[name] = FleetEdge(name, program, f"http://{local}", state)
    return asyncio.create_task(program.run())


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:])
    except OSError as error:
        return str(error)
