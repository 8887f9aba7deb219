"""After a restore of the metadata: what nodes run that they lack, and counters that must continue above it.

What nodes run is known only from their polls. Not everything in them is trusted: a node whose generation, or whose
version of a function, is a million above what control knows would use up all available numbers.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import Struct

from control.api.operations import ApiCall, Reply, operation
from control.protocol import wire
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import plan


class GroupAhead(Struct):
    """A group with nodes that completed a generation above the counter's."""

    name: str
    nodes: int
    generation: int
    """The highest that one of them completed."""


class NodeGeneration(Struct):
    name: str
    generation: int
    """The generation that it claims to have completed."""


class GroupBehind(Struct):
    """A group with nodes that aren't at its target."""

    name: str
    release: int
    """Number of its release."""
    nodes: int


class UnknownVersion(Struct):
    """A version that nodes run and the metadata don't have."""

    name: str
    version: int
    sha256: wire.Sha256
    nodes: int
    node: str
    """One of them."""
    after_backup: bool
    """Whether it was made after the backup: the metadata know no version of this number. If not, it was deleted, or
    another one has the number."""


class LaterVersion(Struct):
    """A function of which nodes run a later version than the last one in the metadata."""

    name: str
    known: int
    version: int
    """The latest version that nodes run; the next new version gets a number above it."""


class UnknownChange(Struct):
    """A schema change that nodes have applied, but that the metadata don't have with this text."""

    number: int
    checksum: wire.Sha256
    nodes: int
    node: str
    """One of them."""
    registered: bool
    """Whether there is a change of this number, with another text."""


class RefusedAddress(Struct):
    """An address whose credentials were refused."""

    address: str
    reason: str
    """`unknown`, `wrong_secret` or `revoked`."""
    count: int
    last_at: datetime


class Recovery(Struct):
    """What nodes run that the metadata lack, and what recovering changes."""

    restored_at: datetime | None
    """When control noticed that the metadata were restored; null if it didn't, or after a recovery."""
    generation: int
    """The counter of generations."""
    jump_to: int | None
    """The value that recovering sets, so that the next release is above what nodes completed; null: unchanged."""
    ahead: list[GroupAhead]
    not_believed: list[NodeGeneration]
    """At most ten nodes whose generation is too far above the counter to be trusted."""
    later_versions: list[LaterVersion]
    unknown_versions: list[UnknownVersion]
    """At most 200."""
    unknown_changes: list[UnknownChange]
    """By number."""
    behind: list[GroupBehind]
    nodes: int
    unheard: int
    """How many of them haven't polled since `restored_at`, or in the last minute: what they run isn't known."""
    refused: list[RefusedAddress]
    """Since `restored_at`, or in the last hour; at most 50."""


MOST_AHEAD = 1_000_000
"""How far above the counters a node's numbers may be."""
NAMED = 10
"""The most distrusted nodes that are named."""
MOST_VERSIONS = 200
MOST_HISTORIES = 20
"""How many different histories of schema changes are compared: those that most nodes have."""
MOST_REFUSED = 50
HEARD = timedelta(minutes=1)
"""If no restore was noticed: how recently a node must have been heard from."""
REFUSED = timedelta(hours=1)
"""If no restore was noticed: how far back refusals are listed."""


class AppliedHistory(NamedTuple):
    """Schema changes that nodes have applied, as JSON; how many nodes, and one of them."""

    schema_changes: str
    nodes: int
    node: str


class HeardNodes(NamedTuple):
    """How many nodes there are, and how many of them haven't polled."""

    nodes: int
    unheard: int


SQL = queries.load("recovery")
GENERATION = SQL.value("generation", int)
AHEAD = SQL.rows("ahead", GroupAhead)
NOT_BELIEVED = SQL.rows("not_believed", NodeGeneration)
BEHIND = SQL.rows("behind", GroupBehind)
UNKNOWN_VERSIONS = SQL.rows("unknown_versions", UnknownVersion)
LATER_VERSIONS = SQL.rows("later_versions", LaterVersion)
HISTORIES = SQL.rows("histories", AppliedHistory)
UNHEARD = SQL.rows("unheard", HeardNodes)
REFUSED_ADDRESSES = SQL.rows("refused", RefusedAddress)
RESTORED_AT = SQL.optional("restored_at", datetime)
REVISIONS = queries.load("poll").rows("revisions", plan.Revision)


@operation(
    "GET",
    "/v1/recovery",
    "What nodes run that the metadata don't know, as after a restore from a backup",
    role="admin",
    answers={200: Recovery},
)
async def show(call: ApiCall) -> Reply:
    now = call.services.clock.now()
    return await call.read(lambda conn: find(conn, now))


@operation(
    "POST",
    "/v1/recovery",
    "Let generations and versions go on above those that nodes run",
    role="admin",
    answers={200: Recovery},
)
async def recover(call: ApiCall) -> Reply:
    """Set the counters above what nodes run. Return what was found before."""

    async def work(conn: Connection, _changed: Changed) -> Recovery:
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


async def find(conn: Connection, now: datetime) -> Recovery:
    """Compare what nodes run with the metadata."""
    generation, restored_at = await conn.fetchval(GENERATION), await conn.fetchval(RESTORED_AT)
    ahead = await conn.fetch(AHEAD, generation, generation + MOST_AHEAD)
    heard = await conn.one(UNHEARD, restored_at or now - HEARD)
    return Recovery(
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


async def _unknown_changes(conn: Connection) -> list[UnknownChange]:
    """Return the schema changes that nodes have applied whose text no registered revision has."""
    revisions = plan.by_number(await conn.fetch(REVISIONS))
    found: dict[tuple[int, str], UnknownChange] = {}
    for history in await conn.fetch(HISTORIES, len(revisions), MOST_HISTORIES):
        for change in msgspec.json.decode(history.schema_changes, type=list[wire.AppliedChange]):
            if not _is_registered(change, revisions):
                key, registered = (change.number, change.checksum), change.number in revisions
                unknown = UnknownChange(*key, 0, history.node, registered)
                found.setdefault(key, unknown).nodes += history.nodes
    return [found[key] for key in sorted(found)]


def _is_registered(change: wire.AppliedChange, revisions: Mapping[int, list[plan.Revision]]) -> bool:
    return any(change.checksum == revision.checksum for revision in revisions.get(change.number, ()))
