"""After a restore of the metadata: what nodes run that they don't know, and counters that go on above it.

What nodes run is known from their polls alone. They aren't believed everything: one whose generation, or whose version
of a function, is a million above what control knows would use up all numbers that there are.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from control.api.bodies import recovery_responses as answers
from control.api.operations import ApiCall, Reply, operation
from control.protocol import wire
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import plan

MOST_AHEAD = 1_000_000
"""How far above the counters a node's numbers may be."""
NAMED = 10
"""Nodes that are named because they aren't believed."""
MOST_VERSIONS = 200
MOST_HISTORIES = 20
"""Different histories of schema changes that are compared: those that most nodes have."""
MOST_REFUSED = 50
HEARD = timedelta(minutes=1)
"""Where no restore was noticed: since when a node must have been heard of."""
REFUSED = timedelta(hours=1)
"""Where no restore was noticed: since when refusals are told."""


class AppliedHistory(NamedTuple):
    """Schema changes that nodes have applied, as JSON; how many nodes, and one of them."""

    schema_changes: str
    nodes: int
    node: str


class HeardNodes(NamedTuple):
    """How many nodes there are, and how many of them weren't heard of."""

    nodes: int
    unheard: int


SQL = queries.load("recovery")
GENERATION = SQL.value("generation", int)
AHEAD = SQL.rows("ahead", answers.GroupAhead)
NOT_BELIEVED = SQL.rows("not_believed", answers.NodeGeneration)
BEHIND = SQL.rows("behind", answers.GroupBehind)
UNKNOWN_VERSIONS = SQL.rows("unknown_versions", answers.UnknownVersion)
LATER_VERSIONS = SQL.rows("later_versions", answers.LaterVersion)
HISTORIES = SQL.rows("histories", AppliedHistory)
UNHEARD = SQL.rows("unheard", HeardNodes)
REFUSED_ADDRESSES = SQL.rows("refused", answers.RefusedAddress)
RESTORED_AT = SQL.optional("restored_at", datetime)
REVISIONS = queries.load("poll").rows("revisions", plan.Revision)


@operation(
    "GET",
    "/v1/recovery",
    "What nodes run that the metadata don't know, as after a restore from a backup",
    role="admin",
    answers={200: answers.Recovery},
)
async def show(call: ApiCall) -> Reply:
    now = call.services.clock.now()
    return await call.read(lambda conn: find(conn, now))


@operation(
    "POST",
    "/v1/recovery",
    "Let generations and versions go on above those that nodes run",
    role="admin",
    answers={200: answers.Recovery},
)
async def recover(call: ApiCall) -> Reply:
    """Set the counters above what nodes run. Answers what was found before."""

    async def work(conn: Connection, _changed: Changed) -> answers.Recovery:
        now = call.services.clock.now()
        found = await find(conn, now)
        before: dict[str, object] = {"restored_at": found.restored_at}
        after: dict[str, object] = {"restored_at": None}
        if found.jump_to is not None:
            before["generation"], after["generation"] = found.generation, found.jump_to
            await conn.execute(SQL["jump"], found.jump_to)
        if found.later_versions:
            names, numbers = zip(*((later.name, str(later.version)) for later in found.later_versions), strict=True)
            before["last_versions"] = {later.name: later.known for later in found.later_versions}
            after["last_versions"] = {later.name: later.version for later in found.later_versions}
            await conn.execute(SQL["jump_versions"], list(names), list(numbers), now)
        await conn.execute(SQL["recovered"])
        await call.audit(conn, "metadata.recover", "metadata", before=before, after=after)
        return found

    return await call.write(work, status=200)


async def find(conn: Connection, now: datetime) -> answers.Recovery:
    """Compare what nodes run with the metadata."""
    generation, restored_at = await conn.fetchval(GENERATION), await conn.fetchval(RESTORED_AT)
    ahead = await conn.fetch(AHEAD, generation, generation + MOST_AHEAD)
    heard = await conn.one(UNHEARD, restored_at or now - HEARD)
    return answers.Recovery(
        restored_at=restored_at,
        generation=generation,
        jump_to=max((group.generation for group in ahead), default=None),
        ahead=ahead,
        not_believed=await conn.fetch(NOT_BELIEVED, generation + MOST_AHEAD, NAMED),
        later_versions=await conn.fetch(LATER_VERSIONS, MOST_AHEAD),
        unknown_versions=await conn.fetch(UNKNOWN_VERSIONS, MOST_VERSIONS),
        unknown_changes=await _unknown_changes(conn),
        behind=await conn.fetch(BEHIND),
        nodes=heard.nodes,
        unheard=heard.unheard,
        refused=await conn.fetch(REFUSED_ADDRESSES, restored_at or now - REFUSED, MOST_REFUSED),
    )


async def _unknown_changes(conn: Connection) -> list[answers.UnknownChange]:
    """The schema changes that nodes have applied and no registered revision has the text of."""
    revisions = plan.by_number(await conn.fetch(REVISIONS))
    found: dict[tuple[int, str], answers.UnknownChange] = {}
    for history in await conn.fetch(HISTORIES, len(revisions), MOST_HISTORIES):
        for change in msgspec.json.decode(history.schema_changes, type=list[wire.AppliedChange]):
            if not _is_registered(change, revisions):
                key, registered = (change.number, change.checksum), change.number in revisions
                unknown = answers.UnknownChange(*key, 0, history.node, registered)
                found.setdefault(key, unknown).nodes += history.nodes
    return [found[key] for key in sorted(found)]


def _is_registered(change: wire.AppliedChange, revisions: Mapping[int, list[plan.Revision]]) -> bool:
    return any(change.checksum == revision.checksum for revision in revisions.get(change.number, ()))
