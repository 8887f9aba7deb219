"""The real servers, each a separate process as a supervisor starts it: control with its services, and one node."""

import asyncio
import contextlib
import hashlib
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from control.cli.up.installation import OTHER_PORTS
from control.clock import SystemClock
from control.local import embedded, pki
from control.local.process import choose_port, ending_with_us
from control.storage import database, migrations
from edge_runtime.sync.join import join
from tests.support.environment import without_settings
from tests.support.services import remove_home

from . import cpu

LIMIT = 300.0
"""Seconds within which any awaited state must be reached, even on a busy machine."""
NODE = "edge-1"
GROUP = "default"


class Broken(Exception):
    """A server didn't start, exited, or answered wrongly; the message has the end of its log."""


def free_port() -> int:
    """Choose a port that nobody listens on."""
    return choose_port(None, OTHER_PORTS)


@dataclass
class Process:
    """A server in a Python process, on dedicated cores."""

    pid: int
    port: int
    log: Path

    def failure(self, text: str) -> Broken:
        """Return an error with this message and the end of the server's log."""
        return Broken(f"{text}; {self.log.name} ends with:\n{self.log.read_text()[-2000:]}")


@asynccontextmanager
async def process(
    folder: Path, name: str, arguments: Sequence[str], port: int, cores: set[int], **environment: str
) -> AsyncIterator[Process]:
    """Run `python ARGUMENTS` until the block ends; the block starts once it accepts connections on `port`."""
    settings = {**without_settings(), **environment}
    async with program(folder, name, [sys.executable, *arguments], port, cores, settings) as made:
        yield made


@asynccontextmanager
async def program(
    folder: Path,
    name: str,
    command: Sequence[str | Path],
    port: int,
    cores: set[int],
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Process]:
    """Run a server until the block ends; the block starts once it accepts connections on `port`. Its log is
    NAME.log."""
    log = folder / f"{name}.log"
    with log.open("wb") as file, cpu.pinned(cores):
        child = await asyncio.create_subprocess_exec(
            *ending_with_us(command), env=environment, stdout=file, stderr=file
        )
    made = Process(child.pid, port, log)
    try:
        deadline = time.monotonic() + LIMIT
        while not await _listens(port):
            if child.returncode is not None or time.monotonic() > deadline:
                raise made.failure(f"it doesn't take connections (status {child.returncode})")
            await asyncio.sleep(0.02)
        yield made
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                async with asyncio.timeout(LIMIT):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


@asynccontextmanager
async def folder() -> AsyncIterator[Path]:
    """Yield a folder with a home for the services in it; it is removed afterwards."""
    made = Path(tempfile.mkdtemp(prefix="skerry-bench-"))
    # So that PostgreSQL's user, if we are root, can reach it.
    made.chmod(0o711)
    try:
        yield made
    finally:
        remove_home(made / "home")
        shutil.rmtree(made, ignore_errors=True)


@dataclass
class Site:
    """A running control with TLS on a migrated database, and calls to it as an admin."""

    folder: Path
    services: embedded.LocalServices
    keys: pki.Pki
    control: Process
    api: aiohttp.ClientSession
    url: str
    settings: dict[str, str]
    """The variables of control's environment."""

    @property
    def tls(self) -> ssl.SSLContext:
        """Return a TLS context for clients of control."""
        return ssl.create_default_context(cafile=str(self.keys.ca))

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make a call that must succeed; return the answer's body. Bytes are sent as an artifact, the rest as JSON."""
        wasm = isinstance(body, bytes)
        headers = {"content-type": "application/wasm" if wasm else "application/json", "idempotency-key": str(uuid4())}
        data = body if wasm else orjson.dumps(body) if body is not None else None
        async with self.api.request(method, path, data=data, headers=headers) as answer:
            content = await answer.read()
            if answer.status >= 300:
                raise self.control.failure(f"{method} {path}: {answer.status} {content.decode()}")
            return orjson.loads(content) if content else None

    async def push(self, name: str, wasm: bytes, manifest: dict[str, Any]) -> int:
        """Upload a version of a function, and return its number."""
        sha256 = hashlib.sha256(wasm).hexdigest()
        await self.call("PUT", f"/v1/artifacts/{sha256}", wasm)
        made = await self.call("POST", f"/v1/functions/{name}/versions", {"sha256": sha256, "manifest": manifest})
        return int(made["version"])

    async def change(self, name: str, sql: str) -> None:
        """Register the next schema change."""
        await self.call("POST", "/v1/schema-changes", {"name": name, "sql": sql})

    async def release(self, functions: Mapping[str, int] | None = None, **more: Any) -> None:
        """Make a release, for all nodes at once, that changes these functions to these versions; `more` are additional
        fields of the request."""
        changed = {} if functions is None else {"functions": functions}
        await self.call("POST", "/v1/releases", {"now": True, **changed, **more})


@asynccontextmanager
async def database_and_keys(where: Path) -> AsyncIterator[tuple[embedded.LocalServices, pki.Pki, str]]:
    """Yield the services with a migrated metadata database, certificates, and an admin's token."""
    async with embedded.services(where / "home") as services:
        keys = pki.ensure(where / "pki")
        db = await database.connect(services.metadata_url, connections=1)
        try:
            await migrations.migrate(db, SystemClock())
            token = await migrations.make_admin(db, SystemClock())
        finally:
            await db.close()
        assert token is not None
        yield services, keys, token


