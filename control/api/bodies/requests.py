"""Bodies of the operators' requests. Durations are in seconds, sizes in bytes."""

from typing import Annotated

from msgspec import Meta, field

from control.access.rights import Role
from control.protocol.manifest import Manifest
from control.protocol.wire import (
    MOST_FUNCTIONS,
    Body,
    EventKind,
    LabelKey,
    LabelValue,
    Message,
    Name,
    Number,
    Sha256,
    Text,
)

LEGIBLE = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*$(?!\n)"
"""A stranger's line of text, that reads as it is: no controls, nothing invisible or that turns the direction."""


class NewJoinToken(Body, frozen=True):
    group: Name = "default"
    expires_in: Annotated[int, Meta(ge=60, le=30 * 86400)] = 3600
    """Seconds."""
    rejoin: Name | None = None
    """A node whose disk was lost: it joins again, its new disk gets its identity, and its old credentials end."""


class RowCounts(Message):
    """``PUT /v1/nodes/self/row-counts``: about how many rows a node's tables have."""

    counts: Annotated[dict[Text, Annotated[int, Meta(ge=0, le=10_001)]], Meta(max_length=200)]
    """By table, in lower case; 10,001 for more than 10,000."""
    estimates: Annotated[dict[Text, Annotated[int, Meta(ge=0, le=10**12)]], Meta(max_length=200)] = field(
        default_factory=dict
    )
    """Of tables with more than 10,000 rows: how many about, by their keys."""


class MoveNode(Body, frozen=True):
    group: Name
    allow_unfit: bool = False
    """Move it also where it can't run the group's release."""
    allow_loss: bool = False
    """Move it also where the group's schema changes can lose rows that it has."""
    allow_stall: bool = False
    """Move it also where these changes would hold its writers up for more than the setting `stall_limit`."""


class RenameNode(Body, frozen=True):
    name: Name


class LabelNode(Body, frozen=True):
    """What is named in neither stays as it is."""

    set: Annotated[dict[LabelKey, LabelValue], Meta(max_length=100)] = field(default_factory=dict)
    remove: Annotated[list[LabelValue], Meta(max_length=100)] = field(default_factory=list)
    """Keys; one that the node doesn't have is none the less."""


class FollowingRelease(Body, frozen=True):
    """A release that brings a new version or schema change to nodes, made in the same transaction: where one of them is
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


class NewVersion(Body, frozen=True):
    """``POST /v1/functions/{name}/versions``, of bytes that ``PUT /v1/artifacts/{sha256}`` uploaded."""

    sha256: Sha256
    manifest: Manifest = Manifest()
    release: FollowingRelease | None = None
    """The release with the version, for a group; None: no node gets it yet."""


class NewSchemaChange(Body, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    sql: Annotated[str, Meta(min_length=1, max_length=1024 * 1024)]
    number: Number | None = None
    """If given, the change is refused unless this is its number (a guard against two registrations at once)."""
    release: FollowingRelease | None = None
    """The release with the change, for a group; None: no node gets it yet."""


class AmendSchemaChange(Body, frozen=True):
    sql: Annotated[str, Meta(min_length=1, max_length=1024 * 1024)]
    allow_loss: bool = False
    """Amend it also where nodes get the text without another release, and can lose rows by it."""
    allow_stall: bool = False
    """Amend it also where it would hold the writers of such nodes up for more than the setting `stall_limit`."""
    plan_digest: Sha256 | None = None
    """The digest of a plan that was shown: where the amendment would do something else, it is refused."""
    release: FollowingRelease | None = None
    """A release of a group, whose nodes get the new text with it; None: nodes get it when they try again."""


class NewGroup(Body, frozen=True):
    name: Name


class NewRelease(Body, frozen=True):
    """A release of a group: its newest one, changed by ``functions`` and ``remove``, or an old one again."""

    group: Name = "default"
    functions: Annotated[dict[Name, Number], Meta(max_length=MOST_FUNCTIONS)] = field(default_factory=dict)
    """Versions to set; functions of the newest release that are not named here stay."""
    remove: Annotated[list[Name], Meta(max_length=MOST_FUNCTIONS)] = field(default_factory=list)
    schema: Annotated[int, Meta(ge=0)] | None = None
    """The floor; if not given, the newest schema change, or the one that the group was lowered to."""
    rollback: bool = False
    """In place of `rollback_to`: go back to the newest earlier release that some node has run and on which none has
    failed."""
    rollback_to: Number | None = None
    """The number of an earlier release of the group, whose functions and floor the new one gets."""
    allow_unfit: bool = False
    """Make it also where nodes of the group can't run it: those refuse it, and go on serving their old release."""
    allow_loss: bool = False
    """Make it also where its schema changes can lose rows that nodes have."""
    allow_stall: bool = False
    """Make it also where its schema changes would hold writers of a node up for more than the setting `stall_limit`."""
    reason: Text = ""
    plan_digest: Sha256 | None = None
    """The digest of a plan that was shown: where the release would be another one, it isn't made."""


class GivenGrant(Body, frozen=True):
    role: Role
    group: Name | None = None
    """None: for all groups."""
    functions: Annotated[list[Name], Meta(min_length=1, max_length=MOST_FUNCTIONS)] | None = None
    """Only with the role `push`: the functions that it is for; None: for all."""


Grants = Annotated[list[GivenGrant], Meta(min_length=1, max_length=100)]
ExpiresIn = Annotated[int, Meta(ge=60, le=3650 * 86400)]
"""Seconds."""


class NewOperator(Body, frozen=True):
    name: Name
    role: Role | None = None
    """In place of `grants`: the role for all groups and functions."""
    grants: Grants | None = None
    expires_in: ExpiresIn | None = None
    """None: the token doesn't end."""


class ChangeOperator(Body, frozen=True):
    """What is left out stays as it is."""

    grants: Grants | None = None
    expires_in: ExpiresIn | None = None
    endless: bool = False
    """The token doesn't end any more."""


class RotateOperator(Body, frozen=True):
    keep_old: Annotated[int, Meta(ge=0, le=30 * 86400)] = 0
    """Seconds for which the old token, and sessions that began before, stay good."""


class NewWebhook(Body, frozen=True):
    """``POST /v1/webhooks``."""

    name: Name
    url: Annotated[str, Meta(min_length=1, max_length=2000)]
    """``https://…``; to networks that `SKERRY_WEBHOOK_NETWORKS` names also ``http://…``."""
    kinds: Annotated[list[EventKind], Meta(max_length=20)] = field(default_factory=list)
    """The kinds of events that it gets; none: all."""
    secret: Annotated[str, Meta(max_length=200)] | None = None
    """``whsec_`` and 24 to 64 bytes as base64; without it, control makes one."""


class NewLogin(Body, frozen=True):
    machine: Annotated[str, Meta(min_length=1, max_length=100, pattern=LEGIBLE)]
    """The name of the machine that it is for, which whoever allows it is shown."""


class WaitingToken(Body, frozen=True):
    device_code: Annotated[str, Meta(min_length=1, max_length=200)]
