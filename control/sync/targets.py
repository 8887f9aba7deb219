"""Releases as plans need them, cached: a release is immutable, so a replica reads it once."""

from collections.abc import Collection
from typing import Any, NamedTuple

from control.storage import queries
from control.storage.connection import Connection
from control.sync import plan


class ReleaseFunctionRow(NamedTuple):
    """A function of a release: the columns of `ReleaseHead`, then those of `plan.TargetFunction`."""

    id: str
    number: int
    schema_floor: int
    traceparent: str
    name: str
    version: int
    sha256: str
    size: int
    artifact_id: str
    manifest: dict[str, Any]
    manifest_digest: str


class ReleaseHead(NamedTuple):
    """A release without its functions."""

    id: str
    number: int
    schema_floor: int
    traceparent: str


SQL = queries.load("poll")
RELEASES = SQL.rows("releases", ReleaseHead)
RELEASE_FUNCTIONS = SQL.rows("release_functions", ReleaseFunctionRow)

KEPT = 256
"""Releases in memory."""


class Targets:
    """The releases that this replica has read."""

    def __init__(self) -> None:
        self._releases: dict[str, plan.TargetRelease] = {}

    async def releases(self, conn: Connection, ids: Collection[str]) -> dict[str, plan.TargetRelease]:
        """The releases of these ids, those that exist, by id."""
        # What is known is taken before the first wait, since another transaction may clear the cache meanwhile.
        found = {id: self._releases[id] for id in ids if id in self._releases}
        unknown = [id for id in ids if id not in found]
        if unknown:
            functions: dict[str, list[plan.TargetFunction]] = {}
            heads: dict[str, ReleaseHead] = {}
            for row in await conn.fetch(RELEASE_FUNCTIONS, unknown):
                heads[row.id] = ReleaseHead(*row[:4])
                functions.setdefault(row.id, []).append(plan.TargetFunction(*row[4:]))
            # A release without functions has none to come with.
            alone = [id for id in unknown if id not in heads]
            for head in (*heads.values(), *(await conn.fetch(RELEASES, alone) if alone else ())):
                own = tuple(functions.get(head.id, ()))
                found[head.id] = plan.TargetRelease(head.id, head.number, head.schema_floor, own, head.traceparent)
            if len(self._releases.keys() | found.keys()) > KEPT:
                self._releases.clear()
            self._releases.update(found)
        return found
