"""Compares a plan's schema changes with those that the libsql file has."""

from typing import Final

from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ChangeRow, ReleaseRow, load

_READ_RELEASE: Final = load("read_release")
_READ_CHANGES: Final = load("read_changes")


def applied(opened: LibsqlDatabase) -> dict[int, tuple[int, str]]:
    """Return revision and checksum of each schema change that the file has."""
    return {number: (revision, checksum) for number, revision, checksum in opened.read(ChangeRow, _READ_CHANGES)}


def to_apply(opened: LibsqlDatabase, plan: wire.Plan, afresh: bool) -> list[wire.PlannedChange]:
    """Return the plan's schema changes that the file lacks. Those that it has must be the same ones.

    (It has them if the answer to an earlier COMMIT was lost.) `afresh` is as in `frames.Apply`.

    Raises: SyncFailed, when the plan doesn't go on from the file.
    """
    release = opened.read(ReleaseRow, _READ_RELEASE)
    if release and not afresh and plan.generation < release[0].generation:
        raise SyncFailed(
            "generation_lower",
            f"The plan is of generation {plan.generation}, and the file is at {release[0].generation} already; was "
            "control's metadata restored from a backup? Then `skerry recover --yes`, and make a new release.",
        )
    has = applied(opened)
    version = start = max(has, default=0)
    lacking = []
    for change in plan.schema_changes:
        label = label_of(change)
        if wire.schema_checksum(change.sql) != change.checksum:
            raise SyncFailed("schema_checksum_mismatch", f"The text of {label} is not what its checksum says.")
        if change.number > plan.schema_floor:
            raise SyncFailed(
                "plan_invalid", f"The plan has {label}, and its release ends at change {plan.schema_floor}."
            )
        if change.number in has:
            revision, checksum = has[change.number]
            # A later revision leads to the same schema: the change was amended after this node had applied it.
            if checksum != change.checksum and change.revision <= revision:
                raise SyncFailed(
                    "schema_history_mismatch",
                    f"The file has another text of {label} than the plan: is it another node's, or was control's "
                    "metadata restored from a backup?",
                )
        elif change.number != version + 1:
            raise SyncFailed(
                "schema_history_mismatch",
                f"The file is at schema version {start}, so the plan must go on with change {version + 1}; it has "
                f"{label}. Has the file been exchanged?",
            )
        else:
            version = change.number
            lacking.append(change)
    if version < plan.schema_floor:
        raise SyncFailed(
            "schema_history_mismatch",
            f"The file would be at schema version {version} after the plan's changes, and the release needs "
            f"{plan.schema_floor}. Has the file been exchanged?",
        )
    return lacking


def label_of(change: wire.PlannedChange) -> str:
    """Return which schema change it is, for people."""
    revision = f", revision {change.revision}" if change.revision > 1 else ""
    return f"schema change {change.number} ({change.name}{revision})"
