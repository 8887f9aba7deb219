"""One sync: fetch artifacts, compile them, move to the release (flip); meanwhile the lease is renewed."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Set
from datetime import UTC, datetime
from typing import Any, Protocol

from control.protocol import faults, trace_context, wire
from control.protocol.trace_context import Place
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.restore_messages import PreparedDatabase, ReplacedDatabase
from edge_runtime.sync import plan_check, retries
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.telemetry.spans import TraceSpan

RENEW_CAP = 20.0
"""The most seconds between two messages that a longer sync is running: they are the node's heartbeat meanwhile."""
RENEW_AGAIN = 2.0
"""Seconds until that is tried again, if control couldn't be told."""
STEP_SHOWN = 64
"""The most characters of a step and of its progress in the messages."""

log = logging.getLogger("skerry.agent")


class Runtime(Protocol):
    """Holds the node's release and moves it to another: `release.manager.ReleaseManager`."""

    @property
    def release(self) -> frames.LocalRelease | None: ...

    @property
    def inventory(self) -> wire.Inventory: ...

    @property
    def boundary(self) -> wire.BackupPosition | None:
        """The last transaction before the release that was applied last, in the backup of the database."""
        ...

    @property
    def less(self) -> asyncio.Event:
        """Set when `inventory` has lost a function."""
        ...

    def forged(self) -> SyncFailed | None:
        """Return, once, the failure that tells control that the libsql file can't be trusted."""
        ...

    @property
    def lock(self) -> int:
        """Descriptor of the state directory's lock, for programs that run beside the calls."""
        ...

    async def replace_database(
        self, prepared: PreparedDatabase, note: Callable[[ReplacedDatabase], None] = ...
    ) -> ReplacedDatabase:
        """Serve another database. Raises: SyncFailed, when that fails; the one of before then continues to serve."""
        ...

    async def advance(self, plan: wire.Plan, tell: Callable[[str], None]) -> None:
        """Run the steps of schema changes before the flip, and report progress. Raises: SyncFailed, when one fails."""
        ...

    async def rehearse(
        self, plan: wire.Plan, functions: list[frames.LocalFunction], seconds: float
    ) -> wire.RehearsalResult:
        """Try a release on a copy of the node's data, in `seconds` at most. Raises: SyncFailed, when it can't be tried,
        or wouldn't get as far as the database."""
        ...

    async def apply(self, plan: wire.Plan, functions: list[frames.LocalFunction]) -> wire.Inventory:
        """Move to the plan's release. Raises: SyncFailed, when that fails; the old release then continues to serve."""
        ...


class ArtifactCompiler(Protocol):
    """Finds or makes the code that functions run: `release.compiler.Compiler`."""

    async def functions(
        self, planned: list[frames.LocalFunction], compiled: Set[str] = ..., tell: Callable[[str], None] = ...
    ) -> list[frames.LocalFunction]:
        """Return `planned`, each with the code to start with.

        Functions in `compiled` now serve compiled code, and wait for theirs. `tell` is told what takes long. Raises:
        SyncFailed, when one has no code.
        """
        ...

    async def in_background(self, planned: list[frames.LocalFunction]) -> list[frames.LocalFunction]:
        """Return `planned`, each with compiled code, made at the lowest priority. Raises: SyncFailed."""
        ...

    def collect(self, keep: set[str]) -> None:
        """Remove the AOT files of all artifacts except those of `keep` (sha256)."""
        ...


class Superseded(Exception):
    """Control wants a newer generation on this node, and has ended the sync itself."""


