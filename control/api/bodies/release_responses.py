"""Bodies of answers about functions, schema changes, releases and groups.

Times are RFC 3339 in UTC; a value that is missing is null.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct, field

from control.protocol import wire
from control.protocol.manifest import Manifest
from control.sync.applied_revisions import NodesOfRevision
from control.sync.compatibility import Unfit
from control.sync.effects.change_effects import ChangeEffects
from control.sync.effects.losses import LostRows
from control.sync.effects.stalls import ExpectedStall


class Function(Struct):
    name: str
    last_version: int
    """The number of the newest version, which may have been deleted."""
    created_at: datetime
    versions: int
    groups: int = 0
    """How many groups' newest releases have it, of those groups that the operator who asks may see."""


class FunctionTarget(Struct):
    """A group whose newest release has a function."""

    group: str
    release: int
    version: int


class DetailedFunction(Function):
    targets: list[FunctionTarget] = field(default_factory=list)
    """The first 100 of these groups, by name."""


class Version(Struct):
    """A version of a function (R 2.2, 2.3)."""

    name: str
    version: int
    sha256: wire.Sha256
    size: int
    manifest: Manifest
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


class DetailedRelease(Release):
    floor_before: int
    """The floor of the release before; 0 where there was none."""
    changes: Changes


class ShownRelease(DetailedRelease):
    rolls_back_to: int | None
    """The number of the release that a rollback goes to; null where this isn't the group's newest, or there is none."""


class PlannedRefusal(Struct):
    """A refusal, as the problem that would be answered has it."""

    code: str
    detail: str
    field: str
    """The field of the request that allows it."""


class MadeRelease(DetailedRelease):
    held_below: int | None
    """The number of the newest schema change, where the floor stays lower because somebody has lowered it."""
    unfit: Unfit
    losses: list[LostRows]
    """What nodes can lose by its schema changes."""
    stalls: list[ExpectedStall]
    """What of its schema changes holds writers of nodes up for more than 0.1 s."""
    plan_digest: wire.Sha256
    """What a request can send as its `plan_digest`, to have this done or nothing."""
    refusals: list[PlannedRefusal]
    """Of a plan: what it would be refused for, as it was asked for."""


class PushedVersion(Version, omit_defaults=True):
    release: MadeRelease | None = None
    """The release that was asked for with it; not there where none was."""


class RegisteredSchemaChange(MadeSchemaChange, omit_defaults=True):
    release: MadeRelease | None = None
    """The release that was asked for with it; not there where none was."""


class ReleaseRetry(Struct):
    nodes: int
    """How many failing nodes try again with their next poll."""


class VersionPlan(Struct):
    """What a push would make."""

    version: Version
    release: MadeRelease | None
    """The release of the group that was asked for; null where none was."""


class SchemaChangePlan(ChangeEffects):
    """What a new schema change, or an amendment, would be, and what it can do to nodes whose release has it already."""

    change: MadeSchemaChange
    release: MadeRelease | None
    """The release of the group that was asked for; null where none was."""
    plan_digest: wire.Sha256
    """What an amendment can send as its `plan_digest`, to have this done or nothing."""


class DeletionPlan(Struct):
    """What a deletion would do."""

    versions: list[int]
    releases: list[MadeRelease]
    """The releases without it that groups would get."""


class MovePlan(ChangeEffects):
    """What the move of a node would change for it."""

    node: str
    group: str
    changes: Changes
    unfit: Unfit
    """The node, where it can't run the group's release."""


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
