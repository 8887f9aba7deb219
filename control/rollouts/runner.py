"""Carries rollouts on, on whichever replica has the lease.

Each decision is one transaction, in which the rollout's row is locked and read again: a replica that lost its lease, or
a decision that was taken twice, changes nothing twice.
"""

import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple
from uuid import UUID

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import faults
from control.rollouts import acts, rules, store
from control.rollouts.gates import GateVerdict
from control.rollouts.measuring import Measuring
from control.rollouts.rules import RolloutPosition
from control.rollouts.store import StoredRollout
from control.storage import events
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.sync import own_targets
from control.sync.fleet_cache import FleetCache
from control.sync.leases import Leases

PERIOD = 1.0
"""The most seconds between two looks at the open rollouts."""
REST = 4.0
"""After a look, the next one waits at least so many times as long as it took, but no longer than `PERIOD`: a look at
ten thousand nodes, each of which may tell something, takes 0.2 s."""
SILENCE, LONGEST_SILENCE = 60.0, 3600.0
"""Seconds after which a mistake about a rollout that is made again and again is logged again: at first, and at most."""
LEASE = timedelta(seconds=10)
STARTED_AT_ONCE = 1000
"""The most nodes that one transaction starts."""
TOLD: frozenset[rules.Waits] = frozenset({"failed", "unknown", "approval", "rehearsed"})
"""Waits that somebody must end, or should know of."""

HELD = "nodes are started when no replica of an earlier version of control runs any more: it knows no rollouts"

RollBack = Callable[[Connection, Changed, StoredRollout, str], Awaitable[None]]
"""Makes a release with what the group's release has, at once, and ends the rollout as rolled back, for a reason."""

log = logging.getLogger("skerry.rollouts")


class WrittenDecision(NamedTuple):
    """What a decision has changed."""

    announced: bool = False
    """Whether replicas must read something."""
    moved: bool = False
    """Whether there may be more to decide at once: another step began, or nodes were started."""


