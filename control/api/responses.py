"""What the operators' API answers. Times are RFC 3339 in UTC; what isn't there is null."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from control import wire
from control.sync.compatibility import Unfit

T = TypeVar("T")


class Page(Struct, Generic[T]):
    """A part of a list; `next` is the cursor of the part after it."""

    items: list[T]
    next: str | None = None


class Artifact(Struct):
    sha256: wire.Sha256
    size: int
    abi: str


class Function(Struct):
    name: str
    last_version: int
    """Also counts versions that were deleted."""
    created_at: datetime
    versions: int


class Version(Struct):
    """R 2.2, 2.3."""

    name: str
    version: int
    sha256: wire.Sha256
    size: int
    manifest: wire.Manifest
    created_by: str
    created_at: datetime


class SchemaChange(Struct):
    """The newest revision of a schema change (R 3.1, 3.2)."""

    number: int
    revision: int
    name: str
    sql: str
    checksum: wire.Sha256
    created_by: str
    created_at: datetime


class CheckWarning(Struct):
    statement: str
    message: str


class MadeSchemaChange(SchemaChange):
    warnings: list[CheckWarning]
    """Where the change would fail on a node, depending on what is in its tables."""


class SchemaChangeHistory(SchemaChange):
    revisions: list[SchemaChange] = field(default_factory=list)
    """The newest ten, the oldest of them first."""


class VersionOf(Struct):
    name: str
    version: int


class ReleaseFunction(VersionOf):
    sha256: wire.Sha256


class Replaced(Struct):
    name: str
    from_: int = field(name="from")
    to: int


class NumberedChange(Struct):
    number: int
    name: str


class ChangedGrant(Struct):
    """What a function may do otherwise than before, as its manifests have it; null where it has none."""

    name: str
    grant: str
    """`route`, `sql`, `http`, `secrets` or `config`."""
    from_: Any = field(name="from")
    to: Any


class Changes(Struct):
    """How a release differs from its group's release before it."""

    add: list[VersionOf]
    change: list[Replaced]
    remove: list[VersionOf]
    schema: list[NumberedChange]
    """Above the floor of the release before."""
    grants: list[ChangedGrant]
    """Of the functions that are added or changed."""


class Release(Struct):
    id: str | None
    """Null in a dry run."""
    group: str
    number: int
    generation: int
    schema_floor: int
    functions: list[ReleaseFunction]
    rollback_to: int | None
    reason: str
    created_by: str
    created_at: datetime


class MadeRelease(Release):
    changes: Changes
    unfit: Unfit


class GroupRelease(Struct):
    number: int
    generation: int
    schema_floor: int
    functions: list[ReleaseFunction]


class Group(Struct):
    name: str
    generation: int
    release: GroupRelease | None
    nodes: int


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
    """A node: what it runs, what it should run, how it is (R 1.4, 5.4)."""

    id: str
    name: str
    group: str
    labels: dict[str, str]
    state: str
    state_since: datetime
    joined_at: datetime
    last_seen_at: datetime | None
    last_sync_at: datetime | None
    generation: int
    """The last one that it was confirmed at."""
    target_generation: int
    at_target: bool
    schema_version: int
    target_schema: int
    functions: list[ReleaseFunction]
    failures: int
    """So far (R 5.3)."""
    syncs_folded: int
    """Attempts so far that have no line of their own in the log of syncs."""
    error: NodeError | None
    retry_at: datetime | None
    warnings: list[Warning]
    sync: OpenSync | None


class DetailedNode(Node):
    capabilities: dict[str, Any]
    """What it has told of what it can run, as it has told it."""
    protocol: int


class MadeJoinToken(Struct):
    id: str
    token: str
    """Shown this once."""
    group: str
    expires_at: datetime


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
    """The result that came after the end, if one did."""
    folded: int
    """Attempts of the node at this generation that this line stands for too: a node gets so many lines an hour."""


class AuditEntry(Struct):
    at: datetime
    operator: str
    action: str
    subject: str
    details: dict[str, Any]


class AuthFailure(Struct):
    """Refused authentications of one minute (R 7.4)."""

    minute: datetime
    address: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime


class Operator(Struct):
    name: str
    role: str
    created_at: datetime


class MadeOperator(Struct):
    id: str
    name: str
    role: str
    token: str
    """Shown this once."""


class Health(Struct, omit_defaults=True):
    status: str
    notes: list[str] = field(default_factory=list)
    """What an operator should know of, though control serves."""


class ArtifactStore(Struct):
    """The bucket of artifacts: whose it is, and whether anything is deleted from it."""

    bucket: str
    owner: str | None
    """The id of this control, as the bucket has it; null until it has a bucket."""
    counter: int
    """Steps of the metadata that the bucket is brought up to."""
    state: str
    """`owned`, or the code of the problem that keeps this replica from using the bucket."""
    problem: str | None
    deletions: str
    """`on` or `held`."""
    held_since: datetime | None
    held_reason: str | None
    sweep_problem: str | None
    """Why the last sweep failed."""
    unknown_objects: int
    """Objects that no row knows; each goes when it was that for SKERRY_UNKNOWN_OBJECTS_KEPT."""
    keeps_versions: bool
    """The bucket keeps what is deleted from it, so a deletion frees nothing."""
