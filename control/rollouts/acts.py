"""What operators do to rollouts: each is a part of a transaction, which the caller audits and announces."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from control.problems import ProblemError
from control.rollouts import rules, store
from control.rollouts.policy import Policy, rules_of
from control.rollouts.rules import RolloutPosition, State
from control.rollouts.store import StoredRollout
from control.storage import events
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import own_targets


async def begin(
    conn: Connection,
    changed: Changed,
    now: datetime,
    release_id: UUID,
    group_id: UUID,
    policy: Policy,
    *,
    rehearse: bool,
    rehearsal_only: bool = False,
) -> None:
    """Begin the rollout of a release that was just made; the group's open one is superseded."""
    await supersede(conn, changed, now, group_id)
    begun = rules.first(rules_of(policy), rehearse=rehearse, rehearsal_only=rehearsal_only, now=now)
    await store.add(conn, release_id, group_id, policy, begun, now)
    # Nodes learn of a rehearsal with their polls.
    changed.groups.add(str(group_id))


async def supersede(conn: Connection, changed: Changed, now: datetime, group_id: UUID) -> None:
    """End the group's open rollout, if there is one: a newer release takes its place."""
    if (found := await store.open_of(conn, group_id)) is not None:
        await end(conn, changed, now, found, "superseded", "a newer release has taken its place")


async def pause(conn: Connection, now: datetime, stored: StoredRollout, reason: str) -> StoredRollout:
    """Start no further node until the rollout is resumed. Raises: ProblemError rollout_not_possible."""
    if stored.row.state != "running":
        raise _not_possible(stored, "only a running rollout can be paused")
    said = reason or "an operator has paused it"
    return await store.save(conn, stored, rules.paused(stored.position, said, now), now)


async def resume(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
    """Let a paused rollout go on: gates are measured from now on, and what had stopped it is accepted, if an operator
    hasn't paused it. Raises: ProblemError rollout_not_possible."""
    if stored.row.state != "paused":
        raise _not_possible(stored, "only a paused rollout can be resumed")
    failed = rules.failed_nodes((await store.fleet(conn, stored)).nodes)
    going = rules.resumed(stored.position, stored.rules, failed, now)
    changed.groups.add(str(stored.row.group_id))
    return await store.save(conn, stored, going, now)


async def promote(
    conn: Connection, changed: Changed, now: datetime, stored: StoredRollout, *, everything: bool
) -> StoredRollout:
    """Leave out the rest of the present step; with `everything`, of all steps but the last, which starts all nodes.

    Raises: ProblemError rollout_not_possible.
    """
    if not stored.open:
        raise _not_possible(stored, "only an open rollout can be promoted")
    failed = rules.failed_nodes((await store.fleet(conn, stored)).nodes)
    going = rules.promoted(stored.position, stored.rules, failed, now, everything=everything)
    if going.state == "done":
        return await complete(conn, changed, now, stored, going)
    changed.groups.add(str(stored.row.group_id))
    return await store.save(conn, stored, going, now)


async def abort(
    conn: Connection, changed: Changed, now: datetime, stored: StoredRollout, reason: str = ""
) -> StoredRollout:
    """Stop an open rollout where it is. Nodes that run the release keep it; those that were started and don't run it go
    back to the group's. Raises: ProblemError rollout_not_possible, when it has ended."""
    if not stored.open:
        raise _not_possible(stored, "it has ended already")
    return await end(conn, changed, now, stored, "aborted", reason or "an operator has aborted it")


async def retry(conn: Connection, changed: Changed, now: datetime, stored: StoredRollout) -> StoredRollout:
    """Begin an aborted rollout again. Raises: ProblemError rollout_not_possible, when it isn't aborted, or a newer
    release of the group has begun."""
    row = stored.row
    if row.state != "aborted":
        raise _not_possible(stored, "only an aborted rollout can be tried again")
    if await conn.fetchval(store.NEWEST, row.group_id) != row.number:
        raise _not_possible(stored, "the group has a newer release: make another one")
    policy = stored.rules
    begun = rules.first(policy, rehearse=policy.rehearse, rehearsal_only=False, now=now)
    await store.forget_attempt(conn, row.release_id)
    changed.groups.add(str(row.group_id))
    return await store.save(conn, stored, begun, now, attempt=row.attempt + 1)


async def complete(
    conn: Connection, changed: Changed, now: datetime, stored: StoredRollout, done: RolloutPosition
) -> StoredRollout:
    """Make the release its group's: all other nodes get it too, with their next poll."""
    await own_targets.finish(conn, str(stored.row.release_id), str(stored.row.group_id))
    changed.groups.add(str(stored.row.group_id))
    saved = await store.save(conn, stored, done, now)
    await tell_ended(conn, now, saved)
    return saved


async def end(
    conn: Connection, changed: Changed, now: datetime, stored: StoredRollout, state: State, reason: str
) -> StoredRollout:
    """End a rollout in `state`; nodes that were started and don't run its release go back to their group's."""
    changed.nodes.update(await own_targets.give_back(conn, str(stored.row.release_id)))
    changed.groups.add(str(stored.row.group_id))
    ended = replace(stored.position, state=state, waits_for="", waits_since=now, reason=reason)
    saved = await store.save(conn, stored, ended, now)
    await tell_ended(conn, now, saved)
    return saved


async def tell_ended(conn: Connection, now: datetime, stored: StoredRollout) -> None:
    """Record the event that a rollout has ended."""
    await events.record(conn, now, "rollout.ended", [event_item(stored)])


def event_item(stored: StoredRollout) -> dict[str, str]:
    """Return what an event says of a rollout."""
    row = stored.row
    reason = row.reason[: events.LONGEST_TEXT]
    return {"release_id": str(row.release_id), "state": row.state, "waits_for": row.waits_for, "reason": reason}


def _not_possible(stored: StoredRollout, why: str) -> ProblemError:
    state = stored.row.state.replace("_", " ")
    return ProblemError("rollout_not_possible", f"the rollout of release {stored.name} is {state}: {why}")
