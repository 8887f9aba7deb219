"""Carries rollouts on, on whichever replica has the lease.

Each decision is one transaction, in which the rollout's row is locked and read again: a replica that lost its lease, or
a decision that was taken twice, changes nothing twice.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import faults
from control.rollouts import acts, rules, store
from control.rollouts.gates import GateVerdict
from control.rollouts.measuring import Measuring
from control.rollouts.rules import Position
from control.rollouts.store import StoredRollout
from control.storage import events
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.sync import own_targets
from control.sync.fleet_cache import FleetCache
from control.sync.leases import Leases

PERIOD = 1.0
"""Seconds between two looks at the open rollouts."""
LEASE = timedelta(seconds=10)
STARTED_AT_ONCE = 1000
"""The most nodes that one transaction starts."""
TOLD: frozenset[rules.Waits] = frozenset({"failed", "unknown", "approval", "rehearsed"})
"""Waits that somebody must end, or should know of."""

HELD = "nodes are started when no replica of an earlier version of control runs any more: it knows no rollouts"

RollBack = Callable[[Connection, Changed, StoredRollout, str], Awaitable[None]]
"""Makes a release with what the group's release has, at once, and ends the rollout as rolled back, for a reason."""

log = logging.getLogger("skerry.rollouts")


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

    async def run(self) -> None:
        """Carry rollouts on until cancelled."""
        try:
            while True:
                try:
                    await self.tick()
                    self._outage.worked()
                except ProblemError as problem:
                    self._outage.failed(problem.detail)
                await self._clock.sleep(PERIOD)
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
            except Exception:
                # A mistake about one rollout must not keep the others.
                log.exception("the rollout of release %s can't be carried on; it is tried again", release_id)
        return True

    async def _look(self, release_id: UUID, held: bool) -> None:
        stored = await self._db.read(partial(_by_release, release_id))
        if stored is None or stored.row.state != "running":
            return
        verdicts = await self._measuring.measure(stored)
        changed = await self._db.transaction(partial(self._decide, stored, verdicts, held))
        faults.reach("control.rollout.after")
        if changed:
            await self._fleet.announced()

    async def _decide(self, seen: StoredRollout, verdicts: Sequence[GateVerdict], held: bool, conn: Connection) -> bool:
        """Decide about a rollout and write that; return whether something must be announced. `held`: start no node."""
        stored = await store.locked(conn, seen.row.release_id)
        if stored is None or stored.rollout != seen.rollout or stored.row.attempt != seen.row.attempt:
            return False  # an operator, or another replica, was faster
        now = self._clock.now()
        fleet = await store.fleet(conn, stored)
        decided = rules.decide(stored.rollout, stored.rules, fleet, [each.outcome for each in verdicts], now)
        changed, going = Changed(), decided.rollout
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
            if going.step != stored.row.step == rules.REHEARSAL or going.state == "paused":
                changed.groups.add(str(stored.row.group_id))
            await self._save(conn, stored, going, now)
        faults.reach("control.rollout.before")
        await changed.announce(conn)
        if going.state != stored.row.state or going.step != stored.row.step:
            log.info("rollout %s: step %d, %s: %s", stored.name, going.step, going.state, going.reason)
        return bool(changed.groups or changed.nodes)

    async def _refused(self, release_id: UUID, problem: ProblemError, conn: Connection) -> None:
        """Pause a running rollout that can't do what its rules say, such as roll back: somebody must decide."""
        stored, now = await store.locked(conn, release_id), self._clock.now()
        if stored is None or stored.row.state != "running":
            return
        said = f"it can't do what its policy says: {problem.detail}; resume, abort or roll it back"
        stopped = replace(stored.rollout, state="paused", waits_for="failed", waits_since=now, reason=said)
        await self._save(conn, stored, stopped, now)
        log.warning("rollout %s is paused: %s", stored.name, said)

    async def _save(self, conn: Connection, stored: StoredRollout, going: Position, now: datetime) -> None:
        """Write where it stands, and tell somebody that it waits: at once, and again after `unknown_after`."""
        told = stored.row.told_at if going.waits_for == stored.row.waits_for else None
        tells = going.waits_for in TOLD and (told is None or now - told >= stored.rules.unknown_after)
        if going.state == "running" and going.waits_for == "unknown" and now - going.waits_since < rules.ANSWERS_TAKE:
            tells = False  # an answer may be on its way
        if going == stored.rollout and not tells:
            return
        saved = await store.save(conn, stored, going, now, told_at=now if tells else None)
        if tells:
            await events.record(conn, now, "rollout.paused", [acts.event_item(saved)])


async def _by_release(release_id: UUID, conn: Connection) -> StoredRollout | None:
    return await store.by_release(conn, release_id)