class SyncAttempt:
    """One sync; `run` it once."""

    def __init__(
        self,
        plan: wire.Plan,
        runtime: Runtime,
        compiler: ArtifactCompiler,
        artifacts: Artifacts,
        client: ControlClient,
        put_span: Callable[[TraceSpan], None] | None = None,
    ) -> None:
        """Prepare a sync; `put_span` takes the spans of the steps, if the node sends traces."""
        self._put_span = put_span
        self._place = trace_context.parse(plan.traceparent.encode()) if put_span is not None else None
        """The sync's place in its release's trace, if that is traced."""
        self._step_began = 0
        self._plan = plan
        self._runtime = runtime
        self._compiler = compiler
        self._artifacts = artifacts
        self._client = client
        self._started_at = datetime.now(UTC)
        self._step = ""
        self._done = ""
        """The progress of the step, for people."""

    def status(self) -> dict[str, Any]:
        """Return the part `sync` of the node's status."""
        return {
            "id": self._plan.sync_id,
            "release": self._plan.release_number,
            "step": self._shown,
            "started_at": text(self._started_at),
        }

    async def run(self) -> SyncFailed | None:
        """Carry out the sync; return why it failed, if it did: the old release then stays. Raises: Superseded."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._work())
            renewal = group.create_task(self._renew(work))
            await asyncio.wait([work])
            renewal.cancel()
        if work.cancelled():
            raise Superseded
        return work.result()

    async def _work(self) -> SyncFailed | None:
        plan, release = self._plan, self._runtime.release
        # Control and its operators learn this from a failed sync; the next one corrects it.
        if (forged := self._runtime.forged()) is not None:
            return forged
        try:
            manifests = plan_check.check_plan(plan, release.generation if release is not None else 0)
            served = release.functions if release is not None else []

            self._begin("fetch")
            await self._fetch(served)
            self._end("fetch")

            self._begin("compile")
            planned = [
                frames.LocalFunction(f.name, f.version, f.sha256, manifests[f.name], f.manifest_digest)
                for f in plan.functions
            ]
            functions = await self._compiler.functions(planned, {f.name for f in served if f.aot}, self._tell)
            self._end("compile")

            if plan.schema_changes:
                self._begin("batches")
                await self._runtime.advance(plan, self._tell)
                self._end("batches")

            self._begin("flip")
            await self._runtime.apply(plan, functions)
            self._end("flip")
        except SyncFailed as error:
            self._trace(error.code)
            return error
        except OSError as error:
            # Errors of connections have their own codes.
            self._trace("disk_failed")
            return SyncFailed("disk_failed", f"the state directory can't be used: {error}; see `skerry-edge doctor`")
        except Exception as error:
            self._trace("internal")
            log.exception("a sync failed in a way that nobody foresaw")
            return SyncFailed("internal", f"the edge runtime made a mistake: {error!r}; the node's log has more")
        return None

    async def _fetch(self, serving: list[frames.LocalFunction]) -> None:
        """Get the plan's artifacts; `serving` are the functions of the serving release."""
        planned = self._plan.functions
        # A function without code couldn't be compiled at the start: its artifact may be damaged, like known others.
        whole = {f.sha256 for f in self._runtime.inventory.functions}
        trusted = {f.sha256 for f in serving if f.code[0]} & whole
        try:
            await self._artifacts.fetch(self._client, planned, trusted)
        except SyncFailed as failed:
            if failed.code != "disk_full":
                raise
            # Files of failed releases and of the previous one are removed; those of the serving release stay.
            keep = {f.sha256 for f in serving} | {f.sha256 for f in planned}
            await asyncio.to_thread(self._artifacts.collect, keep)
            await asyncio.to_thread(self._compiler.collect, keep)
            await self._artifacts.fetch(self._client, planned, trusted)

    @property
    def _shown(self) -> str:
        return f"{self._step}: {self._done}"[:STEP_SHOWN] if self._done else self._step

    def _tell(self, done: str) -> None:
        self._done = done

    def _begin(self, step: str) -> None:
        self._step, self._done, self._step_began = step, "", time.time_ns()
        faults.reach(f"edge.sync.{step}.before")

    def _end(self, step: str) -> None:
        self._trace()
        faults.reach(f"edge.sync.{step}.after")

    def _trace(self, error: str = "") -> None:
        """Make a span of the step that has ended; `error` is its code if it failed."""
        if self._put_span is not None and self._place is not None and self._step:
            own, parent = Place(self._place.trace, os.urandom(8)), self._place.span
            self._put_span(TraceSpan(own, parent, self._step, self._step_began, time.time_ns(), error=error))

    async def _renew(self, work: asyncio.Task[Any]) -> None:
        """Keep the lease while the work continues; cancel work that is no longer wanted, if possible."""
        lease = self._plan.lease
        pause = min(RENEW_CAP, lease / 3)
        while True:
            await clock.sleep(pause)
            try:
                state = await self._client.report(
                    self._plan.sync_id, wire.SyncUpdate(status="running", step=self._shown)
                )
            except (NoAnswer, ControlRefused) as error:
                log.warning("control can't be told that the sync goes on: %s", error.message)
                pause = min(RENEW_AGAIN, lease / 3)
                continue
            lease = state.lease or lease
            pause = min(RENEW_CAP, lease / 3)
            if retries.superseded(state) and self._step in ("fetch", "compile", "batches"):
                work.cancel()


def text(when: datetime | None) -> str | None:
    """Return a time as the status shows it (RFC 3339, UTC)."""
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z") if when is not None else None
