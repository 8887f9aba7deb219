"""Bodies of answers about nodes, their tokens and their syncs.

Times are RFC 3339 in UTC; a value that is missing is null.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct

from control.api.bodies.release_responses import ReleaseFunction
from control.protocol import wire
from control.sync.applied_revisions import OlderRevision
from control.sync.standing import Standing


class NodeError(Struct):
    code: str
    message: str
    at: datetime | None


class Warning(Struct):
    kind: str
    message: str
    since: datetime


class OpenSync(Struct):
    id: str
    status: str
    step: str
    started_at: datetime


class Node(Struct):
    """A node: what it runs, what it should run, and its state (R 1.4, 5.4)."""

    id: str
    name: str
    group: str
    labels: dict[str, str]
    state: str
    state_since: datetime
    joined_at: datetime
    last_seen_at: datetime | None
    last_sync_at: datetime | None
    release: int | None
    """The number of the release of its group that it runs; null where it has run none of that group yet."""
    target_release: int | None
    """The number of its group's newest release, which it should run; null where there is none."""
    generation: int
    """The generation of the last target that it was confirmed at."""
    target_generation: int
    at_target: bool
    standing: Standing
    """How it stands, in one word: the first of these that is true of it."""
    schema_version: int
    target_schema: int
    functions: list[ReleaseFunction]
    failures: int
    """How many syncs have failed so far (R 5.3)."""
    syncs_folded: int
    """How many attempts so far have no line of their own in the log of syncs."""
    error: NodeError | None
    retry_at: datetime | None
    version: str | None
    """Of its software, as it told with its capabilities: number and commit. Versions before don't tell."""
    warnings: list[Warning]
    sync: OpenSync | None


class NodeCredential(Struct):
    """A node's credential, without its secret."""

    created_at: datetime
    ends_at: datetime
    """From then on it is good only to get its successor, which the node does by itself."""
    return_until: datetime
    """From then on it is good for nothing: the node must join again."""


class ToldNumbers(Struct):
    """What a node told of itself last, about once a minute."""

    told_at: datetime
    database_bytes: int
    wal_bytes: int
    """Of the database's log."""
    disk_free_bytes: int
    memory_bytes: int
    """Of all its processes."""
    certificate_ends_at: datetime | None
    """The end of the certificate of its local HTTP; null where it has none."""
    edge: str
    """Its version of the edge runtime."""
    trust_ends_at: datetime | None
    """The end of the last CA by which it trusts control; null where it doesn't say."""


class DetailedNode(Node):
    credential: NodeCredential | None
    """The credential that it uses; null where all are revoked."""
    capabilities: dict[str, Any]
    """What it can run, as it has sent it."""
    protocol: int
    older_revisions: list[OlderRevision]
    """The schema changes that it has applied in another revision than the newest."""
    numbers: ToldNumbers | None
    """Null where it told none."""


class MadeJoinToken(Struct):
    id: str
    token: str
    """The token's text, which is answered only once."""
    group: str
    expires_at: datetime


class JoinToken(Struct):
    """A join token, without its secret."""

    id: str
    group: str
    rejoin: str | None
    """The node that it lets join again, or null."""
    created_by: str
    created_at: datetime
    expires_at: datetime
    state: str
    """`open`, `used`, `expired` or `revoked`."""
    node: str | None
    """The node that joined with it, or null."""


class Sync(Struct):
    """A line of the log of syncs (R 6.4)."""

    id: str
    node: str
    group: str
    release: int | None
    generation: int
    status: str
    step: str
    started_at: datetime
    lease_until: datetime
    ended_at: datetime | None
    error: wire.SyncError | None
    late: str | None
    """The result that was reported after the end, if one was."""
    folded: int
    """Further attempts of the node at this generation that share this line: a node gets ten lines an hour."""
