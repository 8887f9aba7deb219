"""Replicas of control in the test's own loop: real TLS on a free port, the real database and store."""

import asyncio
import io
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
import msgspec
import orjson
import pytest

from control.api.services import Services
from control.clock import Clock
from control.local.pki import Pki
from control.problems import ProblemError
from control.protocol import wire
from control.settings import ControlSettings
from control.storage import connection_quotas
from control.sync import fleet_cache, monitor
from control.telemetry import fleet_summary, recent_calls, shared_reading
from control.telemetry.watching import watch_service
from control.web import lifespan
from control.web.server import ControlServer
from edge_runtime.sync import capabilities
from tests.support import repeating, services
from tests.support.clock import SetClock
from tests.support.deadlines import deadline


def wait_longer(patch: pytest.MonkeyPatch) -> None:
    """Have replicas wait longer for what a busy machine may hold up: requests for a connection to the database, whose
    disk may take seconds for a COMMIT, requests for a reading of the targets, and a start for the store, without which
    it serves before it knows who was revoked."""
    patch.setattr(fleet_cache, "READING_PATIENCE", 15.0)
    patch.setattr(connection_quotas, "WAIT", 15.0)
    patch.setattr(lifespan, "STORE_PATIENCE", 60.0)


def deaf() -> SetClock:
    """The clock of a replica that hears of no change, and believes what it knows, however long a test takes."""
    return SetClock(time="run", timers="stand")


UNASKED: Final = {
    "access lists",
    "backups",
    "bucket's owner",
    "heartbeats",
    "monitor",
    "numbers",
    "refusals",
    "rollouts",
    "sessions",
    "uses of tokens",
    "webhooks",
}
"""The background tasks of a replica that write without being asked; a replica answers all requests without them."""


def silence(patch: pytest.MonkeyPatch, named: Collection[str] = ()) -> None:
    """Have replicas that start from now on do without the tasks in `UNASKED`, but for those that are named; and keep no
    reading of the fleet.

    What such a task has locked in a moment, or is about to write, a test that does the same itself wouldn't find.
    """
    assert UNASKED.issuperset(named), named
    real = lifespan._in_background

    def others(clock: Clock, tasks: Mapping[str, Any]) -> Any:
        return real(clock, {name: task for name, task in tasks.items() if name in named or name not in UNASKED})

    patch.setattr(lifespan, "_in_background", others)
    patch.setattr(watch_service, "CLEAN_EVERY", 1e6)
    # On a busy machine a reading takes long, and what was written meanwhile would be seen twenty times as much later.
    for module in (fleet_summary, recent_calls):
        patch.setattr(module, "PERIOD", 0.0)
    patch.setattr(shared_reading, "REST", 0)
    # A pass of the monitor that a test asks for comes to its end, however slow the machine is.
    patch.setattr(monitor, "SEAL_FOR", 60.0)
    patch.setattr(monitor, "RETENTION_FOR", 60.0)


Advance = Callable[[float], Awaitable[None]]
"""Moves control's clock by so many seconds, and waits for those who go by it."""


@dataclass
class Answered:
    """An answer of control, its body read."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Replica:
    """A running replica, and a client to it."""

    server: ControlServer
    url: str
    ca: Path
    session: aiohttp.ClientSession
    admin: str
    """The token of an admin."""

    @property
    def services(self) -> Services:
        return self.server.app.services

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, key: str = ""
    ) -> Answered:
        """Ask as the admin, or with `token` ('' for none). Bytes are sent as they are, else the body is JSON."""
        headers = {"authorization": f"Bearer {self.admin if token is None else token}"} if token != "" else {}
        if body is not None and not isinstance(body, bytes):
            headers["content-type"] = "application/json"
        if method in ("POST", "DELETE") and (key := key or repeating.key()):
            headers["idempotency-key"] = key

        async def ask() -> Answered:
            data = None
            if body is not None:
                data = io.BytesIO(body if isinstance(body, bytes) else wire.canonical(body))
            async with self.session.request(
                method, self.url + path, data=data, headers=headers, allow_redirects=False
            ) as answer:
                return Answered(answer.status, {n.lower(): v for n, v in answer.headers.items()}, await answer.read())

        return await repeating.answered(ask, lambda answer: answer.status == 503 and answer.json())

    async def join(self, name: str, group: str = "default") -> "TestNode":
        """A new node, joined by a token as any other."""
        token = (await self.call("POST", "/v1/join-tokens", {"group": group})).json()["token"]
        answer = await self.call("POST", "/v1/nodes", wire.Join(name, str(uuid4())), token=token)
        assert answer.status == 201, answer.body
        joined = answer.json()
        return TestNode(self, joined["node_id"], joined["credential"])

    async def node(self, name: str) -> Any:
        """What operators see of a node."""
        answer = await self.call("GET", f"/v1/nodes/{name}")
        assert answer.status == 200, answer.body
        return answer.json()


@dataclass
class TestNode:
    """A node as control sees it: what it runs and says. It does at once what a plan says."""

    __test__ = False

    replica: Replica
    id: str
    credential: str
    inventory: wire.Inventory = None  # type: ignore[assignment]
    generation: int = 0
    failed: wire.FailedGeneration | None = None
    capabilities: dict[str, Any] | None = None
    """None: of a version that tells them only when it joins."""
    protocol: int = 1
    watching: str = ""
    rehearsal: str = ""
    backup: float = 0.0
    restore: str = ""
    boot_id: str = ""
    """Of its process; '' where it doesn't say."""

    def __post_init__(self) -> None:
        if self.inventory is None:
            self.inventory = wire.Inventory(database_id=str(uuid4()))

    async def ask(self, wait: float = 0.0, *, report: bool = False) -> Answered:
        """Make one poll, with the inventory and capabilities where `report` is set."""
        poll = wire.Poll(
            generation=self.generation,
            digest=wire.digest(self.inventory),
            wait=wait,
            failed=self.failed,
            inventory=self.inventory if report else None,
            capabilities_digest="" if self.capabilities is None else capabilities.digest(self.capabilities),
            capabilities=self.capabilities if report else None,
            protocol=self.protocol,
            watching=self.watching,
            rehearsal=self.rehearsal,
            backup=self.backup,
            restore=self.restore,
            boot_id=self.boot_id,
        )
        return await self.replica.call("POST", "/v1/poll", poll, token=self.credential)

    async def poll(self, wait: float = 0.0) -> Answered:
        """Poll, with inventory and capabilities where control asks for it."""
        answer = await self.ask(wait)
        if answer.status == 200 and answer.json()["type"] == "report":
            answer = await self.ask(wait, report=True)
        return answer

    async def plan(self, wait: float = 5.0) -> wire.Plan:
        """Poll for a plan, which there must be, or come: a replica may read what was announced half a second later."""
        answer = await self.poll(wait)
        assert answer.status == 200, answer
        return plan_of(answer)

    def apply(self, plan: wire.Plan) -> None:
        """Run what the plan says."""
        self.inventory = wire.Inventory(
            schema_version=self.inventory.schema_version + len(plan.schema_changes),
            schema_changes=self.inventory.schema_changes
            + [wire.AppliedChange(c.number, c.revision, c.checksum) for c in plan.schema_changes],
            functions=[wire.RunningFunction(f.name, f.version, f.sha256, f.manifest_digest) for f in plan.functions],
            database_id=self.inventory.database_id,
        )
        self.generation = plan.generation

    async def report(self, sync_id: str, status: str, **more: Any) -> Answered:
        """`PUT /v1/syncs/{id}`; results say what the node runs."""
        if status != "running":
            more.setdefault("inventory", self.inventory)
        update = wire.SyncUpdate(status=status, **more)  # type: ignore[arg-type]
        return await self.replica.call("PUT", f"/v1/syncs/{sync_id}", update, token=self.credential)

    async def sync(self) -> wire.Plan:
        """Poll for a plan, do it, report the success."""
        plan = await self.plan()
        self.apply(plan)
        answer = await self.report(plan.sync_id, "succeeded")
        assert answer.json()["status"] == "succeeded", answer
        return plan


