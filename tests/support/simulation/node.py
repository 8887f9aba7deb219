"""A node of a run: its agent, outbox and rules are the program's; its release, compiler and downloads stand in.

The libsql file is a value on the node's disk that changes in one step, as a COMMIT does. What it comes to hold is
computed by the program's own function of an inventory and a plan.
"""

import asyncio
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Protocol
from uuid import UUID

import msgspec
import orjson

from control.protocol import faults, wire
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.release.witness import after
from edge_runtime.sync.agent import Agent
from edge_runtime.sync.control_client import ControlRefused
from edge_runtime.sync.identity import Identity
from edge_runtime.sync.retries import final
from edge_runtime.sync.sync_outcomes import Waiting
from tests.support.simulation.disk import Disk, DiskPath
from tests.support.simulation.network import Network, NodeClient
from tests.support.simulation.processes import Process, Risk


class Watch(Protocol):
    """Hears what nodes do, to check it."""

    def committed(self, node: "Node", plan: wire.Plan, before: LocalRelease | None) -> None:
        """The node's libsql file has come to hold the plan's release."""
        ...

    def polls(self, node: "Node") -> None:
        """The node asks what there is to do."""
        ...


@dataclass
class Weather:
    """How likely it is that a step of a sync fails; 0 when faults have stopped."""

    failing: float = 0.0
    slow: float = 0.0


class Node:
    """A node, over all its processes' lives."""

    def __init__(
        self, id: str, name: str, token: str, random: Random, risk: Risk, watch: Watch, offset: timedelta
    ) -> None:
        self.id = id
        self.name = name
        self.disk = Disk(inventory=wire.Inventory(database_id=str(UUID(int=random.getrandbits(128)))))
        self.weather = Weather()
        self.random = random
        self.watch = watch
        self.process: Process | None = None
        self.runtime: SimulatedRuntime | None = None
        self.owes: str | None = None
        """The sync whose result the node must tell before it asks anything."""
        self.rotate_after = timedelta(days=30)
        self._risk = risk
        self._offset = offset
        """By how much the node's clock is ahead."""
        since = datetime(2026, 11, 26, 8, tzinfo=UTC)
        self._identity = Identity(id, name, "default", "https://control", token, since)
        self.disk.files["/identity.json"] = orjson.dumps(msgspec.to_builtins(self._identity))

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def inventory(self) -> wire.Inventory:
        """What the node runs: without functions whose artifacts are lost, as the front has it."""
        found, lost = self.disk.inventory, self.disk.lost
        if not lost:
            return found
        return msgspec.structs.replace(found, functions=[f for f in found.functions if f.sha256 not in lost])

    def lose(self, sha256: str) -> None:
        """An artifact is damaged, and a process that runs notices."""
        self.disk.lost.add(sha256)
        if self.runtime is not None:
            self.runtime.less.set()

    def start(self) -> None:
        """Start the node's process on what its disk holds."""
        assert not self.runs
        self.process = Process(self.name, self._risk, self._offset)
        kept = self.disk.files.get("/outbox/report.json")
        self.owes = None if kept is None else msgspec.json.decode(kept, type=Waiting).sync_id
        self.process.spawn(self._main(self.process))

    async def _main(self, process: Process) -> None:
        state: Any = DiskPath(self.disk, process)
        who = msgspec.json.decode(self.disk.files["/identity.json"], type=Identity)
        runtime = self.runtime = SimulatedRuntime(self, process)
        agent = Agent(
            state,
            who,
            runtime,
            SimulatedCompiler(self),
            rotate_after=self.rotate_after,
            jitter=self.random.random,
        )
        await agent.run()


class WatchedClient(NodeClient):
    """The client of a node, whose questions and results are watched."""

    def __init__(self, node: Node, network: Network, process: Process, credential: str) -> None:
        super().__init__(network, process, credential)
        self._node = node

    async def poll(self, poll: wire.Poll) -> wire.Answer | None:
        self._node.watch.polls(self._node)
        return await super().poll(poll)

    async def report(self, sync_id: str, update: wire.SyncUpdate) -> wire.SyncState:
        if update.status == "running":
            return await super().report(sync_id, update)
        self._node.owes = sync_id
        try:
            state = await super().report(sync_id, update)
        except ControlRefused as refusal:
            if final(refusal.status):
                self._node.owes = None
            raise
        self._node.owes = None
        return state


async def _step(node: Node, code: str) -> None:
    """A step of a sync, which takes its time and may fail."""
    draw, weather = node.random.random, node.weather
    await asyncio.sleep(draw() * (30 if weather.slow and draw() < weather.slow else 0.2))
    if weather.failing and draw() < weather.failing:
        raise SyncFailed(code, "it fails in this run")


class SimulatedRuntime:
    """In the place of the node's front: the release that it serves, and the change to another one."""

    def __init__(self, node: Node, process: Process) -> None:
        self._node = node
        self._process = process
        self.less = asyncio.Event()
        self.boundary: wire.BackupPosition | None = None

    @property
    def release(self) -> LocalRelease | None:
        return self._node.disk.release

    @property
    def inventory(self) -> wire.Inventory:
        return self._node.inventory

    def forged(self) -> SyncFailed | None:
        """The libsql file is what it should be."""
        return None

    async def advance(self, plan: wire.Plan, tell: Callable[[str], None]) -> None:
        """No simulated change has steps."""

    async def rehearse(self, plan: wire.Plan, functions: list[LocalFunction], seconds: float) -> wire.RehearsalResult:
        """Find that the release works; raises `SyncFailed`."""
        await _step(self._node, "apply_failed")
        changes = [wire.RehearsedChange(change.number, change.name) for change in plan.schema_changes]
        return wire.RehearsalResult("passed", changes=changes)

    async def apply(self, plan: wire.Plan, functions: list[LocalFunction]) -> wire.Inventory:
        """Commit the plan's release; raises `SyncFailed`, and nothing has changed."""
        node, disk = self._node, self._node.disk
        faults.reach("edge.sync.prepare.before")
        await _step(node, "apply_failed")
        inventory, before = after(disk.inventory, plan), disk.release
        self._process.step("edge.commit.before")
        disk.release = LocalRelease(
            plan.release_id, plan.release_number, plan.generation, inventory.schema_version, functions
        )
        disk.inventory = inventory
        disk.lost.clear()
        node.watch.committed(node, plan, before)
        self._process.step("edge.commit.after")
        return inventory


class SimulatedCompiler:
    """In the place of the compiler."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def functions(
        self, planned: list[LocalFunction], compiled: Set[str] = frozenset(), tell: Callable[[str], None] = print
    ) -> list[LocalFunction]:
        await _step(self._node, "compile_failed")
        return [msgspec.structs.replace(f, wasm=f"/artifacts/{f.sha256}.wasm") for f in planned]

    async def in_background(self, planned: list[LocalFunction]) -> list[LocalFunction]:
        return await self.functions(planned)

    def collect(self, keep: set[str]) -> None:
        """There are no files to remove."""


class SimulatedArtifacts:
    """In the place of the folder of artifacts."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def fetch(self, _client: Any, functions: Collection[wire.PlannedFunction], trusted: Collection[str]) -> None:
        """Download what isn't there; raises `SyncFailed`."""
        if any(f.sha256 not in trusted for f in functions):
            await _step(self._node, "artifact_unavailable")

    def earlier(self) -> set[str]:
        """There are no files to keep."""
        return set()

    def note_earlier(self, sha256s: set[str]) -> None:
        """There are no files to keep."""

    def collect(self, keep: set[str]) -> None:
        """There are no files to remove."""
