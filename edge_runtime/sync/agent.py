"""The agent polls control, syncs the node to its target and reports: one sync at a time, then the newest release.

Serving never waits for the agent. Whatever goes wrong here is shown in the node's status and in control's record, and
the node continues to serve its release. Threads write the agent's files before its next step, so that the loop never
waits for a disk. `retries` decides when to try again; this module does so.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.sync import capabilities, identity, retries
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.attempt import ArtifactCompiler, Runtime, Superseded, SyncAttempt, text
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer, ToldRelease
from edge_runtime.sync.control_trust import DROP_AFTER, ControlTrust
from edge_runtime.sync.credential import EXPIRED, ROTATE_AFTER, OwnCredential
from edge_runtime.sync.identity import Identity
from edge_runtime.sync.node_agent import AgentFacts, Backup
from edge_runtime.sync.rehearsals import Rehearsals
from edge_runtime.sync.restores import Restores
from edge_runtime.sync.sql_runs import SqlRunReports
from edge_runtime.sync.sync_outcomes import SyncOutcomes
from edge_runtime.sync.watch_answers import WatchAnswers
from edge_runtime.telemetry.poll_report import PollReport
from edge_runtime.telemetry.spans import TraceSpan

STOPS = "shutting_down"
"""The code in the answer of a stopping replica of control."""
LOOK = 2.0
"""Seconds between two checks whether the node has joined again, while control refuses it or can't be reached."""
QUICK_ANSWERS = 3
"""After this many consecutive polls that were answered at once, the node pauses before the next one."""

log = logging.getLogger("skerry.agent")


class Less(Exception):
    """The node now has less than what the held poll says."""


