"""Checks a plan of control before a node follows it: its generation, its manifests, room on the disk. Pure."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from control.protocol import cron, wire
from control.protocol.manifest import Manifest
from edge_runtime.disk_space import DISK_RESERVE, fits
from edge_runtime.errors import SyncFailed

AOT_GROWTH = 6
"""An AOT file is at most about this many times as large as its artifact."""


def check_plan(plan: wire.Plan, generation: int) -> dict[str, Manifest]:
    """Return the manifests of the plan's functions by name.

    Raises: SyncFailed, when a node at `generation` must not follow the plan.
    """
    if plan.generation < generation:
        raise SyncFailed(
            "generation_lower",
            f"control planned generation {plan.generation}, but this node has already completed {generation}; "
            "was control's metadata restored from a backup? Then `skerry recover --yes`, and make a new release",
        )
    manifests: dict[str, Manifest] = {}
    for function in plan.functions:
        if function.name in manifests:
            raise SyncFailed("plan_invalid", f"the plan has function {function.name} twice; report this as a defect")
        manifest = manifests[function.name] = parse_manifest(function.name, function.manifest)
        check_schedule(function.name, manifest)
    return manifests


def parse_manifest(name: str, manifest: Mapping[str, Any]) -> Manifest:
    """Return the manifest of a function.

    Raises: SyncFailed, when it has a field that this node doesn't know: a limit or a grant would be lost.
    """
    try:
        return msgspec.convert(manifest, Manifest)
    except msgspec.ValidationError as error:
        raise _not_understood(name, error) from None


def check_schedule(name: str, manifest: Manifest) -> None:
    """Check the schedule of a function. Raises: SyncFailed, when this node can't tell its times."""
    try:
        for line in manifest.schedule:
            cron.check(line)
        cron.zone(manifest.timezone)
    except cron.CronUnfit as error:
        raise _not_understood(name, error) from None


def _not_understood(name: str, error: Exception) -> SyncFailed:
    return SyncFailed(
        "manifest_unknown",
        f"the manifest of function {name} is not one that this node understands ({error}); "
        "upgrade the node's edge runtime, or release a version of the function without that field",
    )


def space_needed(functions: Collection[wire.PlannedFunction], present: Mapping[str, int]) -> int:
    """Return the bytes that a plan will take on disk; `present`: existing bytes of each artifact, by sha256."""
    missing = {f.sha256: f.size for f in functions if present.get(f.sha256, 0) < f.size}
    return sum(size * (1 + AOT_GROWTH) - present.get(sha256, 0) for sha256, size in missing.items())


def check_space(needed: int, free: int, where: str) -> None:
    """Refuse to download what can't be stored. Raises: SyncFailed, when `needed` and a reserve exceed `free` bytes."""
    if not fits(needed, free):
        raise SyncFailed(
            "disk_full",
            f"the release needs {_mib(needed)} MiB and a reserve of {_mib(DISK_RESERVE)} MiB, but {where} has only "
            f"{_mib(free)} MiB free; free some space, then `skerry node retry` or wait for the next attempt",
        )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f}"
