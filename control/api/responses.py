"""Bodies of the operators' API's answers. Times are RFC 3339 in UTC; a value that is missing is null."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from control import wire
from control.sync.applied_revisions import NodesOfRevision, OlderRevision
from control.sync.compatibility import Unfit
from control.sync.losses import LostRows
from control.sync.stalls import ExpectedStall

T = TypeVar("T")


class Page(Struct, Generic[T]):
    """A page of a list; `next` is the cursor of the next page, or null."""

    items: list[T]
    next: str | None = None


class Artifact(Struct):
    sha256: wire.Sha256
    size: int
    abi: str


class Function(Struct):
    name: str
    last_version: int
    """The number of the newest version, which may have been deleted."""
    created_at: datetime
    versions: int


class Version(Struct):
    """A version of a function (R 2.2, 2.3)."""

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
    planned_at: datetime | None
    """When a plan first contained this revision, so that nodes may have applied it; null: never."""
    withdrawn: bool
    """It does nothing: the revision before it was withdrawn."""
    losses: list[dict[str, str]] | None
    """What nodes can lose by it: `statement`, `table` and `message` of each; null: it wasn't looked for."""
    stalls: list[dict[str, Any]] | None
    """What holds writers up on large tables: `statement`, `table`, `message` and `us` (microseconds for each row) of
    each; null: it wasn't looked for."""


class ListedSchemaChange(SchemaChange):
    nodes: list[NodesOfRevision]
    """How many nodes have applied which revision, by what they last reported; the oldest revision first."""


class CheckWarning(Struct):
    statement: str
    message: str


class MadeSchemaChange(SchemaChange):
    warnings: list[CheckWarning]
    """What may fail on a node: statements, depending on the rows of its tables; views and triggers after it."""


class Unreversed(Struct):
    """A statement that can't be reversed."""

    statement: str
    message: str
    """Why."""


class ReversalDraft(Struct):
    """A draft of the schema change that reverses another one; nothing is registered."""

    number: int
    name: str
    """What the draft may be called."""
    sql: str
    """Empty where nothing can be reversed."""
    kept: list[Unreversed]


class SchemaChangeHistory(ListedSchemaChange):
    revisions: list[SchemaChange] = field(default_factory=list)
    """The newest ten revisions, the oldest of them first."""


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
    """A grant that differs from before, as the manifests have it; null where there is none."""

    name: str
    grant: str
    """The grant: `route`, `sql`, `http`, `secrets` or `config`."""
    from_: Any = field(name="from")
    to: Any


class Changes(Struct):
    """How a release differs from the one before it in its group."""

    add: list[VersionOf]
    change: list[Replaced]
    remove: list[VersionOf]
    schema: list[NumberedChange]
    """The schema changes above the floor of the release before."""
    grants: list[ChangedGrant]
    """The grants that differ, of functions that are added or changed."""


class Release(Struct):
    id: str | None
    """Null where the release is only planned."""
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
    floor_before: int
    """The floor of the release before; 0 where there was none."""
    changes: Changes
    unfit: Unfit
    losses: list[LostRows]
    """What nodes can lose by its schema changes."""
    stalls: list[ExpectedStall]
    """What of its schema changes holds writers of nodes up for more than 0.1 s."""


class VersionPlan(Struct):
    """What a push would make."""

    version: Version
    release: MadeRelease | None
    """The release of the group that was asked for; null where none was."""


class SchemaChangePlan(Struct):
    """What a new schema change, or an amendment, would be."""

    change: MadeSchemaChange
    release: MadeRelease | None
    """The release of the group that was asked for; null where none was."""


class DeletionPlan(Struct):
    """What a deletion would do."""

    versions: list[int]
    releases: list[MadeRelease]
    """The releases without it that groups would get."""


class MovePlan(Struct):
    """What the move of a node would change for it."""

    node: str
    group: str
    changes: Changes
    unfit: Unfit
    """The node, where it can't run the group's release."""
    losses: list[LostRows]


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
    generation: int
    """The generation of the last target that it was confirmed at."""
    target_generation: int
    at_target: bool
    schema_version: int
    target_schema: int
    functions: list[ReleaseFunction]
    failures: int
    """How many syncs have failed so far (R 5.3)."""
    syncs_folded: int
    """How many attempts so far have no line of their own in the log of syncs."""
    error: NodeError | None
    retry_at: datetime | None
    warnings: list[Warning]
    sync: OpenSync | None


class NodeCredential(Struct):
    """A node's credential, without its secret."""

    created_at: datetime
    ends_at: datetime
    """From then on it is good only to get its successor, which the node does by itself."""
    return_until: datetime
    """From then on it is good for nothing: the node must join again."""


class DetailedNode(Node):
    credential: NodeCredential | None
    """The credential that it uses; null where all are revoked."""
    capabilities: dict[str, Any]
    """What it can run, as it has sent it."""
    protocol: int
    older_revisions: list[OlderRevision]
    """The schema changes that it has applied in another revision than the newest."""


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


class AuthFailure(Struct):
    """Refused authentications of one minute, address and reason (R 7.4)."""

    minute: datetime
    address: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime


class HeldGrant(Struct):
    role: str
    group: str | None
    """Null: for all groups."""
    functions: list[str] | None
    """The functions that the role `push` is for; null: for all."""


class Operator(Struct):
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    """When the token ends; null: it doesn't."""
    created_at: datetime


class MadeOperator(Struct):
    id: str
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    token: str
    """The token's text, which is answered only once."""


class Health(Struct, omit_defaults=True):
    status: str
    notes: list[str] = field(default_factory=list)
    """What an operator should know, although control serves."""


class ArtifactStore(Struct):
    """The bucket of artifacts: which control owns it, and whether artifacts are deleted from it."""

    bucket: str
    owner: str | None
    """The id of this control, which the bucket's mark has; null until it has a bucket."""
    counter: int
    """The number of the metadata's last step that made an artifact needed."""
    state: str
    """`owned`, or the code of the problem that keeps this replica from using the bucket."""
    problem: str | None
    deletions: str
    """Whether artifacts are deleted: `on` or `held`."""
    held_since: datetime | None
    held_reason: str | None
    sweep_problem: str | None
    """Why the last sweep failed, or null."""
    unknown_objects: int
    """Objects that no row knows; each is deleted after SKERRY_UNKNOWN_OBJECTS_KEPT seconds."""
    keeps_versions: bool
    """Whether the bucket keeps old versions of deleted objects, so that deletions free no space."""
