"""What a node must do to reach its target: pure rules over values, without I/O.

A node is at its target when its functions are those of the release and its schema version is at least the release's
floor (R 4.3). No plan lowers a node's schema version: only a restore of the database brings an earlier one back, and
the next plan then has the changes after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from control.protocol import wire
from control.protocol.counts import counted


@dataclass(frozen=True, slots=True)
class Revision:
    """A registered text of a schema change. A node that lacks the change gets its newest revision."""

    number: int
    revision: int
    name: str
    checksum: str
    planned: bool = True
    """Whether a plan has included it, so that a node may have applied it."""


@dataclass(frozen=True, slots=True)
class TargetFunction:
    """A function version that a release includes, and the id of the row of its artifact."""

    name: str
    version: int
    sha256: str
    size: int
    artifact_id: str
    manifest: dict[str, Any]
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class TargetRelease:
    """A release: what the nodes of a group should run. Immutable."""

    id: str
    number: int
    schema_floor: int
    functions: tuple[TargetFunction, ...]
    traceparent: str = ""
    """The span of the request that made it, if traced."""


@dataclass(frozen=True, slots=True)
class Work:
    """The difference between a node's inventory and its target."""

    schema_changes: tuple[Revision, ...]
    """The changes to apply, in order (R 3.3)."""
    functions: tuple[TargetFunction, ...]
    """All functions of the release, also those that the node runs already (R 4.1)."""
    remove: tuple[str, ...]
    """Names of functions that the node runs and the release doesn't have."""


Revisions = Mapping[int, Sequence[Revision]]
"""All revisions of each schema change, oldest first."""


def by_number(revisions: Sequence[Revision]) -> dict[int, list[Revision]]:
    """Group `revisions`, which may be in any order, by their numbers."""
    numbers: dict[int, list[Revision]] = {}
    for revision in sorted(revisions, key=attrgetter("number", "revision")):
        numbers.setdefault(revision.number, []).append(revision)
    return numbers


def inconsistency(inventory: wire.Inventory) -> str:
    """Say in a sentence why no node can have this inventory; return '' if one can."""
    numbers = [change.number for change in inventory.schema_changes]
    # Compare the count first: a version may be any number, and its range may exceed the memory.
    if inventory.schema_version != len(numbers) or numbers != list(range(1, len(numbers) + 1)):
        return f"schema_changes must be numbered 1 to schema_version ({inventory.schema_version}), in order"
    names = [function.name for function in inventory.functions]
    if len(set(names)) != len(names):
        return "functions has a name twice"
    return ""


def history_mismatch(inventory: wire.Inventory, revisions: Revisions) -> str:
    """Say in a sentence how the changes that the node applied differ from the registered ones; return '' if they don't.

    If they differ, the node's database is another fleet's, or control's metadata are an old copy: no plan is right.
    """
    for change in inventory.schema_changes:
        known = revisions.get(change.number)
        if known is None:
            return f"the node has applied schema change {change.number}, which control doesn't have"
        if all(change.checksum != revision.checksum for revision in known):
            return (
                f"the node has applied schema change {change.number} with the checksum {change.checksum[:12]}…, "
                f"which none of its {counted(len(known), 'registered revision')} has"
            )
    return ""


def at_target(inventory: wire.Inventory, release: TargetRelease) -> bool:
    """Return whether the node runs what `release` requires."""
    runs = {(f.name, f.version, f.sha256, f.manifest_digest) for f in inventory.functions}
    wanted = {(f.name, f.version, f.sha256, f.manifest_digest) for f in release.functions}
    return runs == wanted and inventory.schema_version >= release.schema_floor


def work(inventory: wire.Inventory, release: TargetRelease, revisions: Revisions) -> Work:
    """Return what the node must do. Raises: KeyError, when a schema change up to the floor isn't registered."""
    wanted = {function.name for function in release.functions}
    return Work(
        schema_changes=tuple(
            revisions[number][-1] for number in range(inventory.schema_version + 1, release.schema_floor + 1)
        ),
        functions=release.functions,
        remove=tuple(sorted({function.name for function in inventory.functions} - wanted)),
    )
