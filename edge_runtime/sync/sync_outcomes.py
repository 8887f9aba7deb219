"""Records how syncs end, and reports it to control.

A report that control doesn't take waits on disk, and is sent before polls. `retries` decides when a failed sync is
tried again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from control.protocol import faults, wire
from edge_runtime import clock, files
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import retries
from edge_runtime.sync.attempt import Runtime, text
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.sync.retries import FailedSync

SHOWN = 20
"""The most functions in a line of the log."""

log = logging.getLogger("skerry.agent")
outbox_log = logging.getLogger("skerry.outbox")

T = TypeVar("T")


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
        """Return whether a report waits to be sent."""
        return self._outbox.waits

    async def look_back(self, generation: int) -> None:
        """Find out whether the previous process ended in the middle of a sync, and act on that.

        `generation` is the node's.
        """
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
            with _despite_the_disk("the report"):
                await asyncio.to_thread(self._outbox.keep, attempt.sync_id, self._failure_update(self.failed))

    async def begun(self, plan: wire.Plan) -> None:
        """Record on disk that a sync begins."""
        with _despite_the_disk("that a sync begins"):
            await asyncio.to_thread(self._outbox.begin, plan)

    async def ended(self) -> None:
        """Record on disk that the sync has ended."""
        with _despite_the_disk("that a sync came to its end"):
            await asyncio.to_thread(self._outbox.end)

    async def report(
        self, client: ControlClient, plan: wire.Plan, error: SyncFailed | None, before: bytes = b""
    ) -> bool:
        """Report to control how a sync ended; return whether control finds the node at its target.

        `before` is the node's calls of the hour before, as in `wire.SyncUpdate`.

        Raises: NoAnswer or ControlRefused, when that fails: the report then waits on disk.
        """
        if error is None:
            self.failed = None
            inventory = self._runtime.inventory
            boundary = self._runtime.boundary
            update = wire.SyncUpdate(
                status="succeeded", step="report", inventory=inventory, before=before, boundary=boundary
            )
            log.info("release %d serves: %s", plan.release_number, listed(plan.functions))
        else:
            update = self._failure_update(self._fail(plan, error, client.now()))
        faults.reach("edge.sync.report.before")
        try:
            state = await self._tell(client, plan.sync_id, update)
        except (NoAnswer, ControlRefused):
            with _despite_the_disk("the report"):
                await asyncio.to_thread(self._outbox.keep, plan.sync_id, update)
            faults.reach("edge.sync.report.after")
            raise
        faults.reach("edge.sync.report.after")
        if error is None and state == "failed":
            error = SyncFailed("not_at_target", "control does not find this node at its target")
            self._fail(plan, error, client.now())
        return state == "succeeded"

    async def deliver(self, client: ControlClient) -> bool:
        """Send the waiting report, if there is one; return whether it shows control the node at its target.

        Raises: NoAnswer or ControlRefused, when that fails.
        """
        if not self._outbox.waits or (waiting := await asyncio.to_thread(self._outbox.waiting)) is None:
            return False
        state = await self._tell(client, waiting.sync_id, waiting.update)
        with _despite_the_disk("that a report was sent"):
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
        """Report an outcome, and return the sync's status according to control.

        If control refuses it for good, log that and drop it: the next poll sorts it out.
        """
        try:
            return (await client.report(sync_id, update)).status
        except ControlRefused as refusal:
            if not retries.final(refusal.status):
                raise
            log.error("control does not take the report of sync %s: %s", sync_id, refusal.message)
            return ""


def listed(functions: Sequence[wire.PlannedFunction]) -> str:
    """Return the functions of a release in words, for the log."""
    names = [f"{function.name}@{function.version}" for function in functions[:SHOWN]]
    more = f" and {len(functions) - SHOWN} more" if len(functions) > SHOWN else ""
    return (", ".join(names) or "no functions") + more


class Waiting(Struct):
    """A report that waits to be sent."""

    sync_id: str
    update: wire.SyncUpdate


class BegunSync(Struct):
    """A sync that has begun. If it is still there at a start, the node's process ended in the middle of it."""

    sync_id: str
    generation: int
    release_number: int
    crashes: int = 0
    """Consecutive earlier processes that ended in the middle of a sync to this generation."""


class Outbox:
    """What must outlive a restart: the files `outbox/report.json` and `outbox/attempt.json` in the state directory.

    A node does one sync at a time, and doesn't poll while a report waits, so there is at most one of each.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / "outbox" / "report.json"
        self._attempt = state / "outbox" / "attempt.json"
        self.waits = False
        """Whether a report waits, as far as this object knows."""
        # A folder without access for this user doesn't keep a node from serving: doctor and the next sync report it.
        with contextlib.suppress(OSError):
            self.waits = self._file.exists()
        self._told = ""
        """Id of the sync whose report needn't be sent any more, though it may still be on disk."""

    def keep(self, sync_id: str, update: wire.SyncUpdate) -> None:
        """Store a report in place of an older one; it is on disk when this returns."""
        # Set first: a write that fails at its last step has put the report in its place. `waiting` finds out.
        self.waits = True
        files.make_folder(self._file.parent)
        files.write(self._file, msgspec.json.encode(Waiting(sync_id, update)))
        # Control may have given the same sync again, from metadata that were restored.
        self._told = ""

    def waiting(self) -> Waiting | None:
        """Return the waiting report, if any.

        A file that can't be read counts as none: control then asks for the inventory.
        """
        report = _read(self._file, Waiting)
        if report is not None and report.sync_id == self._told:
            report = None
        self.waits = report is not None
        return report

    def clear(self, sync_id: str) -> None:
        """Delete the stored report of a sync, once control has accepted it or refused it for good.

        Raises: OSError; the report is then ignored until the next start.
        """
        self._told = sync_id
        self.waits = False
        if self._file.exists():
            files.remove(self._file)

    def begun(self) -> BegunSync | None:
        """Return the sync that has begun and not ended, if any."""
        return _read(self._attempt, BegunSync)

    def begin(self, plan: wire.Plan) -> None:
        """Note that a sync begins. The note outlives the process, but isn't synced: a power loss may lose it."""
        earlier = self.begun()
        same = earlier is not None and earlier.generation == plan.generation
        crashes = earlier.crashes + 1 if earlier is not None and same else 0
        attempt = BegunSync(plan.sync_id, plan.generation, plan.release_number, crashes)
        files.make_folder(self._attempt.parent)
        self._attempt.write_bytes(msgspec.json.encode(attempt))

    def end(self) -> None:
        """Note that the sync has ended, whether it succeeded or failed."""
        self._attempt.unlink(missing_ok=True)


def _read(file: Path, kind: type[T]) -> T | None:
    """Return a file's content, None if it can't be read; remove it if it is damaged. Serving needs neither file."""
    try:
        data = file.read_bytes()
        # A power loss empties a file that wasn't synced.
        return msgspec.json.decode(data, type=kind) if data else None
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        outbox_log.error("%s is damaged, and is removed: %s", file, error)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    except OSError as error:
        outbox_log.error("%s can't be read, and is left out: %s", file, error)
    return None


@contextlib.contextmanager
def _despite_the_disk(what: str) -> Iterator[None]:
    """Log a disk error instead of raising it: without `what`, the next poll or the lease sorts things out."""
    try:
        yield
    except OSError as error:
        outbox_log.error("%s can't be kept on disk: %s", what, error)
