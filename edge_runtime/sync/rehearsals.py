"""Tries releases on a copy of the node's data when control asks for that, in the background: polls, syncs and calls go
on meanwhile, and a sync that begins interrupts it.

There is one rehearsal at a time, the newest. Its result is sent to control until control has taken it, or asks for
another one. Nothing of it is kept on disk but the release's artifacts and their compiled code, for the sync to come:
after a restart control asks again.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.sync import plan_check
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.attempt import ArtifactCompiler, Runtime, text
from edge_runtime.sync.control_client import ControlClient, until_answered

log = logging.getLogger("skerry.agent")

SHARE: Final = 0.95
"""Share of the time that is left which the program of the rehearsal gets: then it can still say what took so long."""
SHOWN: Final = 2000
"""Characters of a message."""

UNKNOWN: Final = frozenset(
    {
        "artifact_refused",
        "artifact_unreachable",
        "compile_io",
        "database_unverified",
        "disk_failed",
        "disk_full",
        "internal",
        "no_process",
        "rehearsal_died",
        "rehearsal_impossible",
    }
)
"""Codes of failures that say nothing about the release: the node couldn't try it."""


class Rehearsals:
    """The newest rehearsal that control has asked for."""

    def __init__(
        self,
        runtime: Runtime,
        compiler: ArtifactCompiler,
        artifacts: Artifacts,
        client: Callable[[], ControlClient],
    ) -> None:
        """`client` returns the present session to control."""
        self._runtime = runtime
        self._compiler = compiler
        self._artifacts = artifacts
        self._client = client
        self.id = ""
        """The rehearsal that control has asked for last, for polls; empty if it wants none now."""
        self._of = ""
        """The id of the one that is going on or has ended; empty if none was taken up since the start."""
        self.keeps: set[str] = set()
        """sha256 of the artifacts of the last release that was rehearsed."""
        self.untidy = False
        """Whether artifacts of an earlier rehearsal may be on disk."""
        self._may_work = asyncio.Event()
        """Set while no sync is going on."""
        self._may_work.set()
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        """Asks control whether the rehearsal is over."""
        self._work: asyncio.Task[wire.RehearsalResult] | None = None
        """What can be given up for a sync."""
        self._release: int | None = None
        self._step = ""
        self._since: datetime | None = None
        self._result: wire.RehearsalResult | None = None
        self._ended: datetime | None = None

    def begin(self, rehearsal_id: str) -> None:
        """Take up a rehearsal, unless it is going on or has ended already. Another one that is going on is given up, as
        control no longer wants it.

        An empty id means that there is none now: what is going on is given up if control doesn't want its result.
        """
        self.id = rehearsal_id
        if self._asking is not None:
            self._asking.cancel()
        if rehearsal_id == self._of:
            return
        if not rehearsal_id:
            if self._task is not None and not self._task.done():
                self._asking = asyncio.get_running_loop().create_task(self._end_if_unwanted(self._task, self._of))
            return
        if self._task is not None:
            self._task.cancel()
        self._of = rehearsal_id
        self._release = self._result = self._ended = None
        self._task = asyncio.get_running_loop().create_task(self._run(self._task, rehearsal_id))

    def give_way(self) -> None:
        """Interrupt the rehearsal, if one is going on: a sync begins."""
        self._may_work.clear()
        if self._work is not None:
            self._work.cancel()

    def go_on(self) -> None:
        """Let a rehearsal that was interrupted begin anew: the sync has ended."""
        self._may_work.set()

    async def end(self) -> None:
        """Give up the rehearsal, and wait until nothing of it is left."""
        tasks = [task for task in (self._asking, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def status(self) -> dict[str, Any] | None:
        """Return the part `rehearsal` of the node's status; None if there was none since the start."""
        if not self._of:
            return None
        result = self._result
        return {
            "id": self._of,
            "release": self._release,
            "step": self._step or None,
            "started_at": text(self._since),
            "outcome": result and result.outcome,
            "code": (result and result.code) or None,
            "message": (result and result.message) or None,
            "row": (result and result.row) or None,
            "ended_at": text(self._ended),
        }

    async def _run(self, before: asyncio.Task[None] | None, rehearsal_id: str) -> None:
        """Rehearse, and tell control how it went."""
        self._since, self._step = clock.now(), "waits"
        try:
            if before is not None:
                # They would have the same folder.
                await asyncio.wait([before])
            order = await until_answered(lambda: self._client().rehearsal(rehearsal_id), "the rehearsal")
            if order is None:
                return
            while (result := await self._rehearse(order)) is None:
                # A node that tries again and again to reach a release must be able to rehearse the one that cures it.
                self._step = "waits"
                await self._may_work.wait()
                order = await until_answered(lambda: self._client().rehearsal(rehearsal_id), "the rehearsal")
                if order is None:
                    return
            self._result, self._ended, self._step = result, clock.now(), "reports"
            log.log(
                logging.INFO if result.outcome == "passed" else logging.WARNING,
                "the rehearsal of release %d: %s%s",
                order.plan.release_number,
                result.outcome,
                f" ({result.code}): {result.message}" if result.code else "",
            )
            await until_answered(lambda: self._client().tell_rehearsal(rehearsal_id, result), "the rehearsal")
        except Exception:
            # A bug here must not end the agent.
            log.exception("a rehearsal failed in a way that nobody foresaw")
        finally:
            if self._of == rehearsal_id:
                self._step = ""

    async def _end_if_unwanted(self, task: asyncio.Task[None], rehearsal_id: str) -> None:
        """Cancel the task of a rehearsal if control refuses the order: then it would refuse the result, too."""
        try:
            if await until_answered(lambda: self._client().rehearsal(rehearsal_id), "the rehearsal") is None:
                task.cancel()
        except Exception:
            log.exception("whether a rehearsal is over couldn't be asked")

    async def _rehearse(self, order: wire.RehearsalOrder) -> wire.RehearsalResult | None:
        """Rehearse, within the time that control gives; return None if a sync interrupts it."""
        began = clock.monotonic()
        self._release = order.plan.release_number
        if not self._may_work.is_set():
            return None
        self.keeps, self.untidy = {f.sha256 for f in order.plan.functions}, True
        self._work = asyncio.get_running_loop().create_task(self._try(order, began))
        timed_out = False
        try:
            async with clock.timeout(order.seconds):
                await asyncio.wait([self._work])
        except TimeoutError:
            timed_out = True
        finally:
            if not self._work.done():
                self._work.cancel()
                await asyncio.wait([self._work])
            work, self._work = self._work, None
        if not work.cancelled():
            return work.result()
        if not timed_out:
            return None
        seconds = round(clock.monotonic() - began, 3)
        why = f"The rehearsal took longer than {order.seconds:g} s; it was at: {self._step}"
        return wire.RehearsalResult("unknown", "rehearsal_timeout", why, seconds=seconds)

    async def _try(self, order: wire.RehearsalOrder, began: float) -> wire.RehearsalResult:
        release = self._runtime.release
        generation = release.generation if release is not None else 0
        # Nothing is flipped, so the plan needn't be newer than the release that serves.
        plan = msgspec.structs.replace(order.plan, generation=max(order.plan.generation, generation + 1))
        try:
            manifests = plan_check.check_plan(plan, generation)
            self._step = "fetch"
            whole = {f.sha256 for f in self._runtime.inventory.functions}
            serving = release.functions if release is not None else []
            trusted = {f.sha256 for f in serving if f.code[0]} & whole
            await self._artifacts.fetch(self._client(), plan.functions, trusted)
            self._step = "compile"
            planned = [
                frames.LocalFunction(f.name, f.version, f.sha256, manifests[f.name], f.manifest_digest)
                for f in plan.functions
            ]
            functions = await self._compiler.in_background(planned)
            self._step = "try"
            left = max(0.0, order.seconds - (clock.monotonic() - began))
            result = await self._runtime.rehearse(plan, functions, SHARE * left)
        except SyncFailed as failed:
            said = failed.code[:64], failed.message[:SHOWN]
            untried = failed.code in UNKNOWN
            result = wire.RehearsalResult("unknown", *said) if untried else wire.RehearsalResult("failed", *said)
        except OSError as error:
            result = wire.RehearsalResult(
                "unknown", "disk_failed", f"The state directory can't be used: {error}"[:SHOWN]
            )
        except Exception as error:
            log.exception("a rehearsal failed in a way that nobody foresaw")
            result = wire.RehearsalResult("unknown", "internal", f"The edge runtime made a mistake: {error!r}"[:SHOWN])
        return msgspec.structs.replace(result, seconds=round(clock.monotonic() - began, 3))
