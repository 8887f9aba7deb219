"""The front's side of appliers: each is started for one task and stopped afterwards. The task is a change of release,
steps of schema changes that aren't part of a release's transaction (`StepRunner`), or a count of rows."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient

log = logging.getLogger("skerry.steps")

PAUSE: Final = 5.0
PAUSE_CAP: Final = 600.0
"""Seconds until a failed step after a flip is tried again: the first pause, which doubles each time up to the cap."""
COUNT_LIMIT: Final = 60.0
"""Seconds that counting rows may take; 200 tables of 10,000 rows take a tenth of one."""

Named = Callable[[str, str], str]
"""Returns an error's message, given its code and its message, as `Pool.named` does."""

_decode_inventory: Final = msgspec.json.Decoder(wire.Inventory).decode
_decode_counted: Final = msgspec.json.Decoder(frames.Counted).decode


@contextlib.asynccontextmanager
async def started(birth: Awaitable[Child]) -> AsyncIterator[Child]:
    """Start an applier, and stop it at the end of the block. Raises: SyncFailed, when none can be started."""
    try:
        child = await birth
    except NotBorn as error:
        raise SyncFailed("applier_died", f"No applier could be started: {error}; nothing was changed.") from None
    try:
        yield child
    finally:
        child.kill()
        try:
            if not child.exited.done():
                # Its transaction, if it had one, must be gone before calls run again.
                await asyncio.shield(child.exited)
        finally:
            child.close()


async def prepare(applier: Child, order: frames.Apply, limit: float, named: Named) -> wire.Inventory:
    """Have a release prepared in `limit` seconds at most; return its result. Raises: SyncFailed."""
    number = order.plan.release_number
    doing = "nothing yet: another process had the writer lock"
    try:
        async with clock.timeout(limit):
            reply = await applier.ask(frames.APPLY, order, None)
            while reply.kind == frames.APPLYING:
                doing = _doing(reply)
                reply = await applier.answer()
        if reply.kind != frames.FAILED:
            return frames.told(reply, frames.PREPARED, _decode_inventory)
    except TimeoutError:
        text = (
            f"The schema changes and probes of release {number} took longer than {limit:g} s together (apply_limit), "
            f"and nothing was changed. What ran then: {doing}"
        )
        raise SyncFailed("apply_timeout", text) from None
    except frames.ChildGone:
        text = f"The process that applied release {number} died; nothing was changed. What ran then: {doing}"
        raise SyncFailed("applier_died", text) from None
    raise _failure(reply, named)


async def _run_steps(
    applier: Child, kind: int, order: frames.Advance | None, limit: float, named: Named, tell: Callable[[str], None]
) -> None:
    """Have steps of schema changes run. `limit`: seconds for each action that is reported to `tell`.

    Raises: SyncFailed, when a step fails.
    """
    doing = "nothing yet: another process had the writer lock"
    try:
        async with clock.timeout(limit) as timer:
            reply = await applier.ask(kind, order, None)
            while reply.kind == frames.APPLYING:
                doing = _doing(reply)
                tell(doing)
                timer.reschedule(clock.monotonic() + limit)
                reply = await applier.answer()
    except TimeoutError:
        text = f"A step of a schema change took longer than {limit:g} s (apply_limit), and was undone. What ran then: "
        raise SyncFailed("apply_timeout", text + doing) from None
    except frames.ChildGone:
        text = "The process that ran a step of a schema change died; what it had committed stays. What ran then: "
        raise SyncFailed("applier_died", text + doing) from None
    if reply.kind != frames.DONE:
        raise _failure(reply, named)


def _doing(reply: frames.Frame) -> str:
    return reply.body[: frames.FAILURE_TEXT].decode(errors="replace")


def _failure(reply: frames.Frame, named: Named) -> SyncFailed:
    failure = frames.decode_failure(reply.body)
    return SyncFailed(failure.code, named(failure.code, failure.message))


async def abort(applier: Child) -> None:
    """Have the applier roll back; if it no longer answers, killing it rolls back."""
    with contextlib.suppress(frames.ChildGone, TimeoutError):
        await applier.ask(frames.ABORT, None, 5.0)


async def count_rows(processes: ZygoteClient) -> frames.Counted | None:
    """Have an applier count rows while calls run; return about how many each table has, by its name in lower case. None
    if they can't be counted now.

    The child runs at normal priority: opening the file takes SQLite's write lock for a moment, during which an
    idle-priority child could be preempted.
    """
    try:
        child = await processes.birth("applier")
    except NotBorn:
        return None
    with contextlib.closing(child):
        try:
            reply = await child.ask(frames.COUNT, None, COUNT_LIMIT)
            return None if reply.kind == frames.FAILED else frames.told(reply, frames.COUNTED, _decode_counted)
        except (frames.ChildGone, TimeoutError):
            return None
        finally:
            child.kill()


def has_steps(plan: wire.Plan) -> bool:
    """Return whether a change in the plan may have steps: the front looks for their lines, the applier parses them."""
    return any("-- skerry: " in change.sql for change in plan.schema_changes)


class StepRunner:
    """Runs the steps of schema changes that aren't part of a release's transaction: before its flip for a sync, and
    after it on its own, until all are done. One applier at a time runs steps, and it may be killed at any point. `run`
    must be running, for the steps after flips."""

    def __init__(self, processes: ZygoteClient, limit: float, named: Named) -> None:
        """`limit`: seconds that one step in a single transaction, or one batch, may take."""
        self._processes = processes
        self._limit = limit
        self._named = named
        self._one = asyncio.Lock()
        self.unfinished = asyncio.Event()
        """Set while there may be steps left to do after a flip."""
        self.doing = ""
        """The step being run after a flip; empty if none is."""
        self.error: SyncFailed | None = None
        """Why a step after a flip failed; None if none did, or if it has succeeded since."""

    @property
    def busy(self) -> bool:
        """Whether there may be steps left to do after a flip, or some are running."""
        return self.unfinished.is_set() or self._one.locked()

    async def advance(self, order: frames.Advance, tell: Callable[[str], None]) -> None:
        """Run the steps before a flip, and those left from earlier flips. Raises: SyncFailed, when one fails."""
        async with self._one, started(self._processes.birth("applier")) as applier:
            await _run_steps(applier, frames.ADVANCE, order, self._limit, self._named, tell)

    async def run(self) -> None:
        """Run the steps after flips until cancelled."""
        pause = PAUSE
        while True:
            await self.unfinished.wait()
            try:
                async with self._one, started(self._processes.birth("applier")) as applier:
                    self.unfinished.clear()
                    await _run_steps(applier, frames.FINISH, None, self._limit, self._named, self._tell)
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
