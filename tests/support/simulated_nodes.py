"""Nodes without a runtime: they join, poll, sync, rehearse and count calls as nodes do, hundreds of them in a process.

They fetch no artifact and run no function. What a real node would find by that, a `Nature` says in advance.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from control.protocol import histogram, wire
from edge_runtime.sync import capabilities

RETRY = 1.0
"""Seconds after which a failed sync is tried again; each further failure of the same generation doubles them."""
RETRY_CAP = 60.0
PAUSE = 0.25
"""Seconds before a request is repeated that got no answer."""
PACKED = 64
"""The most bytes of a function's times in a poll."""
_ANSWER: msgspec.json.Decoder[wire.Answer] = msgspec.json.Decoder(wire.Answer)


@dataclass
class Nature:
    """What simulated nodes find of releases. A test may change it at any time."""

    calls: float = 20.0
    """Calls of each function on each node, a second."""
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    """How long the calls of a function's version take; 5 ms, if it isn't named."""
    failing: dict[tuple[str, int], float] = field(default_factory=dict)
    """The share of the calls of a function's version that fail; none, if it isn't named."""
    unfit: dict[tuple[str, int], str] = field(default_factory=dict)
    """By name of the node and number of the schema change: the row, as `table key=value`, on which the change fails."""
    sync_seconds: float = 0.1
    """How long a sync takes."""
    rehearsal_seconds: float = 0.2
    """How long a rehearsal takes."""


class Refused(Exception):
    """Control's answer isn't a success, and wouldn't be one if the request were repeated."""

    def __init__(self, status: int, problem: Any) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.code = problem.get("code", "") if isinstance(problem, dict) else ""


@dataclass
class _Counted:
    """Calls of a function."""

    times: histogram.Counts = field(default_factory=dict)
    failed: int = 0

    def add(self, calls: int, failed: int, seconds: float) -> None:
        histogram.add(self.times, {histogram.bucket(seconds): calls})
        self.failed += failed

    def numbers(self, index: int, release: int) -> wire.FunctionNumbers:
        outcomes = [wire.OUTCOMES.index("answer_5xx"), self.failed] if self.failed else []
        return wire.FunctionNumbers(index, release, outcomes, histogram.pack(self.times, PACKED))


class _Process:
    """What ends with a node's process."""

    def __init__(self) -> None:
        self.boot_id = str(uuid4())
        self.began = self.counted_at = time.monotonic()
        self.watching = self.rehearsal = ""
        self.report = False
        """Whether control wants inventory and capabilities."""
        self.backup = 0.0
        self.sequence = 0
        self.message = b""
        """Numbers that no answered poll has carried yet."""
        self.message_until = self.began
        self.new: dict[tuple[int, int], _Counted] = {}
        """By release and place of the function in it: calls since the last message."""
        self.all: dict[str, _Counted] = {}
        """By function: calls since the start."""


