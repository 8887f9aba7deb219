"""What a replica's cache reads of the metadata: targets, nodes, credentials and operators, and the epoch."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from control.protocol.wire import Poll
from control.storage import queries
from control.storage.connection import Connection
from control.sync.watches import WatchRow


@dataclass(slots=True)
class CachedGroup:
    """A group and its target. When a group or a node is announced again, a new object takes its place."""

    id: str
    name: str
    release_id: str | None
    generation: int
    release_number: int | None


@dataclass(slots=True)
class CachedNode:
    """What a poll needs to know of its node."""

    id: str
    name: str
    group_id: str
    epoch: int
    """Epoch of the last announcement of this node."""
    generation: int
    """Generation of the node's last move; its target's is the larger of this and its group's."""
    confirmed_generation: int
    digest: str
    """Digest of what the node ran when it was last confirmed, or reported its inventory."""
    capabilities_digest: str
    """Digest of the stored capabilities; '' where the node sent them without a digest."""
    ran_generation: int
    """The generation that it completed, where that is above its target's: the metadata were restored since."""
    removed: bool
    revoked: bool
    """Whether an operator has revoked its credentials, and it hasn't joined again."""


@dataclass(slots=True)
class Credential:
    """A node's credential."""

    id: str
    node_id: str
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None
    first_used_at: datetime | None
    replaces: str | None
    last: tuple[bytes, Poll] | None = None
    """The node's last poll, as bytes and as parsed: at target, a node sends the same bytes again and again."""


@dataclass(slots=True)
class CachedOperator:
    """An operator, who may have been revoked, or may have ended."""

    id: str
    name: str
    role: str
    secret_hash: str
    revoked_at: datetime | None
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None
    issuer: str | None = None
    """The OpenID provider that knows it as `subject`; None where it has a token."""
    subject: str | None = None
    shown_name: str = ""
    """How the provider calls it."""
    old_secret_hash: str = ""
    """The token's secret before it was exchanged, which is good until `old_ends_at`; '' where it never was."""
    rotated_at: datetime | None = None
    old_ends_at: datetime | None = None


class Epoch(NamedTuple):
    """The number of the last announcement, the mark of the replica that asks, and the database's time."""

    epoch: int
    mark: int
    clock_timestamp: datetime


class LastAnnounced(NamedTuple):
    """The epochs of the last announcements of rows of each kind, and whether there are watches."""

    groups: int
    nodes: int
    credentials: int
    operators: int
    watched: bool


class Announced(NamedTuple):
    """The rows that were announced up to an epoch, or were looked up."""

    groups: list[CachedGroup]
    nodes: list[CachedNode]
    credentials: list[Credential]
    operators: list[CachedOperator]
    watches: list[WatchRow] | None = None
    """All that there are now; None where they weren't asked for."""


SQL = queries.load("fleet")
EPOCH = SQL.rows("epoch", Epoch)
ANNOUNCED = SQL.rows("announced", LastAnnounced)
GROUPS_SINCE = SQL.rows("groups_since", CachedGroup)
GROUPS_BY_ID = SQL.rows("groups_by_id", CachedGroup)
NODES_SINCE = SQL.rows("nodes_since", CachedNode)
NODES_BY_ID = SQL.rows("nodes_by_id", CachedNode)
CREDENTIALS_SINCE = SQL.rows("credentials_since", Credential)
CREDENTIALS_BY_ID = SQL.rows("credentials_by_id", Credential)
OPERATORS_SINCE = SQL.rows("operators_since", CachedOperator)
WATCHES = SQL.rows("watches", WatchRow)
OPERATORS_BY_ID = SQL.rows("operators_by_id", CachedOperator)


async def by_id(conn: Connection, ids: list[str]) -> Announced:
    """The credentials and operators of these ids, with the nodes and groups that they refer to."""
    credentials = await conn.fetch(CREDENTIALS_BY_ID, ids)
    operators = await conn.fetch(OPERATORS_BY_ID, ids)
    nodes = await conn.fetch(NODES_BY_ID, [row.node_id for row in credentials])
    groups = await conn.fetch(GROUPS_BY_ID, [row.group_id for row in nodes])
    return Announced(groups, nodes, credentials, operators)
