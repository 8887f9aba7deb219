"""Restores of nodes: ordered, carried out or failed, and ended; each is a part of a transaction, which the caller
audits and announces.

A node that has an order gets no plan, so that nothing changes what it brings back. A restore that holds the node keeps
it there until somebody resumes it; one that is a part of an undo lets it go on once it is done.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID, uuid4

from control.backups.targets import RestorableState
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection

RestoreState = Literal["ordered", "held", "done", "failed", "cancelled"]
"""`ordered`: the node is to carry it out; `held`: it did, and stays there until it is resumed; `done`: it did, and has
gone on; `failed`: it couldn't, and serves what it had; `cancelled`: somebody resumed it before it was done."""
CANCELLED_LATE = "it was cancelled, but the node had done it already"


class RestoreRow(NamedTuple):
    """A restore, with the names of its nodes and the number of the release before which it is."""

    id: UUID
    node: str
    from_node: str | None
    node_id: UUID
    from_node_id: UUID | None
    """The node whose history it is; None: its own."""
    lineage: str
    transaction_id: int
    state_at: datetime
    before_release: int | None
    undo_id: UUID | None
    hold: bool
    state: RestoreState
    code: str
    message: str
    release_number: int | None
    """Of the database that the node has then; None if it isn't known, 0 for none."""
    release_group: str | None
    """The group whose release that is; None if there is none, or it isn't known."""
    kept: str
    kept_lineage: str
    kept_transaction: int
    made_by: str
    made_at: datetime
    told_at: datetime | None
    """When the node told what came of it."""
    ended_at: datetime | None

    @property
    def source(self) -> UUID:
        """Return the id of the node whose files it is made of."""
        return self.from_node_id or self.node_id


class LockedNode(NamedTuple):
    """A node that is to bring something back."""

    id: UUID
    state: str
    protocol: int
    restore_id: UUID | None


class Arrival(NamedTuple):
    """When a node's database came to have a release."""

    release_id: UUID
    group_name: str
    number: int
    lineage: str
    """'' if it came with a restore."""
    transaction_id: int
    """The last one before it."""
    at: datetime


SQL = queries.load("restores")
LOCK_NODE = SQL.rows("lock_node", LockedNode)
RESTORE = SQL.rows("restore", RestoreRow)
RELEASE_AFTER = SQL.optional("release_after", UUID)
LET_GO = SQL.optional("let_go", UUID)
CLEAR_WARNINGS = queries.load("monitor")["clear_warnings"]
END_SYNCS = queries.load("nodes")["end_syncs"]


def had(arrivals: Iterable[Arrival], state: RestorableState) -> Arrival | None:
    """Return by which arrival a state of the node's database has its release; None if that isn't known.

    Of the state's own history that is exact; of others only the times are known.
    """
    earlier = [each for each in arrivals if not _later(each, state)]
    return max(earlier, key=lambda each: (each.at, each.transaction_id), default=None)


def undone(arrivals: Iterable[Arrival], state: RestorableState) -> list[Arrival]:
    """Return the releases to which the node has gone after a state, in that order."""
    later = [each for each in arrivals if each.lineage and _later(each, state)]
    return sorted(later, key=lambda each: (each.at, each.transaction_id))


def _later(arrival: Arrival, state: RestorableState) -> bool:
    if arrival.lineage == state.lineage:
        return arrival.transaction_id >= state.transaction
    return arrival.at > state.at