class SimulatedNode:
    """A node. `run` is its process; what stays over its end are this object's public attributes."""

    def __init__(
        self, name: str, nature: Nature, session: aiohttp.ClientSession, urls: Sequence[str], *, hold: float = 3.0
    ) -> None:
        """`urls`: control's replicas. `hold`: for how many seconds polls ask to be held; each carries numbers."""
        self.name = name
        self.id = self.credential = ""
        self.inventory = wire.Inventory(database_id=str(uuid4()))
        self.generation = 0
        self.release_id = ""
        self.release = 0
        """The number of the release that it runs; 0 before the first."""
        self.flips: list[tuple[str, int]] = []
        """Ids and numbers of the releases that it has flipped to, in order."""
        self.rehearsed: list[tuple[str, str]] = []
        """Ids of the rehearsals that it has reported, and their outcomes."""
        self.failed: wire.FailedGeneration | None = None
        self.waiting: tuple[str, wire.SyncUpdate] | None = None
        """A sync's id and result that control hasn't got yet."""
        self.refused = ""
        """The code by which control refused its last request; '' if it was answered."""
        self._nature = nature
        self._session = session
        self._urls = list(urls)
        random.shuffle(self._urls)
        self._hold = hold
        self._attempts = 0
        self._capabilities = capabilities.document()

    async def join(self, token: str, labels: Mapping[str, str] | None = None) -> None:
        """Join with a one-time token. Raises: Refused."""
        body = wire.Join(
            self.name,
            str(uuid4()),
            labels=dict(labels or {}),
            capabilities=self._capabilities,
            protocol=wire.PROTOCOL,
        )
        # A token's fingerprint of the CA is for first trust, which the session has already.
        joined = await self._ask("POST", "/v1/nodes", body, token=token.partition(".")[0])
        self.id, self.credential = joined["node_id"], joined["credential"]

    async def run(self) -> None:
        """Poll and sync until cancelled, which is a kill -9: nothing is sent at the end."""
        process = _Process()
        rehearsal: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    if rehearsal is not None and rehearsal.done():
                        rehearsal.result()
                        rehearsal = None
                    answer = await self._turn(process)
                    if isinstance(answer, wire.Rehearse):
                        if rehearsal is not None:
                            rehearsal.cancel()
                        process.rehearsal = answer.id
                        rehearsal = asyncio.create_task(self._rehearse(answer.id)) if answer.id else None
                    self.refused = ""
                except Refused as refusal:
                    # A node that is revoked polls on, rarely.
                    self.refused = refusal.code
                    await asyncio.sleep(1.0)
        finally:
            if rehearsal is not None:
                rehearsal.cancel()

    async def _turn(self, process: _Process) -> wire.Answer | None:
        """Report what waits, poll once, and do what the answer says; return it."""
        if self.waiting is not None:
            await self._report()
        answer = await self._poll(process)
        process.report = isinstance(answer, wire.Report)
        if isinstance(answer, wire.Plan):
            await self._sync(process, answer)
        elif isinstance(answer, wire.Watch):
            process.watching = answer.digest
        elif isinstance(answer, wire.BackUp):
            # It is taken up, but nothing is written here that could be backed up.
            process.backup = answer.interval
        elif isinstance(answer, wire.Renamed):
            self.name = answer.name
        return answer

    async def _poll(self, process: _Process) -> wire.Answer | None:
        self._make_numbers(process)
        poll = wire.Poll(
            generation=self.generation,
            digest=wire.digest(self.inventory),
            boot_id=process.boot_id,
            wait=self._hold,
            failed=self.failed,
            inventory=self.inventory if process.report else None,
            capabilities_digest=capabilities.digest(self._capabilities),
            capabilities=self._capabilities if process.report else None,
            protocol=wire.PROTOCOL,
            watching=process.watching,
            name=self.name,
            rehearsal=process.rehearsal,
            numbers=process.message,
            backup=process.backup,
        )
        if self.failed is not None:
            left = (self.failed.retry_at - datetime.now(UTC)).total_seconds()
            poll.wait = max(0.0, min(self._hold, left))
            if left <= 0:
                poll.failed = self.failed = None
        body = await self._ask("POST", "/v1/poll", poll, raw=True)
        process.message = b""
        if body:
            return _ANSWER.decode(body)
        if poll.failed is None:
            self._attempts = 0
        return None

    async def _sync(self, process: _Process, plan: wire.Plan) -> None:
        """Carry out a plan: in one moment the node runs all of the release, or nothing of it."""
        state = await self._ask("PUT", f"/v1/syncs/{plan.sync_id}", wire.SyncUpdate("running", step="flip"))
        if state["status"] != "running":
            return
        await asyncio.sleep(self._nature.sync_seconds)
        row = self._unfit(plan)
        if row is not None:
            number, where = row
            self._attempts += 1
            wait = min(RETRY_CAP, RETRY * 2 ** (self._attempts - 1))
            self.failed = wire.FailedGeneration(plan.generation, datetime.now(UTC) + timedelta(seconds=wait))
            error = wire.SyncError("schema_change_failed", f"schema change {number} failed at {where}")
            update = wire.SyncUpdate("failed", error=error, retry_at=self.failed.retry_at, inventory=self.inventory)
        else:
            before = self._hour_before(process)
            self._flip(plan)
            update = wire.SyncUpdate("succeeded", inventory=self.inventory, before=before)
        self.waiting = (plan.sync_id, update)
        await self._report()

    def _flip(self, plan: wire.Plan) -> None:
        changes = self.inventory.schema_changes
        changes = changes + [wire.AppliedChange(c.number, c.revision, c.checksum) for c in plan.schema_changes]
        functions = [wire.RunningFunction(f.name, f.version, f.sha256, f.manifest_digest) for f in plan.functions]
        self.inventory = wire.Inventory(
            schema_version=max((change.number for change in changes), default=0),
            schema_changes=changes,
            functions=functions,
            database_id=self.inventory.database_id,
        )
        self.generation, self.release_id, self.release = plan.generation, plan.release_id, plan.release_number
        self.flips.append((plan.release_id, plan.release_number))
        self.failed, self._attempts = None, 0

    async def _report(self) -> None:
        """Report a sync's end; one that control doesn't know any more is dropped."""
        assert self.waiting is not None
        sync_id, update = self.waiting
        try:
            await self._ask("PUT", f"/v1/syncs/{sync_id}", update)
        except Refused as refusal:
            if refusal.code != "unknown_sync":
                raise
        self.waiting = None

    async def _rehearse(self, id: str) -> None:
        """Get the order, take the time that it would take, and report."""
        try:
            body = await self._ask("GET", f"/v1/nodes/self/rehearsals/{id}", raw=True)
            order = msgspec.json.decode(body, type=wire.RehearsalOrder)
            await asyncio.sleep(min(self._nature.rehearsal_seconds, order.seconds))
            result = self.would_find(order.plan)
            await self._ask("PUT", f"/v1/nodes/self/rehearsals/{id}", result)
        except Refused:
            # The rollout has ended meanwhile.
            return
        self.rehearsed.append((id, result.outcome))

    def would_find(self, plan: wire.Plan) -> wire.RehearsalResult:
        """Return what a rehearsal of the plan finds."""
        changes = [wire.RehearsedChange(change.number, change.name, rows=1) for change in plan.schema_changes]
        row = self._unfit(plan)
        if row is not None:
            number, where = row
            done = [change for change in changes if change.number < number]
            message = f"schema change {number} fails"
            return wire.RehearsalResult(
                "failed", "schema_change_failed", message, where, done, seconds=0.1, database=4096
            )
        checksums = [change.checksum for change in self.inventory.schema_changes]
        checksums += [change.checksum for change in plan.schema_changes]
        digest = hashlib.sha256("".join(checksums).encode()).hexdigest()
        return wire.RehearsalResult("passed", changes=changes, schema_digest=digest, seconds=0.1, database=4096)

    def _unfit(self, plan: wire.Plan) -> tuple[int, str] | None:
        """Return the first change of the plan that fails on this node's rows, and the row."""
        for change in plan.schema_changes:
            where = self._nature.unfit.get((self.name, change.number))
            if where is not None:
                return change.number, where
        return None

    # Calls

    def _count(self, process: _Process) -> None:
        """Count the calls since the last time, of what the node runs."""
        now = time.monotonic()
        calls = int((now - process.counted_at) * self._nature.calls)
        if not calls:
            return
        process.counted_at += calls / self._nature.calls
        for index, function in enumerate(sorted(self.inventory.functions, key=lambda each: each.name)):
            of = function.name, function.version
            failed, seconds = self._nature.failing.get(of, 0.0), self._nature.seconds.get(of, 0.005)
            for counted in (
                process.new.setdefault((self.release, index), _Counted()),
                process.all.setdefault(function.name, _Counted()),
            ):
                counted.add(calls, round(calls * failed), seconds)

    def _make_numbers(self, process: _Process) -> None:
        """Make a message of what was counted, unless one still waits for an answer."""
        self._count(process)
        if process.message:
            return
        now = time.monotonic()
        functions = [counted.numbers(index, release) for (release, index), counted in process.new.items() if release]
        passed = now - process.message_until
        process.sequence += 1
        process.message = msgspec.msgpack.encode(wire.Numbers(process.sequence, passed, functions))
        process.message_until = now
        process.new = {}

    def _hour_before(self, process: _Process) -> bytes:
        """Return the calls since the start, or of the last hour: nothing simulated runs for longer."""
        self._count(process)
        names = sorted(process.all)
        functions = [process.all[name].numbers(index, max(1, self.release)) for index, name in enumerate(names)]
        seconds = time.monotonic() - process.began
        return msgspec.msgpack.encode(wire.HourBefore(seconds, functions, names))

    # Requests

    async def _ask(self, method: str, path: str, body: Any = None, *, token: str = "", raw: bool = False) -> Any:
        """Return the body of a success, which one of the replicas gives sooner or later. Raises: Refused."""
        headers = {"authorization": f"Bearer {token or self.credential}", "content-type": "application/json"}
        data = None if body is None else wire.canonical(body)
        while True:
            try:
                async with self._session.request(
                    method, self._urls[0] + path, data=data, headers=headers, allow_redirects=False
                ) as answer:
                    content = await answer.read()
                    if answer.status < 300:
                        return content if raw else msgspec.json.decode(content) if content else None
                    if answer.status not in (429, 502, 503, 504):
                        is_problem = answer.content_type.endswith("json")
                        raise Refused(answer.status, msgspec.json.decode(content) if is_problem else content)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self._urls.append(self._urls.pop(0))
            await asyncio.sleep(PAUSE * (1 + random.random()))


class SimulatedNodes:
    """Simulated nodes by name, and their processes."""

    def __init__(self, nature: Nature, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        self.nature = nature
        self.nodes: dict[str, SimulatedNode] = {}
        self._session = session
        self._urls = urls
        self._running: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, token: str, labels: Mapping[str, str] | None = None) -> SimulatedNode:
        """Join a node, and start it."""
        node = SimulatedNode(name, self.nature, self._session, self._urls)
        await node.join(token, labels)
        self.nodes[name] = node
        self.start(name)
        return node

    def start(self, name: str) -> None:
        """Start a node's process, unless it runs."""
        if name not in self._running:
            self._running[name] = asyncio.create_task(self.nodes[name].run())

    def kill(self, name: str) -> None:
        """Kill a node's process: what it had in memory is lost."""
        task = self._running.pop(name, None)
        if task is not None:
            task.cancel()

    def check(self) -> None:
        """Raise what has ended a node by itself, which is a mistake of the simulation or of control's answers."""
        for task in self._running.values():
            if task.done():
                task.result()

    async def end(self) -> None:
        """End all nodes."""
        tasks = list(self._running.values())
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
