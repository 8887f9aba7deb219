"""Rollouts in the metadata database: read as values for the rules, and written back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from control.protocol import wire
from control.protocol.wire import RehearsalResult
from control.rollouts import rules
from control.rollouts.policy import Policy, Rules, rules_of
from control.rollouts.rules import GroupNode, GroupNodes, Outcome, RolloutPosition, State, Waits
from control.storage import queries
from control.storage.connection import Connection
from control.sync.node_state import clean


class StoredRow(NamedTuple):
    """A rollout with its release and group."""

    release_id: UUID
    group_id: UUID
    group_name: str
    number: int
    group_release_id: UUID | None
    policy: dict[str, Any]
    state: State
    step: int
    step_since: datetime
    waits_for: Waits
    waits_since: datetime
    reason: str
    attempt: int
    rehearsal_only: bool
    forgiven: int
    measured_from: datetime
    told_at: datetime | None
    made_at: datetime
    ended_at: datetime | None
    created_by: str


class FleetRow(NamedTuple):
    """A node as a rollout sees it."""

    id: str
    label: str
    online: bool
    rehearses: bool
    rehearsed: Outcome | None
    step: int | None
    """The step that started it, if it has the release as its own."""
    started_at: datetime | None
    synced_at: datetime | None
    reached: bool
    error_code: str
    error_at: datetime | None


class OutcomeCount(NamedTuple):
    """How many nodes that a step has started have an outcome; step 0: that none has started."""

    step: int
    outcome: str
    nodes: int


class GateRow(NamedTuple):
    """What a gate said last."""

    step: int
    gate: int
    """Its place in the policy, from 0."""
    outcome: Outcome
    measured: float | None
    allowed: float | None
    before: float | None
    calls: int
    why: str
    measured_at: datetime


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as it is stored, with what its policy means."""

    row: StoredRow
    policy: Policy
    rules: Rules

    @property
    def position(self) -> RolloutPosition:
        """Return where it stands."""
        row = self.row
        return RolloutPosition(
            state=row.state,
            step=row.step,
            step_since=row.step_since,
            waits_for=row.waits_for,
            waits_since=row.waits_since,
            reason=row.reason,
            rehearsal_only=row.rehearsal_only,
            forgiven=row.forgiven,
            measured_from=row.measured_from,
        )

    @property
    def name(self) -> str:
        """Return what people call it: its group and release."""
        return f"{self.row.group_name}/{self.row.number}"

    @property
    def rehearsal_id(self) -> str:
        """Return the id of this attempt's rehearsal, as in `wire.Rehearse`."""
        return f"{self.row.release_id}.{self.row.attempt}"

    @property
    def open(self) -> bool:
        """Whether it hasn't ended."""
        return self.row.state in rules.OPEN


SQL = queries.load("rollouts")
BY_NUMBER = SQL.rows("by_number", StoredRow)
BY_RELEASE = SQL.rows("by_release", StoredRow)
OPEN_OF = SQL.rows("open_of", StoredRow)
ROLLOUTS = SQL.rows("rollouts", StoredRow)
ALL_OPEN = SQL.value("all_open", UUID)
LOCK = SQL.optional("lock", UUID)
FLEET = SQL.rows("fleet", FleetRow)
STARTED = SQL.value("started", int)
GATES = SQL.rows("gates", GateRow)
NEWEST = SQL.value("newest", int)
COUNTS = queries.load("rollout_views").rows("counts", OutcomeCount)


async def by_number(conn: Connection, group: str, number: int) -> StoredRollout | None:
    """Return the rollout of a group's release; None if it has none."""
    return _stored(await conn.fetchrow(BY_NUMBER, group, number))


async def by_release(conn: Connection, release_id: UUID) -> StoredRollout | None:
    """Return the rollout of a release; None if it has none."""
    return _stored(await conn.fetchrow(BY_RELEASE, release_id))


async def open_of(conn: Connection, group_id: UUID) -> StoredRollout | None:
    """Return the group's rollout that hasn't ended; None if there is none."""
    return _stored(await conn.fetchrow(OPEN_OF, group_id))


async def locked(conn: Connection, release_id: UUID) -> StoredRollout | None:
    """Lock a rollout's row until the end of the transaction, and return it as it then is."""
    await conn.fetchval(LOCK, release_id)
    return await by_release(conn, release_id)


async def listed(
    conn: Connection, after: tuple[datetime, str] | None, groups: Sequence[str] | None, count: int, *, only_open: bool
) -> list[StoredRollout]:
    """Return rollouts, the newest first, after the one that was made at this time and has this id."""
    at, id = after or (None, None)
    return [_made(row) for row in await conn.fetch(ROLLOUTS, at, id, groups, only_open, count)]


