"""The agent: polls control, brings the node to its target, reports. One sync at a time, the newest release next.

Serving never waits for any of this: whatever goes wrong here ends up in the status and in control's record, and the
node serves its release on. `steps` has the rules, this module does what they say.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from control import faults, wire
from edge_runtime import frames, identity, steps
from edge_runtime.artifacts import Artifacts
from edge_runtime.client import Client, Refusal, Unreachable
from edge_runtime.identity import Identity
from edge_runtime.outbox import Outbox
from edge_runtime.steps import Failure, SyncFailed

ROTATE_AFTER = timedelta(days=30)
"""Age of a credential at which the node asks for another."""
ROTATE_AGAIN = timedelta(hours=1)
"""After an attempt to get or to use another credential that came to nothing."""
RENEW_CAP = 20.0
"""A sync that takes longer says that it is running at least this often: it is the node's heartbeat meanwhile."""
QUICK_ANSWERS = 3
"""So many polls in a row that come back at once, and the node takes a breath before the next."""

log = logging.getLogger("skerry.agent")


class Runtime(Protocol):
    """What holds the node's release and moves it to another: the front."""

    @property
    def release(self) -> frames.LocalRelease | None: ...

    @property
    def inventory(self) -> wire.Inventory: ...

    async def apply(self, plan: wire.Plan, functions: list[frames.LocalFunction]) -> wire.Inventory:
        """Prepare, flip, commit, swap; raises `SyncFailed` with the old release serving on."""
        ...


class Compiler(Protocol):
    """Makes AOT files of artifacts that are on disk."""

    async def functions(self, planned: list[frames.LocalFunction]) -> list[frames.LocalFunction]:
        """The same functions with AOT files to start on; raises `SyncFailed`."""
        ...

    def collect(self, keep: set[str]) -> None:
        """Remove the AOT files of all artifacts but those of `keep` (sha256)."""
        ...