class Agent:
    """Keeps the node at its target while `run` is running; `status` is its part of /_skerry/status."""

    def __init__(
        self,
        state: Path,
        who: Identity,
        runtime: Runtime,
        compiler: ArtifactCompiler,
        *,
        rotate_after: timedelta = ROTATE_AFTER,
        jitter: Callable[[], float] = random.random,
        drop_after: float = DROP_AFTER,
    ) -> None:
        """`drop_after`: as in `ControlTrust`."""
        self._state = state
        self._credential = OwnCredential(state, who, rotate_after)
        self._trust = ControlTrust(state, drop_after=drop_after, jitter=jitter)
        self._runtime = runtime
        self._compiler = compiler
        self._jitter = jitter
        self._artifacts = Artifacts(state)
        self._outcomes = SyncOutcomes(state, runtime, jitter)
        self._sql_runs = SqlRunReports(state)
        self._rehearsals = Rehearsals(runtime, compiler, self._artifacts, lambda: self._client)
        self._restores = Restores(state, runtime, compiler, self._artifacts, self._rehearsals, lambda: self._client)
        self._earlier: set[str] = set()
        """sha256 of the artifacts of the release before the present one."""
        self._client: ControlClient
        self._boot_id = str(uuid4())
        self._capabilities = capabilities.document()
        self._capabilities_digest = capabilities.digest(self._capabilities)
        self._report_wanted = False
        self.watched = WatchAnswers()
        self._quick = 0
        self._troubles = 0
        self._moves = 0
        """How many consecutive times the node was sent to another replica of control."""
        self._problem: dict[str, str | None] | None = None
        self._next_attempt: datetime | None = None
        self._heard_at: datetime | None = None
        self._refused = False
        """Whether control's last answer refused the node's credential."""
        self._at_target: bool | None = None
        self._held = False
        """Whether control last said that the node stays at what it brought back."""
        self._confirmed: ToldRelease | None = None
        """The release that the node is at according to control, since the start and the last plan."""
        self._sync: SyncAttempt | None = None
        self._joined_again = False
        self._answered: float | None = None
        """When control last answered a poll (`clock.monotonic`)."""
        self.put_span: Callable[[TraceSpan], None] | None = None
        self.renamed: Callable[[str], None] = lambda name: None
        """Called with the node's name when that has changed."""
        self.backup: Backup | None = None
        self.numbers = PollReport()
        """What polls report about the node's calls and the node itself."""

    async def run(self) -> None:
        """Poll and sync until cancelled."""
        await self._outcomes.look_back(self._generation)
        await self._restores.look_back()
        self._earlier = await asyncio.to_thread(self._artifacts.earlier)
        try:
            while True:
                who = self._who
                try:
                    client = ControlClient(who.control_url, identity.ca_path(self._state), self._credential.present)
                except (ValueError, OSError) as error:
                    await self._trouble(NoAnswer("identity_unusable", str(error)))
                    continue
                async with client:
                    self._client = client
                    if self.backup is not None:
                        self.backup.use(client, who.node_id)
                    await self._run_as_this_node()
        finally:
            await self._restores.end()
            await self._rehearsals.end()

    async def _run_as_this_node(self) -> None:
        """Poll and sync as the present node, until it has joined again."""
        self._joined_again = False
        while not self._joined_again:
            try:
                await self._turn_with_a_credential()
            except (NoAnswer, ControlRefused) as error:
                if not await self._move(error):
                    await self._trouble(error)
            except Exception as error:
                # A bug in the agent must not stop the serving of functions.
                log.exception("the agent made a mistake; it goes on")
                await self._trouble(NoAnswer("internal", f"the agent made a mistake: {error!r}; see its log"))

    # Polls

    async def _turn_with_a_credential(self) -> None:
        """Take a turn; if control refuses the credential, look for another one, and take the turn again."""
        for last in (False, False, True):
            try:
                await self._turn()
                return
            except ControlRefused as refusal:
                if last or not await self._credential.exchanged(self._client, refusal):
                    raise

    async def _turn(self) -> None:
        """Poll control once, and act on the answer."""
        await self._sql_runs.look()
        if await self._outcomes.deliver(self._client):
            self._at_target = True
        await self._sql_runs.deliver(self._client)
        if self._restores.replaced is not None:
            replaced, self._restores.replaced = self._restores.replaced, None
            await self._note_earlier(replaced)
        elif self._rehearsals.untidy:
            await self._tidy()
        self._rehearsals.untidy = False
        if self._heard_at is not None:  # else control's time isn't known, and ours may be wrong
            await self._credential.rotate_when_old(self._client)
        answer, took, waits = await self._poll()
        if await self._trust.follow(self._client, self._who.control_url):
            self.numbers.tell_node_soon()
        self._report_wanted = isinstance(answer, wire.Report)
        match answer:
            case wire.Plan():
                await self._restores.tidy()
                self._at_target, self._confirmed, self._held = False, None, False
                if answer.generation == self._generation:
                    # That generation was already completed: whatever control lacks now, this must not be a hot loop.
                    await self._breathe(took)
                self._client.traceparent = answer.traceparent
                await self._follow(answer)
            case wire.Report():
                await self._breathe(took)
            case wire.Watch():
                self.watched.take(answer, self._client)
                await self._breathe(took)
            case wire.Rehearse():
                self._rehearsals.begin(answer.id)
                await self._breathe(took)
            case wire.Restore():
                self._restores.begin(answer.id)
                await self._breathe(took)
            case wire.BackUp():
                if self.backup is not None:
                    await self.backup.take(answer.interval)
                    self.numbers.tell_node_soon()
                await self._breathe(took)
            case wire.Renamed():
                await self._credential.rename(answer.name, self._client)
                self.renamed(answer.name)
                await self._breathe(took)
            case None:
                await self._restores.tidy()
                self._held = self._client.held
                if self._held:
                    self._at_target, self._confirmed = False, None
                # If it waits, control may have answered 204 only for that reason.
                elif not waits:
                    self._outcomes.failed = None
                    self._at_target, self._confirmed = True, self._client.release
                await self._breathe(took)

    async def _poll(self) -> tuple[wire.Answer | None, float, bool]:
        """Poll control; return its answer, how many seconds it took, and whether the poll announced a wait.

        That is a wait of the node before it retries a sync.
        """
        numbers = await self.numbers.next()
        now, self._client.traceparent = self._client.now(), ""
        self._runtime.less.clear()
        inventory = self._runtime.inventory
        failed = retries.told(self._outcomes.failed, now)
        poll = wire.Poll(
            generation=self._generation,
            digest=wire.digest(inventory),
            boot_id=self._boot_id,
            # The first poll, at the start or after trouble, isn't held, so that the node's status shows the answer.
            wait=self.numbers.hold(
                0.0 if self._at_target is None or self._troubles else retries.hold(self._outcomes.failed, now)
            ),
            failed=failed,
            inventory=inventory if self._report_wanted else None,
            capabilities_digest=self._capabilities_digest,
            capabilities=self._capabilities if self._report_wanted else None,
            protocol=wire.PROTOCOL,
            watching=self.watched.digest,
            name=self._who.name,
            rehearsal=self._rehearsals.id,
            restore=self._restores.id,
            numbers=numbers,
            backup=0.0 if self.backup is None else self.backup.interval,
        )
        started = clock.monotonic()
        try:
            answer = await self._ask(poll)
        except Less:
            return wire.Report(), clock.monotonic() - started, failed is not None
        except ControlRefused as refusal:
            if retries.final(refusal.status):
                self.numbers.refused(numbers)
            raise
        self.numbers.answered(numbers)
        await self._credential.accepted(self._client)
        self._heard()
        return answer, clock.monotonic() - started, failed is not None

    async def _ask(self, poll: wire.Poll) -> wire.Answer | None:
        """Return control's answer to a poll. Raises: Less, when the node meanwhile has less than the poll says."""
        asking = asyncio.ensure_future(self._client.poll(poll))
        finding = asyncio.ensure_future(self._runtime.less.wait())
        try:
            await asyncio.wait((asking, finding), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Less
            return asking.result()
        finally:
            finding.cancel()
            asking.cancel()
            await asyncio.wait((asking, finding))

    def _heard(self) -> None:
        if self._troubles:
            log.info("control answers again")
        self._troubles = self._moves = 0
        self._problem = None
        self._refused = False
        self._next_attempt = None
        self._heard_at = datetime.now(UTC)
        self._answered = clock.monotonic()

    async def _follow(self, plan: wire.Plan) -> None:
        """Carry out a plan, and report the outcome to control."""
        await clock.sleep(retries.pause_before(self._outcomes.failed, plan.generation, self._client.now()))
        log.info("sync to release %d (generation %d) begins", plan.release_number, plan.generation)
        before = self._runtime.release
        self._rehearsals.give_way()
        await self._outcomes.begun(plan)
        self._sync = SyncAttempt(plan, self._runtime, self._compiler, self._artifacts, self._client, self.put_span)
        try:
            error = await self._sync.run()
        except Superseded:
            log.info("the sync to release %d was overtaken by a newer decision", plan.release_number)
            return
        finally:
            self._sync = None
            self._rehearsals.go_on()
            await self._outcomes.ended()
        flipped = error is None and (before is None or before.release_id != plan.release_id)
        hour = await self.numbers.hour_before(plan.release_number) if flipped else b""
        if await self._outcomes.report(self._client, plan, error, hour):
            self._at_target = True
        if flipped and before is not None:
            await self._note_earlier({f.sha256 for f in before.functions})

    async def _note_earlier(self, earlier: set[str]) -> None:
        """Keep the artifacts of the release before the present one, and remove what is left of others."""
        self._earlier = earlier
        await asyncio.to_thread(self._artifacts.note_earlier, earlier)
        await self._tidy()

    async def _tidy(self) -> None:
        """Remove the artifacts and compiled code of other releases than the present one, the one before it, and those
        that are being rehearsed or brought back."""
        release = self._runtime.release
        present = set() if release is None else {f.sha256 for f in release.functions}
        keep = present | self._earlier | self._rehearsals.keeps | self._restores.keeps
        await asyncio.to_thread(self._collect, keep)

    def _collect(self, keep: set[str]) -> None:
        try:
            self._artifacts.collect(keep)
            self._compiler.collect(keep)
        except OSError as error:
            log.error("what earlier releases have left can't be removed: %s", error)

    async def _breathe(self, took: float) -> None:
        """Pause if control repeatedly answers at once: that must not become a hot loop."""
        self._quick = self._quick + 1 if took < 1.0 else 0
        if self._quick > QUICK_ANSWERS:
            await clock.sleep(0.5 + self._jitter() / 2)

    # Trouble

    async def _move(self, error: NoAnswer | ControlRefused) -> bool:
        """Return whether the error only means that a replica of control is stopping, and wait before the next request.

        Operators needn't know about that.
        """
        stops = error.cut if isinstance(error, NoAnswer) else error.code == STOPS
        if not stops or self._moves == retries.MOVES or self._troubles:
            return False
        self._moves += 1
        log.info("control: %s; the next replica is asked", error.message)
        retry_after = error.retry_after if isinstance(error, ControlRefused) else None
        await clock.sleep(retries.pause_between_replicas(retry_after, self._jitter()))
        return True

    async def _trouble(self, error: NoAnswer | ControlRefused) -> None:
        """Record what is wrong, and wait as long as the error requires."""
        status = error.status if isinstance(error, ControlRefused) else None
        retry_after = error.retry_after if isinstance(error, ControlRefused) else None
        self._troubles += 1
        message = error.message
        if status in (401, 403) and error.code != EXPIRED:
            message = self._credential.refused(error.code, error.message)
            # Control no longer says anything about the node's target.
            self._refused, self._at_target, self._held = True, None, False
        if error.code == "tls_untrusted":
            message = self._trust.cure(error.message)
        pause = retries.pause_after(status, retry_after, self._troubles, self._jitter())
        if self._problem is None or self._problem["code"] != error.code:
            log.warning("control: %s (next attempt in %.1f s)", message, pause)
        now = clock.now()
        self._problem = {"code": error.code, "message": message, "at": text(now)}
        self._next_attempt = now + timedelta(seconds=pause)
        while pause > 0 and not await self._look_for_another_identity():
            await clock.sleep(min(pause, LOOK))
            pause -= LOOK

    async def _look_for_another_identity(self) -> bool:
        """Return whether the node joined again while this process ran, or trusts control by another CA.

        The agent then continues with what is on disk now.
        """
        trusts_others = await asyncio.to_thread(self._trust.changed)
        if not await self._credential.joined_again() and not trusts_others:
            return False
        self._problem = self._confirmed = None
        self._refused, self._held, self._joined_again = False, False, True
        self.renamed(self._who.name)
        return True

    # Status

    def status(self) -> dict[str, Any]:
        """Return what the node knows about control and its target, for people and scripts. Times are in RFC 3339."""
        failed = self._outcomes.failed
        error = self._problem
        if failed is not None:
            error = {"code": failed.code, "message": failed.message, "at": text(failed.at)}
        waits = [t for t in (self._next_attempt, failed.retry_at if failed else None) if t is not None]
        return {
            "node": {"id": self._who.node_id, "name": self._who.name, "group": (self._confirmed or self._who).group},
            "control": {
                "url": self._who.control_url,
                "reachable": self._problem is None and self._heard_at is not None,
                "refused": self._refused,
                "heard_at": text(self._heard_at),
                "error": self._problem,
                "trust": self._trust.status(),
            },
            "at_target": self._at_target,
            "held": self._held,
            "confirmed": self._confirmed and self._confirmed._asdict(),
            "sync": self._sync.status() if self._sync is not None else None,
            "rehearsal": self._rehearsals.status(),
            "restore": self._restores.status(),
            "error": error,
            "failed_generation": failed.generation if failed else None,
            "attempts": failed.attempts if failed else 0,
            "next_attempt": text(min(waits)) if waits else None,
            "report_waits": self._outcomes.waits,
        }

    def facts(self) -> AgentFacts:
        """Return the facts for metrics."""
        trust = self._trust
        return AgentFacts(
            self._at_target is True,
            self._answered,
            self._outcomes.failures,
            self._who.credential_ends,
            trust.digest,
            trust.ends,
            self._refused,
        )

    # State kept elsewhere

    @property
    def _who(self) -> Identity:
        return self._credential.who

    @property
    def _generation(self) -> int:
        release = self._runtime.release
        return release.generation if release is not None else 0