async def fleet(conn: Connection, stored: StoredRollout) -> GroupNodes:
    """Return the rollout's nodes as the rules see them: those of its group that aren't revoked, by id."""
    row, label = stored.row, stored.rules.spread_by or ""
    rows = await conn.fetch(FLEET, row.group_id, row.release_id, label, wire.REHEARSAL_PROTOCOL, row.attempt)
    started = await conn.fetchval(STARTED, row.release_id)
    return GroupNodes([node_of(each) for each in rows], started, str(row.release_id))


def node_of(row: FleetRow) -> GroupNode:
    """Return a node as the rules see it."""
    started = row.step is not None and row.started_at is not None
    reached = None
    if started and row.reached and row.started_at is not None:
        # A node that was confirmed without a sync ran the same already.
        reached = max(row.started_at, row.synced_at or row.started_at)
    return GroupNode(
        id=row.id,
        label=row.label,
        online=row.online,
        rehearses=row.rehearses,
        rehearsed=row.rehearsed,
        step=row.step,
        reached=reached,
        failed=failed(row),
    )


def failed(row: FleetRow) -> bool:
    """Return whether the node's last sync to the rollout's release failed: an older error is of another release."""
    return (
        row.step is not None
        and not row.reached
        and row.error_code != ""
        and row.error_at is not None
        and row.started_at is not None
        and row.error_at >= row.started_at
    )


async def outcome_counts(conn: Connection, release_id: UUID) -> list[OutcomeCount]:
    """Return how many nodes of a rollout have each outcome, by the step that started them."""
    return await conn.fetch(COUNTS, release_id)


async def gates(conn: Connection, release_id: UUID) -> list[GateRow]:
    """Return what the gates of all steps said last."""
    return await conn.fetch(GATES, release_id)


async def add(
    conn: Connection, release_id: UUID, group_id: UUID, policy: Policy, begun: RolloutPosition, now: datetime
) -> None:
    """Write a new rollout."""
    await conn.execute(
        SQL["add"],
        release_id,
        group_id,
        msgspec.to_builtins(policy),
        begun.state,
        begun.step,
        begun.step_since,
        begun.waits_for,
        begun.waits_since,
        begun.reason,
        begun.rehearsal_only,
        begun.forgiven,
        begun.measured_from,
        now,
    )


async def save(
    conn: Connection,
    stored: StoredRollout,
    position: RolloutPosition,
    now: datetime,
    *,
    attempt: int | None = None,
    told_at: datetime | None = None,
) -> StoredRollout:
    """Write where a rollout stands now, and return it. `told_at`: when somebody is told that it waits, if now."""
    row = stored.row
    if told_at is None and position.waits_for == row.waits_for:
        told_at = row.told_at
    ended = None if position.state in rules.OPEN else row.ended_at or now
    saved = row._replace(
        state=position.state,
        step=position.step,
        step_since=position.step_since,
        waits_for=position.waits_for,
        waits_since=position.waits_since,
        reason=position.reason,
        rehearsal_only=position.rehearsal_only,
        forgiven=position.forgiven,
        measured_from=position.measured_from,
        attempt=row.attempt if attempt is None else attempt,
        told_at=told_at,
        ended_at=ended,
    )
    await conn.execute(
        SQL["save"],
        saved.release_id,
        saved.state,
        saved.step,
        saved.step_since,
        saved.waits_for,
        saved.waits_since,
        saved.reason,
        saved.rehearsal_only,
        saved.forgiven,
        saved.measured_from,
        saved.attempt,
        saved.told_at,
        saved.ended_at,
    )
    return replace(stored, row=saved)


async def forget_attempt(conn: Connection, release_id: UUID) -> None:
    """Forget what a rollout's gates said, and the nodes that it had started and that have left: it begins again."""
    await conn.execute(SQL["forget_gates"], release_id)
    await conn.execute(SQL["forget_left"], release_id)


async def tell_rehearsal(
    conn: Connection, stored: StoredRollout, node_id: UUID, result: RehearsalResult, now: datetime
) -> None:
    """Store what a node found; the first report of an attempt counts."""
    report = msgspec.to_builtins(
        {
            "row": clean(result.row),
            "changes": result.changes,
            "schema_digest": clean(result.schema_digest),
            "seconds": result.seconds,
            "database": result.database,
        }
    )
    await conn.execute(
        SQL["tell_rehearsal"],
        stored.row.release_id,
        node_id,
        stored.row.attempt,
        result.outcome,
        clean(result.code),
        clean(result.message),
        report,
        now,
    )


def _stored(row: StoredRow | None) -> StoredRollout | None:
    return None if row is None else _made(row)


def _made(row: StoredRow) -> StoredRollout:
    policy = msgspec.convert(row.policy, Policy)
    return StoredRollout(row, policy, rules_of(policy, accepted=True))
