"""Probes of released functions that can be run at control: those without HTTP and secrets.

They are run after a schema change that is to be registered. Their cost is bounded: the number of probes, the bytes of
their artifacts, and the time (`edge_runtime.oneshot.check_probes`).
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from control.edge_check import OperatorChecks
from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import queries
from control.storage.database import Database
from control.storage.object_store import Store, object_key

MOST = 20
"""Maximum probes that are run for one change."""
BYTES = 16 * 1024 * 1024
"""Maximum total bytes of their artifacts."""


class ProbedVersion(NamedTuple):
    """A version of a function in a group's release, whose manifest has a probe."""

    name: str
    version: int
    sha256: str
    size: int
    artifact_id: str
    manifest: dict[str, Any]


PROBED = queries.load("releases").rows("probed", ProbedVersion)


async def check(
    db: Database,
    store: Store,
    checks: OperatorChecks,
    earlier: list[tuple[int, str]],
    sql: str,
    amends: tuple[int, str] | None = None,
) -> list[dict[str, str]]:
    """Run the probes after a schema change, as `OperatorChecks.schema` takes it; return warnings."""
    found = [row for row in await db.read(lambda conn: conn.fetch(PROBED)) if _alone(row.manifest)]
    chosen: list[ProbedVersion] = []
    size = 0
    for row in found:
        if len(chosen) < MOST and size + row.size <= BYTES:
            chosen.append(row)
            size += row.size
    warnings: list[dict[str, str]] = []
    if chosen:
        try:
            with tempfile.TemporaryDirectory(prefix="skerry-probes-") as folder:
                asked = [await _fetched(store, row, Path(folder)) for row in chosen]
                warnings = await checks.probes(earlier, sql, amends, asked)
        except (ProblemError, OSError) as error:
            why = f"{error.detail} [{error.code}]" if isinstance(error, ProblemError) else str(error)
            return [_warning(f"the probes of functions couldn't be run after it: {why}")]
    if left := len(found) - len(chosen):
        warnings.append(_warning(f"not run after it: {left} of {counted(len(found), 'probe')}: too many, or too large"))
    return warnings


def _alone(manifest: dict[str, Any]) -> bool:
    return manifest.get("http") is None and not manifest.get("secrets")


async def _fetched(store: Store, row: ProbedVersion, folder: Path) -> dict[str, Any]:
    file = folder / f"{row.sha256}.wasm"
    _, pieces = await store.open(object_key(row.sha256, row.artifact_id))
    data = b"".join([piece async for piece in pieces])
    await asyncio.to_thread(file.write_bytes, data)
    return {"name": row.name, "version": row.version, "manifest": row.manifest, "file": str(file)}


def _warning(message: str) -> dict[str, str]:
    return {"statement": "", "message": message}
