"""What the console needs of rollouts besides what the API has.

Rehearsals over all nodes, a group's policy, and whether a form was sent before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from control.api.node_views import unknown_group
from control.api.operations import ApiCall, Reply
from control.api.rollout_bodies import Act
from control.problems import ProblemError
from control.rollouts import store
from control.rollouts.policy import Policy
from control.storage import queries
from control.storage.connection import Connection

MOST_DIGESTS = 10
"""The most different schemas that are read."""


class DigestOfNodes(NamedTuple):
    """A schema that resulted, and on how many nodes."""

    digest: str
    nodes: int


class ChangeOnCopies(NamedTuple):
    """What a schema change did on the copies of nodes."""

    number: int
    name: str
    nodes: int
    rows: int
    """Rows that it wrote, on all of them together."""
    seconds: float
    """The longest time that it took."""
    stall: float
    """The longest stall in seconds that writers of one of them must expect."""


class RehearsalSummary(NamedTuple):
    """What a rehearsal found, over all nodes."""

    digests: Sequence[DigestOfNodes]
    """Of nodes that passed, most nodes first."""
    changes: Sequence[ChangeOnCopies]


class GroupPolicy(NamedTuple):
    """The policy of a group; None if its releases go to all nodes at once."""

    policy: dict[str, Any] | None


SQL = queries.load("rollout_views")
DIGESTS = SQL.rows("digests", DigestOfNodes)
CHANGES = SQL.rows("changes", ChangeOnCopies)
POLICY = SQL.rows("group_policy", GroupPolicy)


async def rehearsed(call: ApiCall) -> Reply:
    """Return what the rehearsal of a group's release found, over all nodes. Raises: ProblemError."""
    group, number = call.path["group"], call.path["number"]
    if not call.operator.rights.allows("read", group):
        raise unknown_group(group)

    async def work(conn: Connection) -> RehearsalSummary:
        stored = await store.by_number(conn, group, number)
        if stored is None:
            raise ProblemError("unknown_rollout", f"release {group}/{number} has no rollout", field="number")
        which = stored.row.release_id, stored.row.attempt
        return RehearsalSummary(await conn.fetch(DIGESTS, *which, MOST_DIGESTS), await conn.fetch(CHANGES, *which))

    return await call.read(work)


async def policy_of(call: ApiCall) -> Reply:
    """Return how releases of a group go out; None: to all nodes at once. Raises: ProblemError unknown_group."""
    group = call.path["group"]
    if not call.operator.rights.allows("read", group):
        raise unknown_group(group)

    async def work(conn: Connection) -> Policy | None:
        row = await conn.fetchrow(POLICY, group)
        if row is None:
            raise unknown_group(group)
        return None if row.policy is None else msgspec.convert(row.policy, Policy)

    return await call.read(work)


async def answered(call: ApiCall, body: Act) -> Reply:
    """Return what was answered to the same act with the same key before; None if it wasn't done yet."""
    return await call.replayed(status=200) or Reply(200, None)
