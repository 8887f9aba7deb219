"""Has the steps of schema changes run that aren't part of a release's transaction: before its flip for a sync, and
after it by itself, until all are done. One applier at a time runs steps, and it may be killed anywhere."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release import applier_process

log = logging.getLogger("skerry.steps")

PAUSE: Final = 5.0
PAUSE_CAP: Final = 600.0
"""Seconds until a step after a flip that failed is tried again: the first pause, doubled each time up to the cap."""


def has_steps(plan: wire.Plan) -> bool:
    """Tell whether a change of the plan may have steps: the applier reads them, the front looks for their lines."""
    return any("-- skerry: " in change.sql for change in plan.schema_changes)


class StepRunner:
    """`run` must be running, for the steps after flips."""

    def __init__(self, processes: ZygoteClient, limit: float, named: applier_process.Named) -> None:
        """`limit`: seconds that one step in a single transaction, or one batch, may take."""
        self._processes = processes
        self._limit = limit
        self._named = named
        self._one = asyncio.Lock()
        self.unfinished = asyncio.Event()
        """Set while there may be steps after a flip that are to be done."""
        self.doing = ""
        """What is being done after a flip; empty when nothing is."""
        self.error: SyncFailed | None = None
        """Why a step after a flip failed; None when none did, or it was done since."""

    @property
    def busy(self) -> bool:
        """Whether there may be steps after a flip that are to be done, or are being done."""
        return self.unfinished.is_set() or self._one.locked()

    async def advance(self, order: frames.Advance, tell: Callable[[str], None]) -> None:
        """Run the steps before a flip, and what is left after earlier ones. Raises: SyncFailed, when one fails."""
        async with self._one, applier_process.started(self._processes.birth("applier")) as applier:
            await applier_process.steps(applier, frames.ADVANCE, order, self._limit, self._named, tell)

    async def run(self) -> None:
        """Run the steps after flips until cancelled."""
        pause = PAUSE
        while True:
            await self.unfinished.wait()
            try:
                async with self._one, applier_process.started(self._processes.birth("applier")) as applier:
                    self.unfinished.clear()
                    await applier_process.steps(applier, frames.FINISH, None, self._limit, self._named, self._tell)
            except SyncFailed as failed:
                self.unfinished.set()
                self.error = failed
                log.error("what comes after a schema change isn't done yet, and is tried again: %s", failed.message)
                await clock.sleep(pause)
                pause = min(PAUSE_CAP, 2 * pause)
            else:
                self.error = None
                pause = PAUSE
            finally:
                self.doing = ""

    def _tell(self, doing: str) -> None:
        self.doing = doing