async def order(
    conn: Connection,
    changed: Changed,
    now: datetime,
    by: str,
    node_id: UUID,
    state: RestorableState,
    *,
    from_node_id: UUID | None = None,
    hold: bool = True,
    undo_id: UUID | None = None,
) -> RestoreRow:
    """Have a node bring a state back, which is another node's if that is given. From now on it gets no plan: until it
    is resumed, or without `hold` until it has told that it is done.

    Raises: ProblemError restore_not_possible, when the node can't, or carries out another restore.
    """
    node = await _locked(conn, node_id)
    if node.state == "revoked":
        text = "the node was revoked: `skerry node token --rejoin` lets it join again, with what its backup has last"
        raise ProblemError("restore_not_possible", text, field="node")
    if node.protocol < wire.BACKUP_PROTOCOL:
        text = "the node's version of skerry-edge is too old to be brought back: upgrade it first"
        raise ProblemError("restore_not_possible", text, field="node")
    before = await _present(conn, node)
    if before is not None and before.state == "ordered":
        text = "the node is to carry out another restore already: `skerry data resume` cancels that"
        raise ProblemError("restore_not_possible", text, field="node")
    if before is not None:
        await conn.execute(SQL["end"], before.id, "done", now)
    id = uuid4()
    source = from_node_id or node_id
    before_release = await conn.fetchval(RELEASE_AFTER, source, state.lineage, state.transaction)
    place = from_node_id, state.lineage, state.transaction, state.at
    await conn.execute(SQL["add"], id, node_id, *place, before_release, undo_id, hold, by, now)
    await conn.execute(SQL["hold"], node_id, id, now)
    await conn.execute(END_SYNCS, node_id, now)
    await conn.execute(CLEAR_WARNINGS, [str(node_id)], now, "overdue")
    changed.nodes.add(str(node_id))
    return await conn.one(RESTORE, id)


async def resume(conn: Connection, changed: Changed, now: datetime, node_id: UUID) -> RestoreRow:
    """Let a node go on that was held; a restore that it hasn't carried out is cancelled.

    Raises: ProblemError restore_not_possible, when it isn't held.
    """
    node = await _locked(conn, node_id)
    restore = await _present(conn, node)
    if restore is None:
        raise ProblemError("restore_not_possible", "the node isn't held, and no restore of it is ordered", field="node")
    await conn.execute(SQL["end"], restore.id, "cancelled" if restore.state == "ordered" else "done", now)
    await _let_go(conn, changed, now, node_id, restore.id)
    return await conn.one(RESTORE, restore.id)


async def tell(
    conn: Connection, changed: Changed, now: datetime, node_id: UUID, restore_id: UUID, result: wire.RestoreResult
) -> None:
    """Write what came of a node's restore; the same again changes nothing.

    Raises: ProblemError unknown_restore, when it isn't one of this node's.
    """
    await _locked(conn, node_id)
    restore = await conn.fetchrow(RESTORE, restore_id)
    if restore is None or restore.node_id != node_id:
        raise unknown(restore_id)
    done = result.outcome == "done"
    if restore.state != "ordered" and not (restore.state == "cancelled" and done):
        return
    state: RestoreState = "failed"
    message = result.message
    if done:
        state = "held" if restore.hold and restore.state == "ordered" else "done"
        message = CANCELLED_LATE if restore.state == "cancelled" else message
    before = result.before
    await conn.execute(
        SQL["tell"],
        *(restore_id, state, None if state == "held" else now, now, result.code, message),
        *(result.release if done else None, result.kept),
        *(("", 0) if before is None else (before.lineage, before.transaction)),
        _id(result.release_id) if done else None,
    )
    if state != "held":
        await _let_go(conn, changed, now, node_id, restore_id)


async def ordered(conn: Connection, node_id: UUID, restore_id: UUID) -> RestoreRow:
    """Return a restore that a node is to carry out now. Raises: ProblemError unknown_restore, when it isn't to."""
    restore = await conn.fetchrow(RESTORE, restore_id)
    if restore is None or restore.node_id != node_id or restore.state != "ordered":
        raise unknown(restore_id)
    return restore


def unknown(restore_id: UUID) -> ProblemError:
    """Make the problem that a node has no such restore to carry out."""
    text = f"the restore {restore_id} is over, or isn't one of this node's"
    return ProblemError("unknown_restore", text, field="id")


async def _let_go(conn: Connection, changed: Changed, now: datetime, node_id: UUID, restore_id: UUID) -> None:
    """Let a node have its target again, unless it is held for another restore by now."""
    if await conn.fetchval(LET_GO, node_id, restore_id) is not None:
        await conn.execute(SQL["expect"], node_id, now)
        changed.nodes.add(str(node_id))


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _locked(conn: Connection, node_id: UUID) -> LockedNode:
    node = await conn.fetchrow(LOCK_NODE, node_id)
    if node is None:
        raise ProblemError("unknown_node", "the node was removed", field="node")
    return node


async def _present(conn: Connection, node: LockedNode) -> RestoreRow | None:
    return None if node.restore_id is None else await conn.fetchrow(RESTORE, node.restore_id)
