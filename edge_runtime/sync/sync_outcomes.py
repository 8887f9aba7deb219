"""How syncs end, and what control is told of it: a report that control doesn't take waits on disk, and goes before
polls. `retries` decides when a sync that failed is tried again."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from control.protocol import faults, wire
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import retries
from edge_runtime.sync.attempt import Runtime, text
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.sync.outbox import Outbox, despite_the_disk
from edge_runtime.sync.retries import FailedSync

SHOWN = 20
"""Functions that a line of the log has at most."""

log = logging.getLogger("skerry.agent")


class SyncOutcomes:
    def __init__(self, state: Path, runtime: Runtime, jitter: Callable[[], float]) -> None:
        self.failed: FailedSync | None = None
        """The failure of the sync to the node's target, if it failed."""
        self.failures = 0
        """Syncs that failed since the start."""
        self._runtime = runtime
        self._jitter = jitter
        self._outbox = Outbox(state)

    @property
    def waits(self) -> bool:
        """Whether a report waits to be sent."""
        return self._outbox.waits

    async def look_back(self, generation: int) -> None:
        """Find out whether the process before this one ended in the middle of a sync, and act on it; `generation` is
        the node's."""
        attempt = await asyncio.to_thread(self._outbox.begun)
        if attempt is None:
            return
        log.warning("the sync to release %d was broken off by the end of the process", attempt.release_number)
        if attempt.generation <= generation:
            # The sync was past its commit: the poll will tell control.
            await self.ended()
            return
        crashes = attempt.crashes + 1
        now = clock.now()
        self.failed = retries.crashed(attempt.generation, attempt.release_number, crashes, now, self._jitter())
        if self.failed is not None:
            with despite_the_disk("the report"):
                await asyncio.to_thread(self._outbox.keep, attempt.sync_id, self._failure_update(self.failed))

    async def begun(self, plan: wire.Plan) -> None:
        """Remember on disk that a sync begins."""
        with despite_the_disk("that a sync begins"):
            await asyncio.to_thread(self._outbox.begin, plan)

    async def ended(self) -> None:
        """Remember on disk that the sync came to its end."""
        with despite_the_disk("that a sync came to its end"):
            await asyncio.to_thread(self._outbox.end)

    async def report(self, client: ControlClient, plan: wire.Plan, error: SyncFailed | None, now: datetime) -> bool:
        """Tell control how a sync ended, at `now` by control's clock; return whether control finds the node at its
        target.

        Raises: NoAnswer or ControlRefused, when control can't be told: the report waits on disk then.
        """
        if error is None:
            self.failed = None
            update = wire.SyncUpdate(status="succeeded", step="report", inventory=self._runtime.inventory)
            log.info("release %d serves: %s", plan.release_number, listed(plan.functions))
        else:
            update = self._failure_update(self._fail(plan, error, now))
        faults.reach("edge.sync.report.before")
        try:
            state = await self._tell(client, plan.sync_id, update)
        except (NoAnswer, ControlRefused):
            with despite_the_disk("the report"):
                await asyncio.to_thread(self._outbox.keep, plan.sync_id, update)
            faults.reach("edge.sync.report.after")
            raise
        faults.reach("edge.sync.report.after")
        if error is None and state == "failed":
            error = SyncFailed("not_at_target", "control does not find this node at its target")
            self._fail(plan, error, now)
        return state == "succeeded"

    async def deliver(self, client: ControlClient) -> bool:
        """Send the report that waits, if there is one; return whether control finds the node at its target by it.

        Raises: NoAnswer or ControlRefused, when control can't be told.
        """
        waiting = await asyncio.to_thread(self._outbox.waiting)
        if waiting is None:
            return False
        state = await self._tell(client, waiting.sync_id, waiting.update)
        with despite_the_disk("that a report was sent"):
            await asyncio.to_thread(self._outbox.clear, waiting.sync_id)
        return state == "succeeded"

    def _failure_update(self, failed: FailedSync) -> wire.SyncUpdate:
        error = wire.SyncError(failed.code[:64], failed.message[:2000])
        return wire.SyncUpdate(
            status="failed", error=error, retry_at=failed.retry_at, inventory=self._runtime.inventory
        )

    def _fail(self, plan: wire.Plan, error: SyncFailed, now: datetime) -> FailedSync:
        self.failures += 1
        failed = self.failed = retries.failure(self.failed, plan.generation, error, now, self._jitter())
        log.error(
            "the sync to release %d failed (%s): %s; next attempt at %s",
            plan.release_number,
            error.code,
            error.message,
            text(failed.retry_at),
        )
        return failed

    async def _tell(self, client: ControlClient, sync_id: str, update: wire.SyncUpdate) -> str:
        """Report an outcome, and return the sync's status by control; if control refuses it for good, log that and drop
        it: the next poll sorts it out."""
        try:
            return (await client.report(sync_id, update)).status
        except ControlRefused as refusal:
            if not retries.final(refusal.status):
                raise
            log.error("control does not take the report of sync %s: %s", sync_id, refusal.message)
            return ""


def listed(functions: Sequence[wire.PlannedFunction]) -> str:
    """Return the functions of a release as the log names them."""
    names = [f"{function.name}@{function.version}" for function in functions[:SHOWN]]
    more = f" and {len(functions) - SHOWN} more" if len(functions) > SHOWN else ""
    return (", ".join(names) or "no functions") + more