@asynccontextmanager
async def site(where: Path, cores: set[int], **more: str) -> AsyncIterator[Site]:
    """Run `skerry serve` on these cores, with its services; `more` are additional environment variables."""
    async with database_and_keys(where) as (services, keys, token):
        port = free_port()
        settings = {
            "SKERRY_METADATA_URL": services.metadata_url,
            "SKERRY_ARTIFACTS_URL": services.artifacts_url,
            "SKERRY_PORT": str(port),
            "SKERRY_TLS_CERT": str(keys.certificate),
            "SKERRY_TLS_KEY": str(keys.key),
            "SKERRY_CA_CERT": str(keys.ca),
            "SKERRY_SPOOL": str(where),
            **more,
        }
        url = f"https://127.0.0.1:{port}"
        async with process(where, "control", ["-m", "control.cli", "serve"], port, cores, **settings) as control:
            tls = ssl.create_default_context(cafile=str(keys.ca))
            headers = {"authorization": f"Bearer {token}"}
            connector = aiohttp.TCPConnector(ssl=tls)
            async with aiohttp.ClientSession(url, connector=connector, headers=headers) as api:
                yield Site(where, services, keys, control, api, url, settings)


@asynccontextmanager
async def bare_control(site: Site, cores: set[int]) -> AsyncIterator[Process]:
    """Run the floor under control: its server and certificate, with an echo in place of its application."""
    port = free_port()
    arguments = ["-m", "bench.parts.echo", str(port), str(site.keys.certificate), str(site.keys.key)]
    async with process(site.folder, "floor", arguments, port, cores) as made:
        yield made


@dataclass
class Edge:
    """A node that has joined, run by `skerry-edge run`."""

    process: Process
    http: aiohttp.ClientSession

    async def status(self) -> Any:
        async with self.http.get("/_skerry/status") as answer:
            return orjson.loads(await answer.read())

    async def at_release(self, number: int, *, best: bool = False) -> Any:
        """Wait until the node reports this release (`best`: with all workers and best code); return its status."""
        deadline = time.monotonic() + LIMIT
        while True:
            status = await self.status()
            release = status["release"]
            there = release and release["number"] == number and status["at_target"]
            workers = status["workers"]
            fit = workers["fit"] == workers["wanted"] and all(function["best"] for function in status["functions"])
            if there and (fit or not best):
                return status
            if time.monotonic() > deadline:
                raise self.process.failure(f"the node isn't at release {number}: {status}")
            await asyncio.sleep(0.01)


@asynccontextmanager
async def edge(site: Site, cores: set[int], *, group: str = GROUP, **settings: str) -> AsyncIterator[Edge]:
    """Run a node of this control on these cores, the first of its group; `settings` are its environment variables."""
    token = (await site.call("POST", "/v1/join-tokens", {"group": group}))["token"]
    where, name = (site.folder, NODE) if group == GROUP else (site.folder / group, f"{group}-1")
    await join(where / "edge", site.url, token, name, {})
    async with started(where, "edge", cores, **settings) as node:
        yield node


@asynccontextmanager
async def started(where: Path, name: str, cores: set[int], **settings: str) -> AsyncIterator[Edge]:
    """Start, or restart, the joined node in the folder `where`; `name` is the name of its log."""
    port = free_port()
    arguments = ["-m", "edge_runtime.cli.main", "run", "--state", str(where / "edge"), "--listen", f"127.0.0.1:{port}"]
    running = process(where, name, arguments, port, cores, **settings)
    async with running as front, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield Edge(front, http)


@dataclass
class Alone:
    """A node that serves alone: control and its services have exited, and it has the cores to itself."""

    folder: Path
    node: Edge
    status: Any
    """The status when all of it was serving."""

    @property
    def port(self) -> int:
        return self.node.process.port

    @property
    def pids(self) -> list[int]:
        """The front's, and its workers'."""
        return [self.node.process.pid, *self.status["workers"]["pids"]]

    async def check(self) -> None:
        """Check that no worker has died meanwhile. Raises: Broken, when one has."""
        if sorted((await self.node.status())["workers"]["pids"]) != sorted(self.status["workers"]["pids"]):
            raise self.node.process.failure("a worker died meanwhile")


@asynccontextmanager
async def node_alone(
    functions: Mapping[str, tuple[bytes, dict[str, Any]]], schema: str = "", **settings: str
) -> AsyncIterator[Alone]:
    """Run a node alone, with all workers and best code.

    It has joined a real control, which has released its functions (module and manifest) and its one schema change and
    then exited. `settings` are the node's environment variables.
    """
    cores = cpu.all_cores()
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        async with site(where, cores) as control:
            node = await stack.enter_async_context(edge(control, cores, **settings))
            if schema:
                await control.change("schema", schema)
            versions = {name: await control.push(name, *function) for name, function in functions.items()}
            await control.release(versions)
            status = await node.at_release(1, best=True)
        yield Alone(where, node, status)


async def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False
