"""What a node must do to reach its target: rules over values, without I/O.

A node is at target when its functions are the release's and its schema version is at least the floor (R 4.3); a node
never goes back in the schema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control import wire


@dataclass(frozen=True, slots=True)
class Revision:
    """One registered text of a schema change; the newest revision of a number is what a node that lacks it gets."""

    number: int
    revision: int
    name: str
    checksum: str


@dataclass(frozen=True, slots=True)
class TargetFunction:
    """A version that a release includes, with the row of the artifact that holds its bytes."""

    name: str
    version: int
    sha256: str
    size: int
    artifact_id: str
    manifest: dict[str, Any]
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class Release:
    """What the nodes of a group should run; immutable."""

    id: str
    number: int
    schema_floor: int
    functions: tuple[TargetFunction, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What is between a node's inventory and its target."""

    schema_changes: tuple[Revision, ...]
    """To apply, in order (R 3.3)."""
    functions: tuple[TargetFunction, ...]
    """All of the release, those that the node has included (R 4.1)."""
    remove: tuple[str, ...]


Revisions = Mapping[int, Sequence[Revision]]
"""All revisions of each schema change, oldest first."""


def by_number(revisions: Sequence[Revision]) -> dict[int, list[Revision]]:
    """`revisions` as `Revisions`, whatever their order."""
    numbers: dict[int, list[Revision]] = {}
    for revision in sorted(revisions, key=lambda r: (r.number, r.revision)):
        numbers.setdefault(revision.number, []).append(revision)
    return numbers


def inconsistency(inventory: wire.Inventory) -> str:
    """Why `inventory` can't be true of any node, as a sentence; '' when it can."""
    numbers = [change.number for change in inventory.schema_changes]
    # The count first: a version may be any number, and a range of it more than there is memory for.
    if inventory.schema_version != len(numbers) or numbers != list(range(1, len(numbers) + 1)):
        return f"schema_changes must be numbered 1 to schema_version ({inventory.schema_version}), in order"
    names = [function.name for function in inventory.functions]
    if len(set(names)) != len(names):
        return "functions has a name twice"
    return ""


def history_mismatch(inventory: wire.Inventory, revisions: Revisions) -> str:
    """How the changes that the node applied differ from the registered ones, as a sentence; '' when they don't.

    Such a node's database is of another fleet, or control's metadata is an old copy: no plan can be right.
    """
    for change in inventory.schema_changes:
        known = revisions.get(change.number)
        if known is None:
            return f"the node has applied schema change {change.number}, which control doesn't have"
        if all(change.checksum != revision.checksum for revision in known):
            return (
                f"the node has applied schema change {change.number} with the checksum {change.checksum[:12]}…, "
                f"which none of its {len(known)} registered revisions has"
            )
    return ""


def at_target(inventory: wire.Inventory, release: Release) -> bool:
    """Is what the node runs what `release` wants?"""
    runs = {(f.name, f.version, f.sha256, f.manifest_digest) for f in inventory.functions}
    wanted = {(f.name, f.version, f.sha256, f.manifest_digest) for f in release.functions}
    return runs == wanted and inventory.schema_version >= release.schema_floor


def work(inventory: wire.Inventory, release: Release, revisions: Revisions) -> Work:
    """What the node must do; raises `KeyError` when a schema change up to the floor isn't registered."""
    wanted = {function.name for function in release.functions}
    return Work(
        schema_changes=tuple(
            revisions[number][-1] for number in range(inventory.schema_version + 1, release.schema_floor + 1)
        ),
        functions=release.functions,
        remove=tuple(sorted({function.name for function in inventory.functions} - wanted)),
    )
