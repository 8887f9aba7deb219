"""The messages between control, its nodes and its operators, and the digest of what a node runs.

It imports no other module of the project, since both packages share it. Messages of nodes may have unknown fields, so
that an older control and a newer edge work together, and the other way round; operators' bodies may not. Times are RFC
3339 in UTC, durations are in seconds unless a name says otherwise, sizes are in bytes.
"""

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

PROTOCOL = 1
"""Version of the nodes' protocol. A node sends its version, and control answers with messages that it knows."""

MIB = 1024 * 1024
MOST_FUNCTIONS, MOST_CHANGES = 1000, 10_000  # of a release; of the schema, since a node reports all that it applied

# A Python pattern's $ also matches before a line break at the end, hence the look-ahead.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
"""Names of nodes, groups and functions: lower case letters, digits and hyphens, 63 at most."""
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Generation = Annotated[int, Meta(ge=0, le=2**62)]
Text = Annotated[str, Meta(max_length=2000)]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Message(Struct, omit_defaults=True):
    """A node's message, or control's to a node: unknown fields are ignored."""


class Body(Struct, forbid_unknown_fields=True, frozen=True):
    """An operator's request: unknown fields are refused."""


class Join(Message):
    """``POST /v1/nodes``, authenticated by a one-time join token."""

    name: Name
    attempt: Uuid
    """Random; the same attempt again, before the credential was used, gives a replacement."""
    labels: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    """What the node can run; a release's needs are compared with `abi` and `manifest` (its fields)."""
    protocol: Number = PROTOCOL


class Joined(Message):
    node_id: str
    credential: str
    group: str


class AppliedChange(Message):
    number: Number
    revision: Number
    checksum: Sha256


class RunningFunction(Message):
    name: Name
    version: Number
    sha256: Sha256
    manifest_digest: Sha256


class Inventory(Message):
    """What a node runs: the release that its libsql file holds."""

    schema_version: Annotated[int, Meta(ge=0)] = 0
    schema_changes: Annotated[list[AppliedChange], Meta(max_length=MOST_CHANGES)] = []
    """Every applied change, in order."""
    functions: Annotated[list[RunningFunction], Meta(max_length=MOST_FUNCTIONS)] = []
    database_id: str = ""
    """The id of the libsql file: another id means that the node's disk was lost or exchanged."""


class FailedGeneration(Message):
    """The generation that the node failed to reach, and when it will try again by itself."""

    generation: Generation
    retry_at: datetime


class Poll(Message):
    """``POST /v1/poll``: asks whether there is something to do. It is the heartbeat too."""

    generation: Generation
    """Generation of the plan that the node last completed; 0 before the first."""
    digest: Sha256
    boot_id: Annotated[str, Meta(max_length=64)] = ""
    wait: Annotated[float, Meta(ge=0, le=60)] = 0.0
    """How long control may hold the poll while there is nothing to do; 25 s at most."""
    failed: FailedGeneration | None = None
    inventory: Inventory | None = None
    """Sent when control has asked for it by `Report`."""
    capabilities_digest: Annotated[str, Meta(max_length=64)] = ""
    """Changes with the capabilities and the protocol; control only compares it."""
    capabilities: dict[str, Any] | None = None
    """Sent with `inventory`; as in `Join`."""
    protocol: Number = PROTOCOL


class PlannedChange(Message):
    number: Number
    revision: Number
    name: str
    checksum: Sha256
    sql: str


class PlannedFunction(Message):
    name: Name
    version: Number
    sha256: Sha256
    size: int
    url: str
    """Presigned, or relative to control where the store is private; fresh ones by `GET /v1/artifacts/{sha256}`."""
    manifest: dict[str, Any]
    """As control stores it; a node that doesn't know one of its fields fails the sync and says so."""
    manifest_digest: Sha256


class Plan(Message, tag="plan"):
    """Everything that a node needs to go to its target, in one answer (R 3.3, 4.1)."""

    sync_id: str
    lease: float
    """Seconds until the sync expires unless renewed by a `running` report."""
    generation: Generation
    release_id: str
    release_number: int
    schema_floor: int
    schema_changes: list[PlannedChange] = []
    """To apply, in order: those after the node's schema version, up to the floor."""
    functions: list[PlannedFunction] = []
    """All functions of the release, those that the node has included."""
    remove: list[str] = []
    """Names that the node runs and the release lacks."""


class Report(Message, tag="report"):
    """Control doesn't know one of the digests: poll again, with inventory and capabilities."""


Answer = Plan | Report


class SyncError(Message):
    code: Annotated[str, Meta(max_length=64)]
    message: Text


class SyncUpdate(Message):
    """``PUT /v1/syncs/{id}``."""

    status: Literal["running", "succeeded", "failed"]
    step: Annotated[str, Meta(max_length=64)] = ""
    error: SyncError | None = None
    retry_at: datetime | None = None
    """With `failed`: when the node will try this generation again by itself."""
    inventory: Inventory | None = None
    """With `succeeded` and `failed`: what the node now runs."""


class SyncState(Message):
    status: str
    lease: float
    late: bool = False
    """The sync had ended before: the result was recorded as late."""


class Rotated(Message):
    credential: str


class SqlRun(Message):
    """``POST /v1/nodes/self/sql``: SQL that somebody ran on the node; `rows` is None where nobody knows how many."""

    id: Uuid
    at: datetime
    user: Text
    kind: Literal["read", "write"]
    statement: Annotated[str, Meta(max_length=8000)]
    reason: Text = ""
    rows: int | None = None


def canonical(value: object) -> bytes:
    """JSON with sorted keys and without spaces: equal values give equal bytes."""
    return orjson.dumps(msgspec.to_builtins(value), option=orjson.OPT_SORT_KEYS)


def schema_checksum(sql: str) -> str:
    """sha256 of a schema change's text, as registered."""
    return hashlib.sha256(sql.encode()).hexdigest()


def digest(inventory: Inventory) -> str:
    """sha256 over what a node runs: schema version, checksums of the applied changes, functions."""
    value = [
        inventory.schema_version,
        [[c.number, c.checksum] for c in inventory.schema_changes],
        sorted([f.name, f.version, f.sha256, f.manifest_digest] for f in inventory.functions),
        inventory.database_id,
    ]
    return hashlib.sha256(canonical(value)).hexdigest()


class Problem(Struct, omit_defaults=True):
    """An error as problem+json (RFC 9457); `code` is stable, docs/errors.md has cause and cure of each."""

    code: str
    title: str
    status: int
    detail: str = ""
    field: str = ""
    type: str = "about:blank"
