"""Rollouts: how releases go out that don't go to all nodes at once, and what operators do to them."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from control.access.rights import ROLES, Role
from control.api import artifacts, pagination, release_bodies, release_making, releases, rollout_bodies, undo
from control.api.node_views import unknown_group
from control.api.operations import ApiCall, Audit, Handler, Reply, operation
from control.backups.undo import AtStore
from control.backups.undo import read as read_undo
from control.clock import Clock
from control.problems import ProblemError
from control.protocol import faults, wire
from control.protocol.wire import RehearsedChange
from control.rollouts import acts, gates, rules, store
from control.rollouts.policy import Gate
from control.rollouts.rules import Outcome
from control.rollouts.store import GateRow, StoredRollout
from control.storage import audit_log, queries
from control.storage.announcements import Changed
from control.storage.audit_log import Actor
from control.storage.connection import Connection


class RolloutSize(NamedTuple):
    """How many nodes a rollout has started, how many its group has, how many of those are offline, and the number of
    the group's newest release."""

    release_id: UUID
    started: int
    nodes: int
    offline: int
    newest: int


class RehearsalCount(NamedTuple):
    """How many nodes' rehearsals have an outcome."""

    outcome: str
    nodes: int


class RehearsalRow(NamedTuple):
    """A node's rehearsal, or that there is none."""

    name: str
    outcome: Outcome
    code: str
    message: str
    report: dict[str, Any] | None
    told_at: datetime | None
    place: int
    """Its outcome's place in the list."""


class RehearsalReport(Struct):
    """What a node has reported, as it is stored."""

    row: str = ""
    changes: list[RehearsedChange] = []
    schema_digest: str = ""
    seconds: float = 0.0
    database: int = 0


SQL = queries.load("rollout_views")
SIZES = SQL.rows("sizes", RolloutSize)
NODES = SQL.rows("nodes", rollout_bodies.RolloutNode)
REHEARSALS = SQL.rows("rehearsals", RehearsalRow)
REHEARSED = SQL.rows("rehearsed", RehearsalCount)
ANY_REHEARSED = SQL.value("any_rehearsed", bool)

NOTHING_REPORTED = RehearsalReport()
ACTOR = Actor("control", "rollouts")
"""Whose a release is that is made because a rollout goes back by itself."""

ActWork = Callable[[Connection, Changed, datetime, StoredRollout], Awaitable[StoredRollout]]
"""What an act does in its transaction; returns the rollout as it then is."""


class RolloutQuery(pagination.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None
    open: bool = False
    """Only those that haven't ended."""


class NodeQuery(pagination.Paging, forbid_unknown_fields=True):
    outcome: rollout_bodies.NodeOutcome | None = None


class RehearsalQuery(pagination.Paging, forbid_unknown_fields=True):
    outcome: Outcome | None = None


@operation(
    "GET",
    "/v1/rollouts",
    "Rollouts, newest first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[rollout_bodies.Rollout]},
    errors=("unknown_group",),
)
async def list_rollouts(call: ApiCall, query: RolloutQuery) -> Reply:
    begin = pagination.read_cursor(query.cursor, (datetime, UUID)) or (pagination.LATEST, UUID(int=2**128 - 1))
    groups = call.operator.rights.groups("read") if query.group is None else [query.group]

    async def describe(conn: Connection, rows: Sequence[StoredRollout]) -> list[rollout_bodies.Rollout]:
        sizes = await _sizes(conn, rows)
        return [rollout_bodies.Rollout(**_fields(row, sizes)) for row in rows]

    async def work(conn: Connection) -> pagination.Page[rollout_bodies.Rollout]:
        if query.group is not None:
            await _refuse_unseen(call, conn, query.group)
        return await pagination.fill(
            lambda after, count: store.listed(conn, (after[0], str(after[1])), groups, count, only_open=query.open),
            lambda rows: describe(conn, rows),
            lambda stored: (stored.row.made_at, stored.row.release_id),
            begin,
            query.limit,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/rollouts/{group}/{number}",
    "The rollout of a release",
    role="read",
    everywhere=False,
    answers={200: rollout_bodies.ShownRollout},
    errors=("unknown_group", "unknown_rollout"),
)
async def get_rollout(call: ApiCall) -> Reply:
    async def work(conn: Connection) -> rollout_bodies.ShownRollout:
        return await _shown(conn, await _named(call, conn))

    return await call.read(work)


@operation(
    "GET",
    "/v1/rollouts/{group}/{number}/nodes",
    "Nodes of a rollout, by name",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[rollout_bodies.RolloutNode]},
    errors=("unknown_group", "unknown_rollout"),
)
async def list_nodes(call: ApiCall, query: NodeQuery) -> Reply:
    begin = pagination.read_cursor(query.cursor, (str,)) or ("",)

    async def work(conn: Connection) -> pagination.Page[rollout_bodies.RolloutNode]:
        release_id = (await _named(call, conn)).row.release_id
        return await pagination.fill(
            lambda after, count: conn.fetch(NODES, release_id, *after, query.outcome, count),
            pagination.as_they_are,
            lambda row: (row.name,),
            begin,
            query.limit,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/rollouts/{group}/{number}/rehearsal",
    "What nodes found when they rehearsed a release, failures first",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[rollout_bodies.NodeRehearsal]},
    errors=("unknown_group", "unknown_rollout"),
)
async def list_rehearsals(call: ApiCall, query: RehearsalQuery) -> Reply:
    """List all nodes of the group: what isn't known of one is shown as unknown."""
    begin = pagination.read_cursor(query.cursor, (int, str)) or (-1, "")

    async def work(conn: Connection) -> pagination.Page[rollout_bodies.NodeRehearsal]:
        stored = await _named(call, conn)
        row, protocol = stored.row, wire.REHEARSAL_PROTOCOL
        return await pagination.fill(
            lambda after, count: conn.fetch(
                *(REHEARSALS, row.release_id, row.attempt, query.outcome),
                *(*after, _rehearsing(stored), protocol, count),
            ),
            pagination.each(_rehearsal),
            lambda row: (row.place, row.name),
            begin,
            query.limit,
        )

    return await call.read(work)