class RolloutRunner:
    """One replica's part in carrying rollouts on."""

    def __init__(
        self, db: Database, fleet: FleetCache, clock: Clock, measuring: Measuring, roll_back: RollBack
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._clock = clock
        self._measuring = measuring
        self._roll_back = roll_back
        self._leases = Leases(db, clock)
        self._outage = Outage(log, "rollouts can't be carried on, and are tried again")
        self._mistakes: dict[UUID, dict[str, tuple[float, float]]] = {}
        """By rollout and mistake (the exception, and where it was raised): when it is logged again, in the clock's
        `monotonic`, and for how many seconds not after that."""

    async def run(self) -> None:
        """Carry rollouts on until cancelled."""
        try:
            while True:
                began = self._clock.monotonic()
                self._fleet.rollouts_due.clear()
                try:
                    await self.tick()
                    self._outage.worked()
                except ProblemError as problem:
                    self._outage.failed(problem.detail)
                rest = min(REST * (self._clock.monotonic() - began), PERIOD)
                await self._clock.sleep(rest)
                with contextlib.suppress(TimeoutError):
                    async with self._clock.timeout(PERIOD - rest):
                        await self._fleet.rollouts_due.wait()
        finally:
            with contextlib.suppress(TimeoutError, ProblemError):
                async with self._clock.timeout(1.0):
                    await self._leases.give_back()

    async def tick(self) -> bool:
        """Look at each open rollout, if this replica has or gets the lease; return whether it did.

        Raises: ProblemError.
        """
        open_ones = await self._db.read(lambda conn: conn.column(store.ALL_OPEN))
        if not open_ones or not await self._leases.take("rollouts", LEASE):
            return False
        held = await self._db.read(lambda conn: own_targets.unknown_to_some(conn, self._clock.now()))
        for release_id in open_ones:
            try:
                await self._look(release_id, held)
            except Locked:
                continue  # by an operator's act, for instance: it is looked at the next time
            except ProblemError as problem:
                if problem.status >= 500:
                    raise  # the database's troubles are all rollouts'
                await self._db.transaction(partial(self._refused, release_id, problem))
            except Exception as error:
                # A mistake about one rollout must not keep the others.
                self._mistaken(release_id, error)
            else:
                self._mistakes.pop(release_id, None)
        for release_id in self._mistakes.keys() - set(open_ones):
            del self._mistakes[release_id]
        return True

    def _mistaken(self, release_id: UUID, error: Exception) -> None:
        """Log a mistake about a rollout: once, and then again after twice the time each, up to `LONGEST_SILENCE`."""
        where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        told = self._mistakes.setdefault(release_id, {})
        mistake, now = " ".join([type(error).__name__, *where]), self._clock.monotonic()
        due, silence = told.get(mistake, (now, SILENCE))
        if now >= due:
            text = "the rollout of release %s can't be carried on; it is tried again each second"
            log.error(text, release_id, exc_info=error)
            told[mistake] = now + silence, min(2 * silence, LONGEST_SILENCE)

    async def _look(self, release_id: UUID, held: bool) -> None:
        stored = await self._db.read(partial(_by_release, release_id))
        if stored is None or not stored.open:
            return
        running = stored.row.state == "running"
        if not running and not _tells(stored, stored.position, self._clock.now()):
            return
        verdicts = await self._measuring.measure(stored) if running else []
        decided = await self._db.transaction(partial(self._decide, stored, verdicts, held))
        faults.reach("control.rollout.after")
        if decided.announced:
            await self._fleet.announced()
        if decided.moved:
            self._fleet.rollouts_due.set()

    async def _decide(
        self, seen: StoredRollout, verdicts: Sequence[GateVerdict], held: bool, conn: Connection
    ) -> WrittenDecision:
        """Decide about a rollout and write that. `held`: start no node."""
        stored = await store.locked(conn, seen.row.release_id)
        if stored is None or stored.position != seen.position or stored.row.attempt != seen.row.attempt:
            return WrittenDecision()  # an operator, or another replica, was faster
        now = self._clock.now()
        fleet = await store.fleet(conn, stored)
        decided = rules.decide(stored.position, stored.rules, fleet, [each.outcome for each in verdicts], now)
        changed, going = Changed(), decided.position
        await self._measuring.save(conn, stored, verdicts, now)
        if decided.start and held:
            going = replace(going, reason=HELD)
        elif decided.start:
            some = decided.start[:STARTED_AT_ONCE]
            await own_targets.set_own(conn, str(stored.row.release_id), some, going.step, now)
            changed.nodes.update(some)
        if decided.roll_back and stored.row.group_release_id is None:
            # There is nothing to go back to.
            await acts.end(conn, changed, now, stored, "aborted", going.reason)
        elif decided.roll_back:
            await self._roll_back(conn, changed, stored, going.reason)
        elif going.state == "done":
            await acts.complete(conn, changed, now, stored, going)
        elif going.state not in rules.OPEN:
            await acts.end(conn, changed, now, stored, going.state, going.reason)
        else:
            if going.step != stored.row.step == rules.REHEARSAL or going.state != stored.row.state:
                changed.groups.add(str(stored.row.group_id))
            await self._save(conn, stored, going, now)
        faults.reach("control.rollout.before")
        await changed.announce(conn)
        if going.state != stored.row.state or going.step != stored.row.step:
            log.info("rollout %s: step %d, %s: %s", stored.name, going.step, going.state, going.reason)
        return WrittenDecision(
            announced=bool(changed.groups or changed.nodes),
            moved=going.step != stored.row.step or bool(changed.nodes),
        )

    async def _refused(self, release_id: UUID, problem: ProblemError, conn: Connection) -> None:
        """Pause a running rollout that can't do what its rules say, such as roll back: somebody must decide."""
        stored, now = await store.locked(conn, release_id), self._clock.now()
        if stored is None or stored.row.state != "running":
            return
        said = f"it can't do what its policy says: {problem.detail}; resume, abort or roll it back"
        stopped = replace(stored.position, state="paused", waits_for="failed", waits_since=now, reason=said)
        await self._save(conn, stored, stopped, now)
        log.warning("rollout %s is paused: %s", stored.name, said)

    async def _save(self, conn: Connection, stored: StoredRollout, going: RolloutPosition, now: datetime) -> None:
        """Write where it stands, and tell somebody that it waits: at once, and again after `unknown_after`."""
        tells = _tells(stored, going, now)
        if going == stored.position and not tells:
            return
        saved = await store.save(conn, stored, going, now, told_at=now if tells else None)
        if tells:
            await events.record(conn, now, "rollout.paused", [acts.event_item(saved)])


def _tells(stored: StoredRollout, going: RolloutPosition, now: datetime) -> bool:
    """Return whether it is time to tell somebody that a rollout waits, which goes on to `going`."""
    if going.state == "running" and going.waits_for == "unknown" and now - going.waits_since < rules.ANSWERS_TAKE:
        return False  # an answer may be on its way
    told = stored.row.told_at if going.waits_for == stored.row.waits_for else None
    return going.waits_for in TOLD and (told is None or now - told >= stored.rules.unknown_after)


async def _by_release(release_id: UUID, conn: Connection) -> StoredRollout | None:
    return await store.by_release(conn, release_id)