def plan_of(answer: Answered) -> wire.Plan:
    """The plan that an answer is."""
    return msgspec.json.decode(answer.body, type=wire.Plan)


@dataclass(frozen=True)
class Site:
    """A migrated database and an empty bucket, for any number of replicas."""

    settings: ControlSettings
    ca: Path
    admin: str

    def at(self, metadata_url: str) -> "Site":
        """Return this site with another URL for the same database, such as that of a proxy."""
        return replace(self, settings=replace(self.settings, metadata_url=metadata_url))

    def environment(self) -> dict[str, str]:
        """Return the environment of a `skerry serve` on this site, on a free port."""
        settings = self.settings
        return {
            **os.environ,
            "SKERRY_METADATA_URL": settings.metadata_url,
            "SKERRY_ARTIFACTS_URL": settings.artifacts_url,
            "SKERRY_TLS_CERT": str(settings.tls_cert),
            "SKERRY_TLS_KEY": str(settings.tls_key),
            "SKERRY_PORT": "0",
        }

    @asynccontextmanager
    async def running(self, *, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Replica]:
        """Run a replica on this site until the block ends, which ends it as SIGTERM does."""
        async with running(replace(self.settings, **settings), clock=clock) as server:
            context = ssl.create_default_context(cafile=str(self.ca))
            connector = aiohttp.TCPConnector(ssl=context, limit=0)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
                yield Replica(server, server.url, self.ca, session, self.admin)


@asynccontextmanager
async def running(settings: ControlSettings, *, clock: Clock | None = None) -> AsyncIterator[ControlServer]:
    """Run a replica with these settings until the block ends. Raises: what keeps it from starting."""
    server, task = await start(settings, clock=clock)
    try:
        yield server
    finally:
        server.should_exit = True
        await task


async def start(settings: ControlSettings, *, clock: Clock | None = None) -> tuple[ControlServer, asyncio.Task[None]]:
    """Start a replica in this loop, and wait until it serves; the caller ends the task.

    On a busy machine, PostgreSQL may take longer to answer than control waits, and control starts again, as it does by
    systemd. Raises: what keeps it from starting.
    """
    async with deadline(60):
        while True:
            server = ControlServer(settings, clock=clock)
            task = asyncio.create_task(server._serve())
            try:
                while not server.started and not task.done():
                    await asyncio.sleep(0.005)
            except BaseException:
                server.should_exit = True
                await asyncio.wait({task})
                raise
            try:
                if task.done():
                    await task
                return server, task
            except ProblemError as problem:
                if problem.code != "database_unavailable" or not isinstance(problem.__cause__, TimeoutError):
                    raise


async def prepare(database_url: str, bucket_url: str, pki: Pki, spool: Path) -> Site:
    """Return the site of a database and a bucket; there is no server to end."""
    admin = await services.admin_of(database_url)
    settings = ControlSettings(
        metadata_url=database_url,
        artifacts_url=bucket_url,
        port=0,
        tls_cert=pki.certificate,
        tls_key=pki.key,
        ca_cert=pki.ca,
        spool=spool,
    )
    return Site(settings, pki.ca, admin)