class Agent:
    """`run` it beside the server; `status` is for /_skerry/status."""

    def __init__(
        self,
        state: Path,
        who: Identity,
        runtime: Runtime,
        compiler: Compiler,
        *,
        rotate_after: timedelta = ROTATE_AFTER,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._state = state
        self._who = who
        self._runtime = runtime
        self._compiler = compiler
        self._rotate_after = rotate_after
        self._jitter = jitter
        self._artifacts = Artifacts(state)
        self._outbox = Outbox(state)
        self._client = Client(who.control_url, identity.ca_path(state), who.next_credential or who.credential)
        self._boot_id = str(uuid4())
        self._ask_inventory = False
        self._quick = 0
        self._troubles = 0
        self._failed: Failure | None = None
        self._problem: dict[str, str | None] | None = None
        self._next_attempt: datetime | None = None
        self._heard_at: datetime | None = None
        self._at_target: bool | None = None
        self._sync: dict[str, Any] | None = None
        self._rotate_from = datetime.now(UTC)

    async def run(self) -> None:
        """Until cancelled."""
        async with self._client:
            while True:
                try:
                    await self._turn()
                except (Unreachable, Refusal) as error:
                    await self._trouble(error)
                except Exception as error:
                    # The agent's own mistake must not take the serving of functions with it.
                    log.exception("the agent made a mistake; it goes on")
                    await self._trouble(Unreachable("internal", f"the agent made a mistake: {error!r}; see its log"))

    def status(self) -> dict[str, Any]:
        """What the node knows of control and its target, for people and scripts. Times are RFC 3339."""
        failed = self._failed
        error = self._problem
        if failed is not None:
            error = {"code": failed.code, "message": failed.message, "at": _text(failed.at)}
        waits = [t for t in (self._next_attempt, failed.retry_at if failed else None) if t is not None]
        return {
            "node": {"id": self._who.node_id, "name": self._who.name, "group": self._who.group},
            "control": {
                "url": self._who.control_url,
                "reachable": self._problem is None and self._heard_at is not None,
                "heard_at": _text(self._heard_at),
                "error": self._problem,
            },
            "at_target": self._at_target,
            "sync": self._sync,
            "error": error,
            "failed_generation": failed.generation if failed else None,
            "attempts": failed.attempts if failed else 0,
            "next_attempt": _text(min(waits)) if waits else None,
            "report_waits": self._outbox.waiting() is not None,
        }

    # Polls

    async def _turn(self) -> None:
        """One question to control and what follows from it."""
        await self._deliver()
        await self._rotate()
        answer, took = await self._poll()
        self._ask_inventory = isinstance(answer, wire.Report)
        match answer:
            case wire.Plan():
                self._quick = 0
                self._at_target = False
                await self._follow(answer)
            case wire.Report():
                await self._breathe(took)
            case None:
                if self._failed is None or self._failed.due(self._now()):
                    self._failed = None
                    self._at_target = True
                await self._breathe(took)

    async def _poll(self) -> tuple[wire.Plan | wire.Report | None, float]:
        """Control's answer, and the seconds that it took."""
        now = self._now()
        inventory = self._runtime.inventory
        poll = wire.Poll(
            generation=self._generation,
            digest=wire.digest(inventory),
            boot_id=self._boot_id,
            wait=steps.hold(self._failed, now),
            failed=steps.told(self._failed, now),
            inventory=inventory if self._ask_inventory else None,
        )
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answer = await self._client.poll(poll)
        except Refusal as refusal:
            if refusal.status == 401 and self._who.next_credential:
                log.warning("the new credential is refused; the node goes back to the one that it had")
                self._keep(self._who.fallen_back())
                return await self._poll()
            raise
        if self._who.next_credential:
            self._keep(self._who.promoted())
        self._heard()
        return answer, loop.time() - started

    def _heard(self) -> None:
        if self._troubles:
            log.info("control answers again")
        self._troubles = 0
        self._problem = None
        self._next_attempt = None
        self._heard_at = datetime.now(UTC)

    async def _breathe(self, took: float) -> None:
        """Answers that come back at once, one after the other, are no reason for a hot loop."""
        self._quick = self._quick + 1 if took < 1.0 else 0
        if self._quick > QUICK_ANSWERS:
            await asyncio.sleep(0.5 + self._jitter() / 2)

    async def _trouble(self, error: Unreachable | Refusal) -> None:
        """Say what is wrong, and wait as long as that asks for."""
        status = error.status if isinstance(error, Refusal) else None
        retry_after = error.retry_after if isinstance(error, Refusal) else None
        self._troubles += 1
        message = error.message
        if status in (401, 403):
            message = (
                f"control refuses this node's credential ({error.message}): an operator has revoked it or removed the "
                f"node. It serves its last release on; to have it synced again, make a token with `skerry node token "
                f"--rejoin {self._who.name}` (without --rejoin if the node was removed), run `skerry-edge join --again "
                f"--control {self._who.control_url} --state {self._state} …`, and start the node again"
            )
        pause = steps.pause_after(status, retry_after, self._troubles, self._jitter())
        if self._problem is None or self._problem["code"] != error.code:
            log.warning("control: %s (next attempt in %.1f s)", message, pause)
        now = datetime.now(UTC)
        self._problem = {"code": error.code, "message": message, "at": _text(now)}
        self._next_attempt = now + timedelta(seconds=pause)
        await asyncio.sleep(pause)

    # A sync

    async def _follow(self, plan: wire.Plan) -> None:
        """Do what the plan says and tell control how it ended."""
        await asyncio.sleep(steps.pause_before(self._failed, plan.generation, self._now()))
        log.info("sync to release %d (generation %d) begins", plan.release_number, plan.generation)
        before = self._runtime.release
        self._sync = {"id": plan.sync_id, "release": plan.release_number, "started_at": _text(datetime.now(UTC))}
        error: SyncFailed | None = None
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work(plan))
                renewal = group.create_task(self._renew(plan, work))
                await asyncio.wait([work])
                renewal.cancel()
            if work.cancelled():
                log.info("the sync to release %d was overtaken by a newer one", plan.release_number)
                return
            error = work.result()
        finally:
            self._sync = None
        await self._report(plan, error)
        if error is None and before is not None and before.release_id != plan.release_id:
            keep = {f.sha256 for f in before.functions} | {f.sha256 for f in plan.functions}
            await asyncio.to_thread(self._collect, keep)

    async def _work(self, plan: wire.Plan) -> SyncFailed | None:
        """The steps of a sync up to the report; what it failed of, if it did."""
        try:
            manifests = steps.check_plan(plan, self._generation)
            release = self._runtime.release
            # One without an AOT file could not be compiled at start: its artifact may be damaged.
            serving = {f.sha256 for f in release.functions if f.aot} if release is not None else set()

            self._begin("fetch")
            await self._artifacts.fetch(self._client, plan.functions, serving)
            self._end("fetch")

            self._begin("compile")
            functions = await self._compiler.functions(
                [
                    frames.LocalFunction(f.name, f.version, f.sha256, manifests[f.name], f.manifest_digest)
                    for f in plan.functions
                ]
            )
            self._end("compile")

            self._begin("flip")
            await self._runtime.apply(plan, functions)
            self._end("flip")
        except SyncFailed as error:
            return error
        except Exception as error:
            log.exception("a sync failed in a way that nobody foresaw")
            return SyncFailed("internal", f"the edge runtime made a mistake: {error!r}; the node's log has more")
        return None

    def _begin(self, step: str) -> None:
        if self._sync is not None:
            self._sync["step"] = step
        faults.reach(f"edge.sync.{step}.before")

    def _end(self, step: str) -> None:
        faults.reach(f"edge.sync.{step}.after")

    async def _renew(self, plan: wire.Plan, work: asyncio.Task[Any]) -> None:
        """Keep the sync's lease while its work goes on; work that nobody wants any more is ended, where it can be."""
        lease = plan.lease
        while True:
            await asyncio.sleep(min(RENEW_CAP, lease / 3))
            step = self._sync["step"] if self._sync is not None else ""
            try:
                state = await self._client.report(plan.sync_id, wire.SyncUpdate(status="running", step=step))
            except (Unreachable, Refusal) as error:
                log.warning("control can't be told that the sync goes on: %s", error.message)
                continue
            lease = state.lease or lease
            if steps.superseded(state) and self._sync is not None and self._sync["step"] in ("fetch", "compile"):
                work.cancel()

    async def _report(self, plan: wire.Plan, error: SyncFailed | None) -> None:
        """Keep the outcome and tell control; where it can't be told, the report waits on disk and goes first."""
        inventory = self._runtime.inventory
        if error is None:
            self._failed = None
            update = wire.SyncUpdate(status="succeeded", step="report", inventory=inventory)
            log.info("release %d serves (generation %d)", plan.release_number, plan.generation)
        else:
            self._fail(plan.generation, error)
            update = wire.SyncUpdate(
                status="failed",
                error=wire.SyncError(error.code[:64], error.message[:2000]),
                retry_at=self._failed.retry_at if self._failed else None,
                inventory=inventory,
            )
        faults.reach("edge.sync.report.before")
        try:
            await self._tell(plan.sync_id, update, plan.generation)
        except (Unreachable, Refusal):
            self._outbox.keep(plan.sync_id, update)
            raise
        faults.reach("edge.sync.report.after")

    def _fail(self, generation: int, error: SyncFailed) -> None:
        self._failed = steps.failure(self._failed, generation, error, self._now(), self._jitter())
        log.error(
            "the sync to generation %d failed (%s): %s; next attempt at %s",
            generation,
            error.code,
            error.message,
            _text(self._failed.retry_at),
        )

    async def _tell(self, sync_id: str, update: wire.SyncUpdate, generation: int | None = None) -> None:
        """Report an outcome; one that control will never take is logged and dropped, the next poll sorts it out."""
        try:
            state = await self._client.report(sync_id, update)
        except Refusal as refusal:
            if not steps.final(refusal.status):
                raise
            log.error("control does not take the report of sync %s: %s", sync_id, refusal.message)
            return
        if generation is not None and update.status == "succeeded" and state.status == "failed":
            self._fail(generation, SyncFailed("not_at_target", "control does not find this node at its target"))

    async def _deliver(self) -> None:
        """The report that waits goes before any question."""
        waiting = self._outbox.waiting()
        if waiting is not None:
            await self._tell(waiting.sync_id, waiting.update)
            self._outbox.clear()

    def _collect(self, keep: set[str]) -> None:
        self._artifacts.collect(keep)
        self._compiler.collect(keep)

    # The node's own

    async def _rotate(self) -> None:
        """Ask for another credential when this one is old; both are kept until the new one was used."""
        now = datetime.now(UTC)
        if self._who.next_credential or now < max(self._who.credential_since + self._rotate_after, self._rotate_from):
            return
        self._rotate_from = now + ROTATE_AGAIN
        try:
            credential = await self._client.rotate()
        except (Unreachable, Refusal) as error:
            # The present one is good; whether control can be reached is the poll's to find out.
            log.warning("there is no new credential yet: %s", error.message)
            return
        self._keep(self._who.rotated(credential))
        log.info("the node has got a new credential")

    def _keep(self, who: Identity) -> None:
        identity.write(self._state, who)
        self._who = who
        self._client.credential = who.next_credential or who.credential

    @property
    def _generation(self) -> int:
        release = self._runtime.release
        return release.generation if release is not None else 0

    def _now(self) -> datetime:
        """Control's time, as far as it is known: it judges the times that this node names."""
        return datetime.now(UTC) + timedelta(seconds=self._client.skew)


def _text(when: datetime | None) -> str | None:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z") if when is not None else None
