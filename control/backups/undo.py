"""Undoing releases with nodes' data: each node that releases have reached goes back to where it was before the first of
them, by restores that are ordered together with the release of the rollback, whose id is their `undo_id`.

A node that can't go back is left as it is, and that is recorded with the reason. The others get no plan until they have
carried out their restore, and go on to the rollback's release then: they aren't held.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from control.backups.restores import RestoreRow, RestoreState
from control.backups.targets import AtTransaction, StateFinder
from control.clock import Clock
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection

AT_ONCE: Final = 16
"""Nodes whose files are looked up at the store at the same time."""
SECONDS: Final = 40.0
"""How long that may take; nodes that weren't looked up by then go by what they have told. A client waits for 90 s."""


class NodeToUndo(NamedTuple):
    """A node of the group."""

    id: str
    name: str
    state: str
    protocol: int
    restore_state: RestoreState | None
    """Of the restore that it is to carry out, or is held at."""
    runs: bool
    """Whether it is at one of the releases."""
    going: int | None
    """The number of the one to which it is on its way."""
    newest_at: datetime | None
    """The last moment of its data that is at the store."""


class ReachedRelease(NamedTuple):
    """When a node came to a release."""

    node_id: str
    release_id: UUID
    number: int
    lineage: str
    """'' if the node wasn't backed up then."""
    transaction_id: int
    """The last one before the release."""
    at: datetime


class Restored(NamedTuple):
    """The state to which a node has gone back before."""

    node_id: str
    lineage: str
    transaction_id: int
    state_at: datetime
    told_at: datetime
    """When it was there."""


class Left(NamedTuple):
    """A node that can't go back."""

    node: NodeToUndo
    first: ReachedRelease | None
    """None if it isn't known which of the releases it had first."""
    code: str
    why: str


class Undo(NamedTuple):
    """What an undo does to the nodes that its releases have reached."""

    above: int
    """The number of the release to which the group goes back: all later ones are undone."""
    back: list[tuple[NodeToUndo, ReachedRelease]]
    """Nodes that go back, by name."""
    left: list[Left]
    """Nodes that stay as they are, by name."""

    def parts(self) -> list[object]:
        """Return what somebody decides by who has seen it."""
        back = [[node.id, first.lineage, first.transaction_id] for node, first in self.back]
        return [self.above, back, [each.node.id for each in self.left]]


class UndoOfRelease(NamedTuple):
    """The rollback that undid a release with data."""

    id: UUID
    number: int


class UndoCount(NamedTuple):
    """How many nodes of an undo have an outcome."""

    outcome: str
    nodes: int


AtStore = Mapping[tuple[str, str, int], datetime | ProblemError]
"""When nodes' databases were at a transaction of a lineage, or why they can't be brought there, as far as that was
looked up at the store."""

SQL = queries.load("undo")
NODES = SQL.rows("nodes", NodeToUndo)
REACHED = SQL.rows("reached", ReachedRelease)
RESTORED = SQL.rows("restored", Restored)
LOCK = SQL.value("lock", str)
OF_RELEASE = SQL.rows("of_release", UndoOfRelease)
COUNTS = SQL.rows("counts", UndoCount)
RESTORES = SQL.rows("restores", RestoreRow)
CLEAR_WARNINGS = queries.load("monitor")["clear_warnings"]


def first_reached(reached: Iterable[ReachedRelease], restored: Collection[Restored]) -> ReachedRelease | None:
    """Return by which of its releases a node's data have come to differ; None if all of them are undone already."""
    standing = [each for each in reached if not any(_undid(restore, each) for restore in restored)]
    return min(standing, key=lambda each: (each.at, each.number), default=None)


def _undid(restore: Restored, reached: ReachedRelease) -> bool:
    """Return whether a restore went back to before a release. In the same history that is exact; of another one, only
    the times are known."""
    if restore.told_at < reached.at:
        return False
    if restore.lineage == reached.lineage:
        return restore.transaction_id <= reached.transaction_id
    return restore.state_at < reached.at