def act_operation(name: str, summary: str, role: Role = "deploy") -> Callable[[Handler], Handler]:
    """Declare the operation of an act on a rollout, which the decorated handler serves."""
    return operation(
        "POST",
        f"/v1/rollouts/{{group}}/{{number}}/{name}",
        summary,
        role=role,
        everywhere=False,
        answers={200: rollout_bodies.ShownRollout},
        errors=("unknown_group", "unknown_rollout", "rollout_not_possible"),
    )


@act_operation("pause", "Start no further node of a rollout until it is resumed")
async def pause(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    async def work(conn: Connection, _changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
        return await acts.pause(conn, now, stored, body.reason)

    return await _act(call, "pause", body, work)


@act_operation("resume", "Let a paused rollout go on")
async def resume(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    """Go on: gates are measured from now on, and what had stopped it is accepted, such as nodes that have failed."""
    return await _act(call, "resume", body, acts.resume)


@act_operation("promote", "Leave out the rest of a rollout's step, or approve of it", "push")
async def promote(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    """Leave out what a step still waits for. This needs the role deploy, and that of each approval that it gives; a
    step that waits for its approval needs that one's role alone."""

    async def work(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
        call.operator.need(_role_to_promote(stored, everything=body.all), stored.row.group_name)
        return await acts.promote(conn, changed, now, stored, everything=body.all)

    return await _act(call, "promote", body, work, role="push")


@act_operation("abort", "Stop a rollout where it is")
async def abort(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    """Stop it: nodes that run the release keep it, and all others stay at their group's, or go back to it."""

    async def work(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
        return await acts.abort(conn, changed, now, stored, body.reason)

    return await _act(call, "abort", body, work)


@act_operation("retry", "Begin an aborted rollout again")
async def retry(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    async def work(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
        await release_making.refuse_deleted(conn, stored.row.release_id, stored.name)
        return await acts.retry(conn, changed, now, stored)

    return await _act(call, "retry", body, work)


@act_operation("rollback", "Bring the nodes of a rollout back to their group's release")
async def rollback(call: ApiCall, body: rollout_bodies.Act) -> Reply:
    """Make a release with what the group's has, for all nodes at once, and end the rollout. The schema stays, but on
    nodes whose data go back too."""
    if body.data and (kept := await call.replayed(200)):
        return kept
    at_store = await _at_store(call) if body.data else None

    async def work(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
        return await _roll_back(conn, changed, now, call.operator.name, stored, body.reason, call.audit, at_store)

    return await _act(call, "rollback", body, work)


@operation(
    "GET",
    "/v1/rollouts/{group}/{number}/undo",
    "What a rollback of a rollout with data would do to nodes' data",
    role="deploy",
    everywhere=False,
    answers={200: release_bodies.UndoPlan},
    errors=("unknown_group", "unknown_rollout", "rollout_not_possible", *artifacts.STORE_ERRORS),
)
async def plan_undo(call: ApiCall) -> Reply:
    at_store = await _at_store(call)

    async def work(conn: Connection) -> release_bodies.UndoPlan:
        stored = await _named(call, conn)
        group = await release_making.to_release(conn, stored.row.group_name)
        above = release_making.rolls_back_to(stored, group)
        return release_making.undo_plan(await read_undo(conn, group.id, above, at_store))

    planned = await call.services.db.read(work)
    await undo.compare(call.services, planned)
    return Reply(200, planned)


async def _at_store(call: ApiCall) -> AtStore:
    """Look up at the store which nodes can't go back with the rollback of a rollout.

    Raises: ProblemError, when there is no such rollout, or it can't be rolled back; AuthError; and as `Store` does.
    """
    if not call.operator.rights.allows("read", call.path["group"]):
        raise unknown_group(call.path["group"])
    call.operator.need("deploy", call.path["group"])

    async def read(conn: Connection) -> int:
        stored = await _named(call, conn)
        return release_making.rolls_back_to(stored, await release_making.to_release(conn, stored.row.group_name))

    return await undo.at_store(call.services, call.path["group"], await call.services.db.read(read))


def roll_back(clock: Clock) -> Callable[[Connection, Changed, StoredRollout, str], Awaitable[None]]:
    """Make what the runner calls where a policy says that a rollout goes back by itself."""

    async def work(conn: Connection, changed: Changed, stored: StoredRollout, reason: str) -> None:
        now = clock.now()

        async def audit(conn: Connection, *what: Any, **values: Any) -> None:
            await audit_log.record(conn, now, ACTOR, *what, **values)

        after = await _roll_back(conn, changed, now, ACTOR.name, stored, reason, audit)
        await _record(audit, conn, "rollback", stored, after, {"reason": reason})

    return work


async def _roll_back(
    conn: Connection,
    changed: Changed,
    now: datetime,
    by: str,
    stored: StoredRollout,
    reason: str,
    audit: Audit,
    at_store: AtStore | None = None,
) -> StoredRollout:
    made, way = await release_making.roll_back(conn, changed, now, by, stored, reason, at_store)
    await releases.record(audit, conn, made, way)
    return await store.by_release(conn, stored.row.release_id) or stored


async def _act(call: ApiCall, name: str, body: rollout_bodies.Act, do: ActWork, role: Role = "deploy") -> Reply:
    """Do something to a rollout, and record it in the audit log.

    Raises: ProblemError, when there is no such rollout, or it isn't in a state for that; AuthError.
    """
    group = call.path["group"]
    if not call.operator.rights.allows("read", group):
        raise unknown_group(group)
    call.operator.need(role, group, ())

    async def work(conn: Connection, changed: Changed) -> rollout_bodies.ShownRollout:
        found = await _named(call, conn)
        # Locked, so that this and the runner's decision see each other.
        stored = await store.locked(conn, found.row.release_id) or found
        if body.step is not None and body.step != stored.row.step:
            raise ProblemError(
                "rollout_not_possible",
                f"the rollout of release {stored.name} is at step {stored.row.step} by now, and this was for step "
                f"{body.step}: somebody else was faster, or it went on by itself; look at it again",
                field="step",
            )
        after = await do(conn, changed, call.services.clock.now(), stored)
        details: dict[str, Any] = {"reason": body.reason}
        if body.all:
            details["all"] = True
        if body.data:
            details["data"] = True
        await _record(call.audit, conn, name, stored, after, details)
        shown = await _shown(conn, after)
        faults.reach("control.rollout.act.before")
        return shown

    reply = await call.write(work, status=200)
    faults.reach("control.rollout.act.after")
    return reply


async def _record(
    audit: Audit, conn: Connection, act: str, before: StoredRollout, after: StoredRollout, details: dict[str, Any]
) -> None:
    """Record an act on a rollout in the audit log."""
    await audit(conn, f"rollout.{act}", before.name, details, before=_place(before), after=_place(after))


def _place(stored: StoredRollout) -> dict[str, Any]:
    """Return where a rollout stands, for the audit log."""
    row = stored.row
    return {"state": row.state, "step": row.step, "waits_for": row.waits_for, "attempt": row.attempt}


def _role_to_promote(stored: StoredRollout, *, everything: bool) -> Role:
    """Return the role that a promotion needs: that of the approvals that it gives, and deploy, if it does more."""
    at, steps = stored.row.step, stored.rules.steps
    skipped = steps[max(at - 1, 0) :] if everything else steps[at - 1 : at] if at else ()
    roles: list[Role] = [step.role for step in skipped if step.approval]
    if everything or stored.row.waits_for != "approval" or stored.row.state != "running":
        roles.append("deploy")
    return max(roles, key=lambda role: ROLES[role])


async def _named(call: ApiCall, conn: Connection) -> StoredRollout:
    """Return the rollout that the path names. Raises: ProblemError unknown_group, unknown_rollout."""
    group, number = call.path["group"], call.path["number"]
    await _refuse_unseen(call, conn, group)
    stored = await store.by_number(conn, group, number)
    if stored is None:
        raise ProblemError("unknown_rollout", f"release {number} of group {group} has no rollout", field="number")
    return stored


async def _refuse_unseen(call: ApiCall, conn: Connection, group: str) -> None:
    """Check that there is a group that the operator may see. Raises: ProblemError unknown_group."""
    if not call.operator.rights.allows("read", group) or await conn.fetchrow(releases.GROUP, group) is None:
        raise unknown_group(group)


async def _sizes(conn: Connection, rows: Sequence[StoredRollout]) -> dict[UUID, RolloutSize]:
    found = await conn.fetch(SIZES, [str(stored.row.release_id) for stored in rows])
    return {size.release_id: size for size in found}


def _fields(stored: StoredRollout, sizes: dict[UUID, RolloutSize]) -> dict[str, Any]:
    """Return the fields of a rollout in a list."""
    row = stored.row
    size = sizes[row.release_id]
    return {
        "group": row.group_name,
        "number": row.number,
        "state": row.state,
        "step": row.step,
        "steps": len(stored.rules.steps),
        "waits_for": row.waits_for,
        "waits_since": row.waits_since,
        "reason": row.reason,
        "attempt": row.attempt,
        "started": size.started,
        "nodes": size.nodes,
        "offline": size.offline,
        "newest": size.newest,
        "made_by": row.created_by,
        "made_at": row.made_at,
        "ended_at": row.ended_at,
    }


async def _shown(conn: Connection, stored: StoredRollout) -> rollout_bodies.ShownRollout:
    """Return a rollout with everything about it."""
    by_step: dict[int, rollout_bodies.NodeCounts] = {}
    everywhere = rollout_bodies.NodeCounts()
    for count in await store.outcome_counts(conn, stored.row.release_id):
        for counts in (everywhere, by_step.setdefault(count.step, rollout_bodies.NodeCounts())):
            setattr(counts, count.outcome, getattr(counts, count.outcome) + count.nodes)
    said = {(row.step, row.gate): row for row in await store.gates(conn, stored.row.release_id)}
    plan = []
    for number, step in enumerate(stored.rules.steps, 1):
        at = stored.row.step
        state = "passed" if number < at or stored.row.state == "done" else "now" if number == at else "not_begun"
        results = [
            _gate(gate, said.get((number, place)))
            for place, gate in enumerate(stored.rules.gates)
            if (number, place) in said or (state == "now" and stored.rules.measures(number))
        ]
        counts = by_step.get(number, rollout_bodies.NodeCounts())
        plan.append(rollout_bodies.RolloutStep(number, step.text, state, counts, results))  # type: ignore[arg-type]
    undone = None
    if stored.row.state == "rolled_back":
        undone = await undo.counts_of_undone(conn, stored.row.group_id, stored.row.number)
    return rollout_bodies.ShownRollout(
        **_fields(stored, await _sizes(conn, [stored])),
        policy=stored.policy,
        rehearsal=await _rehearsal_counts(conn, stored),
        plan=plan,
        counts=everywhere,
        undo=undone,
    )


async def _rehearsal_counts(conn: Connection, stored: StoredRollout) -> rollout_bodies.RehearsalCounts | None:
    row = stored.row
    rehearses = stored.rules.rehearse or row.rehearsal_only or row.step == rules.REHEARSAL
    # Somebody may have let a release that was only rehearsed go on.
    if not rehearses and not await conn.fetchval(ANY_REHEARSED, row.release_id):
        return None
    found = await conn.fetch(REHEARSED, row.release_id, row.attempt, _rehearsing(stored), wire.REHEARSAL_PROTOCOL)
    return rollout_bodies.RehearsalCounts(**dict(found))


def _rehearsing(stored: StoredRollout) -> bool:
    """Return whether nodes may still report their rehearsals."""
    return stored.row.state == "running" and stored.row.step == rules.REHEARSAL


def _gate(gate: Gate, said: GateRow | None) -> rollout_bodies.GateResult:
    text, least = gates.in_words(gate), gate.at_least_calls if gate.webhook is None else 0
    if said is None:
        why = "it wasn't measured yet"
        return rollout_bodies.GateResult(text, "unknown", None, None, None, 0, least, why, None)
    return rollout_bodies.GateResult(
        gate=text,
        outcome=said.outcome,
        measured=said.measured,
        allowed=said.allowed,
        before=said.before,
        calls=said.calls,
        at_least_calls=least,
        why=said.why,
        measured_at=said.measured_at,
    )


def _rehearsal(row: RehearsalRow) -> rollout_bodies.NodeRehearsal:
    report = NOTHING_REPORTED if row.report is None else msgspec.convert(row.report, RehearsalReport)
    return rollout_bodies.NodeRehearsal(
        name=row.name,
        outcome=row.outcome,
        code=row.code,
        message=row.message,
        row=report.row,
        changes=report.changes,
        schema_digest=report.schema_digest,
        seconds=report.seconds,
        database=report.database,
        told_at=row.told_at,
    )
