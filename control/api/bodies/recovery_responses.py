"""Bodies of answers about data that was lost or is old."""

from datetime import datetime

from msgspec import Struct, field

from control.protocol import wire


class ArtifactFault(Struct):
    """An artifact whose object isn't what the metadata say."""

    sha256: wire.Sha256
    size: int
    """Bytes that the object must have."""
    fault: str
    """`missing`, `wrong_size` or `wrong_bytes`."""
    versions: list[str]
    """Versions that are made of it, as NAME@VERSION; ten at most."""


class StoreCheck(Struct):
    """A page of the comparison of artifacts with the bucket."""

    looked: int = 0
    """Artifacts of this page."""
    looked_size: int = 0
    """Their bytes."""
    faults: list[ArtifactFault] = field(default_factory=list)
    next: str | None = None
    """`after` of the next page, or null."""
    artifacts: int | None = None
    """On the first page, how many there are."""
    size: int | None = None
    """On the first page, the bytes of all."""


class StoreTrial(Struct):
    """Whether a small object could be stored, read and deleted."""

    code: str | None
    """Of the problem; null where it went well."""
    problem: str | None


class BucketObject(Struct):
    """An object of the bucket that no row of the metadata knows."""

    key: str
    size: int
    modified: datetime


class UnknownObjects(Struct):
    """A page of the bucket."""

    unknown: list[BucketObject]
    looked: int
    """Objects of this page, but control's own."""
    next: str | None
    """`after` of the next page, or null."""


class GroupAhead(Struct):
    """A group with nodes that completed a generation above the counter's."""

    name: str
    nodes: int
    generation: int
    """The highest that one of them completed."""


class NodeGeneration(Struct):
    name: str
    generation: int
    """What it says that it completed."""


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
    """Whether it was made after the backup: no version of this number was made, as far as the metadata know. If not, it
    was deleted, or another one has the number."""


class LaterVersion(Struct):
    """A function of which nodes run a later version than the last that the metadata know to be made."""

    name: str
    known: int
    version: int
    """The latest one that nodes run; the next version that is made gets a number above it."""


class UnknownChange(Struct):
    """A schema change that nodes have applied, and that the metadata don't have with this text."""

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
    """What the metadata lack of what nodes run, and what recovering changes."""

    restored_at: datetime | None
    """When control noticed that the metadata were restored; null where it didn't, or recovery was done since."""
    generation: int
    """The counter of generations."""
    jump_to: int | None
    """What recovering sets it to, so that the next release is above what nodes completed; null: it stays."""
    ahead: list[GroupAhead]
    not_believed: list[NodeGeneration]
    """Nodes whose generation is too far above the counter to be believed; ten at most."""
    later_versions: list[LaterVersion]
    unknown_versions: list[UnknownVersion]
    """200 at most."""
    unknown_changes: list[UnknownChange]
    """By number."""
    behind: list[GroupBehind]
    nodes: int
    unheard: int
    """How many of them weren't heard of since `restored_at`, or in the last minute: what they run isn't known."""
    refused: list[RefusedAddress]
    """Since `restored_at`, or in the last hour; 50 at most."""