def decide(
    above: int,
    nodes: Sequence[NodeToUndo],
    reached: Iterable[ReachedRelease],
    restored: Iterable[Restored],
    at_store: AtStore,
) -> Undo:
    """Return which nodes go back, and which can't. Nodes that no release has reached are in neither list."""
    reached_by, restored_by = defaultdict(list), defaultdict(list)
    for each in reached:
        reached_by[each.node_id].append(each)
    for restore in restored:
        restored_by[restore.node_id].append(restore)
    undo = Undo(above, [], [])
    for node in nodes:
        first = first_reached(reached_by[node.id], restored_by[node.id])
        if first is None and node.id in reached_by and node.going is None:
            continue
        if first is None and not node.runs and node.going is None:
            continue
        problem = _why_not(node, first, at_store)
        if problem is not None:
            undo.left.append(Left(node, first, *problem))
        elif first is not None:
            found = at_store.get((node.id, first.lineage, first.transaction_id))
            # The node tells of a release once it is there, so its state of before is older than that.
            undo.back.append((node, first._replace(at=found) if isinstance(found, datetime) else first))
    return undo


def _why_not(node: NodeToUndo, first: ReachedRelease | None, at_store: AtStore) -> tuple[str, str] | None:
    """Return the code and the reason why a node can't go back; None if it can."""
    if first is None and node.going is not None:
        text = (
            f"it is on its way to release {node.going}: if it still comes to it, `skerry data restore {node.name} --to "
            f"before:{node.going}` brings it back"
        )
        return "restore_not_possible", text
    if node.state == "revoked":
        return "restore_not_possible", "it was revoked: let it join again first (`skerry node token --rejoin`)"
    if node.protocol < wire.BACKUP_PROTOCOL:
        return "restore_not_possible", "its version of skerry-edge is too old to be brought back"
    if node.restore_state == "ordered":
        text = f"it is to carry out another restore already: `skerry data resume {node.name}` cancels that"
        return "restore_not_possible", text
    if first is None:
        return "backup_incomplete", "it isn't known what it had before these releases: it had no backup then"
    if not first.lineage:
        text = f"it wasn't backed up when it went to release {first.number}, or was killed just then"
        return "backup_incomplete", text
    found = at_store.get((node.id, first.lineage, first.transaction_id))
    return (found.code, found.detail) if isinstance(found, ProblemError) else None


async def read(conn: Connection, group_id: UUID, above: int, at_store: AtStore) -> Undo:
    """Find out which nodes of a group go back if its releases above a number are undone, and which can't."""
    nodes = await conn.fetch(NODES, group_id, above)
    reached = await conn.fetch(REACHED, group_id, above)
    return decide(above, nodes, reached, await conn.fetch(RESTORED, group_id), at_store)


async def look_up(states: StateFinder, clock: Clock, undo: Undo) -> AtStore:
    """Look up at the store whether nodes can go back, within a time. Raises: as `Store` and `Database` do."""
    at_store: dict[tuple[str, str, int], datetime | ProblemError] = {}
    waiting = iter(undo.back)

    async def work() -> None:
        for node, first in waiting:
            key = node.id, first.lineage, first.transaction_id
            try:
                at_store[key] = (await states.find(node.id, AtTransaction(first.lineage, first.transaction_id))).at
            except ProblemError as problem:
                if problem.status >= 500:
                    raise
                at_store[key] = problem

    try:
        async with clock.timeout(SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(min(AT_ONCE, len(undo.back))):
                tasks.create_task(work())
    except TimeoutError:
        pass
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return at_store


async def order(conn: Connection, changed: Changed, now: datetime, by: str, undo_id: UUID, undo: Undo) -> None:
    """Order what an undo does, for the release with this id."""
    if undo.back:
        ids = [node.id for node, _ in undo.back]
        await conn.column(LOCK, ids)
        await conn.execute(SQL["end_held"], ids, now)
        restores = [str(uuid4()) for _ in ids]
        columns = zip(
            *(
                (first.lineage, str(first.transaction_id), first.at.isoformat(), str(first.release_id))
                for _, first in undo.back
            ),
            strict=True,
        )
        await conn.execute(SQL["order"], restores, ids, *map(list, columns), undo_id, by, now)
        await conn.execute(SQL["hold"], restores, ids, now)
        await conn.execute(SQL["end_syncs"], ids, now)
        await conn.execute(CLEAR_WARNINGS, ids, now, "overdue")
        changed.nodes.update(ids)
    if undo.left:
        rows = (
            (str(uuid4()), each.node.id, "" if each.first is None else str(each.first.release_id), each.code, each.why)
            for each in undo.left
        )
        await conn.execute(SQL["leave"], *map(list, zip(*rows, strict=True)), undo_id, by, now)
