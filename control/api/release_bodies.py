"""Bodies of requests and answers about releases, which functions, schema changes, groups and nodes share.

Times are RFC 3339 in UTC; missing values are null.
"""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from control.backups.losses import DifferingRows
from control.protocol import wire
from control.protocol.wire import MOST_FUNCTIONS, Body, Name, Number, Sha256, Text
from control.rollouts.policy import Policy
from control.rollouts.rules import State
from control.sync.change_effects import ExpectedStall, LostRows
from control.sync.compatibility import Unfit


class FollowingRelease(Body, frozen=True):
    """A release that brings a new version or schema change to nodes, made in the same transaction: if one of them is
    refused, neither is made."""

    group: Name = "default"
    functions: Annotated[dict[Name, Number], Meta(max_length=MOST_FUNCTIONS)] = field(default_factory=dict)
    """Further versions to set, besides the new one."""
    schema: Annotated[int, Meta(ge=0)] | None = None
    """The floor; if not given, the newest schema change, or the one that the group was lowered to."""
    allow_unfit: bool = False
    """As in `NewRelease`, like all further fields."""
    allow_loss: bool = False
    allow_stall: bool = False
    reason: Text = ""
    rollout: Policy | None = None
    now: bool = False
    rehearsal_only: bool = False


class NewRelease(Body, frozen=True):
    """A release of a group: its newest one, changed by ``functions`` and ``remove``, or an old one again."""

    group: Name = "default"
    functions: Annotated[dict[Name, Number], Meta(max_length=MOST_FUNCTIONS)] = field(default_factory=dict)
    """Versions to set; functions of the newest release that are not named here stay."""
    remove: Annotated[list[Name], Meta(max_length=MOST_FUNCTIONS)] = field(default_factory=list)
    schema: Annotated[int, Meta(ge=0)] | None = None
    """The floor; if not given, the newest schema change, or the one that the group was lowered to."""
    rollback: bool = False
    """Instead of `rollback_to`: go back to the newest earlier release that some node has run and on which none has
    failed."""
    rollback_to: Number | None = None
    """The number of an earlier release of the group, whose functions and floor the new one gets."""
    data: bool = False
    """With a rollback: nodes' data go back too, on each node to where they were before the first of the releases after
    that one. Nodes that can't go back keep theirs, and are named."""
    allow_unfit: bool = False
    """Make it even if nodes of the group can't run it: those refuse it and continue serving their old release."""
    allow_loss: bool = False
    """Make it even if its schema changes can lose rows that nodes have."""
    allow_stall: bool = False
    """Make it even if its schema changes would block a node's writers for longer than the setting `stall_limit`."""
    reason: Text = ""
    rollout: Policy | None = None
    """How it goes out; if not given, as the open rollout that it supersedes, or else as the group's policy says, or,
    without one, at once, after a rehearsal if it raises the group's floor. A rollback to what once was the group's goes
    at once if it isn't given."""
    now: bool = False
    """Send it to all nodes at once, without a rehearsal and steps; the audit log says so."""
    rehearsal_only: bool = False
    """Only rehearse it: its rollout pauses then, and goes on when it is resumed. Refused while another one is open."""
    plan_digest: Sha256 | None = None
    """The digest of a plan that was shown: if the release would differ from it, it isn't made."""


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
    """A grant that differs from before, as in the manifests; null if there is none."""

    name: str
    grant: str
    """The grant: a field of the manifest, as `sql` or `schedule`."""
    from_: Any = field(name="from")
    to: Any


class Changes(Struct):
    """How a release differs from the one before it in its group."""

    add: list[VersionOf]
    change: list[Replaced]
    remove: list[VersionOf]
    schema: list[NumberedChange]
    """The schema changes above the floor of the previous release."""
    grants: list[ChangedGrant]
    """The grants that differ, of functions that are added or changed."""


class ReleaseRollout(Struct):
    """How a release goes out that doesn't go to all nodes at once."""

    state: State
    """Of a release that is only planned: the one in which it would begin."""
    rehearse: bool
    """Whether nodes try it on a copy of their own data first."""
    rehearsal_only: bool
    """Whether it pauses after that."""
    steps: list[str]
    """The steps after that, as the policy has them."""


class Release(Struct):
    id: str | None
    """Null if the release is only planned."""
    group: str
    number: int
    generation: int
    schema_floor: int
    functions: list[ReleaseFunction]
    rollback_to: int | None
    reason: str
    created_by: str
    created_at: datetime
    rollout: ReleaseRollout | None
    """Null for a release that went to all nodes at once."""


class DetailedRelease(Release):
    floor_before: int
    """The floor of the previous release; 0 if there was none."""
    changes: Changes


class PlannedRefusal(Struct):
    """A refusal, as in the problem that would be returned."""

    code: str
    detail: str
    field: str
    """The field of the request that allows it."""


class NodeGoingBack(Struct):
    """A node whose data an undo takes back."""

    id: str
    node: str
    release: int
    """The number of the first release that is undone on it."""
    position: str
    """The state to which it goes, as LINEAGE/TRANSACTION."""
    at: datetime
    """When that was the state of its database. If there was no time to look that up at the store, when the node
    reported the release, just after it."""
    newest_at: datetime | None
    """The last moment of its data that is at the store."""
    newer: float
    """By how many seconds that is newer than the state: what was written in them is gone."""
    tables: list[DifferingRows] | None
    """Tables that have another number of rows there than in the last state at the store; null if that isn't known."""
    tables_unknown: str
    """Why it isn't known."""


class NodeLeft(Struct):
    """A node that an undo leaves as it is."""

    node: str
    release: int | None
    """The number of the first of the releases on it, if that is known."""
    code: str
    why: str


class UndoPlan(Struct):
    """What a rollback does to nodes' data."""

    above: int
    """The number of the release to which the group goes back: nodes go to before the first one after it."""
    back: int
    """How many nodes go back."""
    left: int
    """How many nodes can't go back: they get the release of the rollback, and keep their data and their schema."""
    nodes: list[NodeGoingBack]
    """Nodes that go back, by name; the first thousand."""
    left_nodes: list[NodeLeft]
    """Nodes that can't, by name; the first thousand."""


class UndoCounts(Struct):
    """How far an undo has come: how many nodes' data have gone back, or not."""

    release: int
    """The number of the rollback's release."""
    ordered: int = 0
    """Nodes that haven't told yet."""
    done: int = 0
    failed: int = 0
    """Nodes that tried: they keep their data."""
    cancelled: int = 0
    left: int = 0
    """Nodes that couldn't go back from the beginning."""


class MadeRelease(DetailedRelease):
    held_below: int | None
    """The number of the newest schema change, if the floor stays lower because somebody lowered it."""
    unfit: Unfit
    losses: list[LostRows]
    """What nodes can lose because of its schema changes."""
    stalls: list[ExpectedStall]
    """Which of its schema changes block nodes' writers for more than 0.1 s."""
    undo: UndoPlan | None
    """What it does to nodes' data; null if they stay."""
    plan_digest: wire.Sha256
    """What a request can send as its `plan_digest`, so that exactly this is done, or nothing."""
    refusals: list[PlannedRefusal]
    """Of a plan: why it would be refused as requested."""
