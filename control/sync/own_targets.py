"""Nodes' own targets: the release that a rollout gives to some nodes of a group before the group has it.

A node's own release is its target while the node's generation is above its group's. Each function is a part of a
transaction. Its caller announces the nodes, or the group, with `Changed` as the transaction's last statement.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from control.storage import queries
from control.storage.connection import Connection
from control.sync.fleet_cache import MARK_KEPT

ALIVE = timedelta(seconds=10)
"""For how long a replica that writes no mark any more counts as running."""

SQL = queries.load("own_targets")
LOCK = SQL.value("lock", str)
UNKNOWN_TO_SOME = SQL.value("unknown_to_some", bool)
LOCK_UNREACHED = SQL.value("lock_unreached", str)
OWN_OF = SQL.optional("own_of", UUID)
LOCK_GROUP = SQL.value("lock_group", UUID)
LOCK_OWNERS = SQL.value("lock_owners", str)
TAKE_GENERATION = queries.load("nodes").value("take_generation", int)


async def unknown_to_some(conn: Connection, now: datetime) -> bool:
    """Return whether a replica runs that gives nodes their group's release alone: one of an earlier version.

    It would say of a node that has its own release as target, and hasn't come to it, that it is there.
    """
    return await conn.fetchval(UNKNOWN_TO_SOME, now + MARK_KEPT - ALIVE)


async def set_own(conn: Connection, release_id: UUID | str, node_ids: Collection[str], step: int, now: datetime) -> int:
    """Make the release the target of these nodes, and record that this step of its rollout has started them.

    Nodes that have left the release's group are left out. Return the generation, which is the same for all of them.
    Announce the nodes.
    """
    # Before the generation is taken, so that waiting for a locked node delays no other decision.
    ids = await conn.column(LOCK, release_id, sorted(node_ids))
    generation = await conn.fetchval(TAKE_GENERATION)
    await conn.execute(SQL["start"], release_id, ids, step, generation, now)
    return generation


async def give_back(conn: Connection, release_id: UUID | str) -> list[str]:
    """Make their group's release the target again of those nodes that were started with this one and don't run it.

    For the rollout they haven't been started then. Return their ids, sorted; announce them.
    """
    ids = await conn.column(LOCK_UNREACHED, release_id)
    if ids:
        await conn.execute(SQL["give_back"], release_id, ids, await conn.fetchval(TAKE_GENERATION))
    return ids


async def disown(conn: Connection, node_id: UUID | str) -> None:
    """Make its group's release the target of a node again, as `give_back` does for many; announce the node."""
    release_id = await conn.fetchval(OWN_OF, node_id)
    if release_id is not None:
        await conn.execute(SQL["give_back"], release_id, [str(node_id)], await conn.fetchval(TAKE_GENERATION))


async def finish(conn: Connection, release_id: UUID | str, group_id: UUID | str) -> int:
    """Make the release the target of its group, in place of the own targets of the group's nodes.

    Return the generation; announce the group.
    """
    await conn.fetchval(LOCK_GROUP, group_id)
    # Before the generation is taken, for which all releases wait: 0.5 s for ten thousand nodes.
    await conn.execute(SQL["clear"], await conn.column(LOCK_OWNERS, group_id))
    generation = await conn.fetchval(TAKE_GENERATION)
    await conn.execute(SQL["to_group"], release_id, group_id, generation)
    return generation
