"""A node's front in the test's own process, on real workers; releases are given to it as plans, without a control."""

import asyncio
import contextlib
import hashlib
import io
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Outcome
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.errors import CODES
from edge_runtime.front import Front
from edge_runtime.ipc import frames
from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, ZygoteClient
from edge_runtime.settings import EdgeSettings
from edge_runtime.state import State
from edge_runtime.wasmedge import QUICK
from tests.support import moved_clock
from tests.support.deadlines import deadline, scaled

DEADLINE = 60.0
BACKGROUND = 200.0
"""Seconds for what takes long on a busy machine, as the best code of a function."""


@dataclass
class Node:
    """A running node: `http` is a client of its local HTTP, `release` gives it a release."""

    front: Front
    state: State
    http: aiohttp.ClientSession
    generation: int = 0
    changes: list[wire.PlannedChange] = field(default_factory=list)

    async def release(
        self,
        functions: Mapping[str, bytes | tuple[bytes, Mapping[str, Any]]],
        changes: Sequence[str] = (),
        *,
        version: int = 0,
    ) -> wire.Inventory:
        """Apply a release of these functions (wasm, or wasm and manifest) and, after the earlier ones, these changes.

        Error: SyncFailed.
        """
        plan, local = self.plan(functions, changes, version=version)
        local = await self.front.compiler.functions(local)
        await self.front.manager.advance(plan, lambda _: None)
        inventory = await self.front.manager.apply(plan, local)
        self.changes = [*self.changes, *plan.schema_changes]
        return inventory

    def plan(
        self,
        functions: Mapping[str, bytes | tuple[bytes, Mapping[str, Any]]],
        changes: Sequence[str] = (),
        *,
        version: int = 0,
    ) -> tuple[wire.Plan, list[frames.LocalFunction]]:
        """The plan of the next generation; its artifacts are on the node's disk."""
        self.generation += 1
        local = []
        for name, given in functions.items():
            wasm, manifest = given if isinstance(given, tuple) else (given, {})
            sha256 = hashlib.sha256(wasm).hexdigest()
            path = self.state.artifacts / f"{sha256}.wasm"
            if not path.exists():
                path.write_bytes(wasm)
            wanted = msgspec.convert(dict(manifest), Manifest)
            number = version or self.generation
            local.append(frames.LocalFunction(name, number, sha256, wanted, manifest_digest(wanted)))
        first = len(self.changes) + 1
        planned = [
            wire.PlannedChange(number, 1, f"change {number}", wire.schema_checksum(sql), sql)
            for number, sql in enumerate(changes, first)
        ]
        plan = wire.Plan(
            sync_id=str(uuid4()),
            lease=60.0,
            generation=self.generation,
            release_id=str(uuid4()),
            release_number=self.generation,
            schema_floor=first + len(changes) - 1,
            schema_changes=planned,
            functions=[
                wire.PlannedFunction(
                    f.name, f.version, f.sha256, 0, "", msgspec.to_builtins(f.manifest), f.manifest_digest
                )
                for f in local
            ],
        )
        return plan, local

    async def call(self, path: str, body: bytes = b"", method: str = "POST", **more: Any) -> tuple[int, Any, bytes]:
        """Status, headers, body of /functions/`path`."""
        async with self.http.request(
            method, f"/functions/{path}", data=io.BytesIO(body) if body else None, **more
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def problem(self, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, str]:
        """Status and code of a call that is refused."""
        async with self.http.request(method, f"/functions/{path}", data=body) as answer:
            assert answer.content_type == "application/problem+json", await answer.text()
            told = await answer.json(content_type=None)
            assert told["status"] == answer.status
            assert told["detail"]
            assert (told["status"], told["title"]) == (CODES[told["code"]].status, CODES[told["code"]].title)
            return answer.status, told["code"]

    def workers(self) -> set[int]:
        """Process ids of those that serve."""
        return {link.child.pid for link in self.front.pool.links if link.usable and not link.spare}

    def spares(self) -> set[int]:
        """Process ids of those that are ready to."""
        return {link.child.pid for link in self.front.pool.links if link.usable and link.spare}

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Have those that serve stand still: a call that one is given meanwhile lasts until the block ends."""
        pids = self.workers()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def busy(self) -> list[WorkerLink]:
        """Those that have calls or orders, without the spare ones, which load functions in advance."""
        return [link for link in self.front.pool.links if link.jobs and not link.spare]


@contextlib.asynccontextmanager
async def node(path: Path, *, best: int = QUICK, **settings: Any) -> AsyncIterator[Node]:
    """Run a node on a state directory until the block ends; it needs no control.

    Functions wait for their compilation, and stay at what is compiled quickly unless `best` says more: what they run on
    doesn't hang on how busy the machine is.
    """
    # Calls wait as long as a busy machine needs for a release.
    patient = {"compile_wait": 60.0, "queue_wait": 60.0}
    settings = {"workers": 2, "listen": "127.0.0.1:0", "stop_limit": 2.0, **patient, **settings}
    with State(path, DEADLINE) as state:
        front = Front(EdgeSettings(state=path, **settings), state)
        front.compiler.best = best
        _hurry(front.processes)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(front.run())
            ready = asyncio.ensure_future(front.ready.wait())
            await asyncio.wait((running, ready), timeout=scaled(DEADLINE), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            assert running.done() or front.ready.is_set(), "the front did not come up"
            if not running.done():
                async with client(front.port) as http:
                    release = front.manager.release
                    made = Node(front, state, http, release.generation if release is not None else 0)
                    try:
                        await until(lambda: len(made.workers()) == settings["workers"])
                        yield made
                    finally:
                        moved_clock.let_go()
                        front.stop()
            await running


def client(port: int) -> aiohttp.ClientSession:
    """A client of a node's local HTTP, which a context manager closes."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, auto_decompress=False)


def _hurry(processes: ZygoteClient) -> None:
    """Have compilers in the background run beside others: those that work only where the machine has nothing else to do
    would come to no end while it runs tests."""
    birth = processes.birth

    def foreground(kind: ChildKind, *, background: bool = False, **more: Any) -> Coroutine[Any, Any, Child]:
        del background
        return birth(kind, **more)

    processes.birth = foreground  # type: ignore[method-assign, assignment]


def submit(edge: Node, name: str, query: bytes = b"") -> asyncio.Future[Outcome]:
    """A call that comes to the pool this moment."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    edge.front.pool.submit(Call(name, "GET", "", query, [], "", b"", outcome.set_result))
    return outcome


async def calm(edge: Node) -> None:
    """Until the functions run their best code: no worker is asked to load any more."""
    front = edge.front
    await until(
        lambda: (
            all(front.compiler.is_best(f) for f in front.pool.release.functions)
            and all(not link.jobs and link.serials == {front.pool.serial} for link in front.pool.links)
        )
    )


async def until(condition: Any, limit: float | None = None) -> None:
    """Wait until `condition()` is true."""
    async with deadline(DEADLINE, limit):
        while not condition():
            await asyncio.sleep(0.005)
