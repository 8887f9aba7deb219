"""Drills: a history of a node's database is restored at control's side, and tried.

What comes out must be whole (pages, foreign keys, its own record of its schema), have the schema that its changes make,
and answer the probes of its release. A state that was proven so becomes a snapshot where one is due: so a snapshot is
never made of files that can't be restored, and a chain is read once for both.
"""

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from control.backups.builder import Builder, BuiltDatabase
from control.backups.merging import Merger
from control.clock import Clock
from control.edge_check import Checks
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.storage.object_store import Store, object_key
from control.sync import plan
from control.sync.probed_functions import ProbedVersion
from control.sync.reconciler import REVISIONS

SNAPSHOT_EVERY_MS: Final = 24 * 3_600_000
"""Milliseconds after which a snapshot is made of what was proven."""
MOST_PROBES: Final = 20
"""Probes that are run in one drill."""
PROBE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of their artifacts together."""
PASSING: Final = frozenset(
    {"store_unavailable", "store_refused", "bucket_missing", "store_not_owned", "deletions_held"}
)
"""Codes of problems, beside those of the metadata database, that all histories have at once and none has caused."""
UNTRIED: Final = "not tried: "
"""How the error of a drill begins that says nothing of the backup."""
ERROR: Final = 500
"""Characters of an error that are kept."""
CALLER: Final = "control:backups"
"""Whose checks a drill's are, among operators'."""


class HistoryToDrill(NamedTuple):
    """A history that goes on."""

    node_id: str
    lineage: str


class DrilledChange(NamedTuple):
    """A revision of a schema change that a database may record."""

    number: int
    checksum: str
    sql: str


SQL = queries.load("backups")
OPEN_HISTORY = SQL.optional("open_history", str)
PROBED = SQL.rows("probed", ProbedVersion)
CHANGES = SQL.rows("changes", DrilledChange)

log = logging.getLogger("skerry.backups")


def passes(problem: ProblemError) -> bool:
    """Return whether a problem is no history's own, so that the same may work later."""
    return problem.code in PASSING or problem.code.startswith("database_")


@dataclass(frozen=True)
class Drilled:
    """What a drill has found."""

    lineage: str
    transaction: int
    """The last transaction that was restored; 0 if none was."""
    at: datetime | None
    """When that was the state of the node's database."""
    size: int
    """Bytes of the restored database."""
    read: int
    """Bytes that were read from the store."""
    release: int
    """The number of the release that it has; 0 without one."""
    probes: int
    """The probes that have passed."""
    findings: list[str] = field(default_factory=list)
    """What is wrong, one sentence each; empty if it is proven."""
    untried: list[str] = field(default_factory=list)
    """What couldn't be tried."""
    snapshot: bool = False
    """Whether a snapshot was made of it."""


class Drills:
    """Restores histories and tries them, one at a time in this replica."""

    def __init__(
        self, db: Database, store: Store, builder: Builder, merger: Merger, checks: Checks, clock: Clock, folder: Path
    ) -> None:
        self._db = db
        self._store = store
        self._builder = builder
        self._merger = merger
        self._checks = checks
        self._clock = clock
        self._folder = folder
        self._turn = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Return whether a drill is running in this replica."""
        return self._turn.locked()

    async def history(self, node_id: str) -> HistoryToDrill:
        """Return the history of a node that goes on. Raises: ProblemError backup_off, when there is none."""
        lineage = await self._db.read(lambda conn: conn.fetchval(OPEN_HISTORY, node_id))
        if lineage is None:
            raise ProblemError("backup_off", "the store has no backup of this node's database")
        return HistoryToDrill(node_id, lineage)

    async def drill(self, history: HistoryToDrill) -> Drilled:
        """Restore a history's latest state, try it, and keep what came of it.

        Raises: ProblemError, when it couldn't be tried because of something else than the backup: the store, the
        metadata database, or control's disk. That is kept, too, unless it passes by itself.
        """
        async with self._turn:
            try:
                drilled = await self._drill(history)
            except ProblemError as problem:
                if problem.code in ("backup_incomplete", "backup_damaged"):
                    drilled = Drilled(history.lineage, 0, None, 0, 0, 0, 0, [problem.detail])
                else:
                    if not passes(problem):
                        await self._keep(history, 0, f"{UNTRIED}{problem.detail} [{problem.code}]")
                    raise
            await self._keep(history, 0 if drilled.findings else drilled.transaction, " ".join(drilled.findings))
        if drilled.findings:
            found = "; ".join(drilled.findings)
            log.error("the backup of node %s (history %s) can't be proven: %s", *history, found)
        return drilled

    async def _keep(self, history: HistoryToDrill, proven: int, error: str) -> None:
        error = error if len(error) <= ERROR else f"{error[: ERROR - 1]}…"
        now = self._clock.now()
        await self._db.transaction(lambda conn: conn.execute(SQL["keep_drill"], *history, now, proven, error))

    async def _drill(self, history: HistoryToDrill) -> Drilled:
        async with self._builder.built(*history) as built:
            try:
                stored = msgspec.convert(built.stored, _Stored)
                at = datetime.fromtimestamp(built.at_ms / 1000, UTC)
            except (msgspec.ValidationError, ValueError, OverflowError) as error:
                raise ProblemError("backup_damaged", f"what it records of its release can't be read: {error}") from None
            findings, untried, probes = list(built.findings), list[str](), 0
            if not findings:
                more, untried, probes = await self._try(built, stored)
                findings += more
            snapshot = not findings and await self._make_snapshot(history, built)
            release = 0 if stored.release is None else stored.release.number
            return Drilled(
                lineage=history.lineage,
                transaction=built.transaction,
                at=at,
                size=built.size,
                read=built.read,
                release=release,
                probes=probes,
                findings=findings,
                untried=untried,
                snapshot=snapshot,
            )

    async def _try(self, built: BuiltDatabase, stored: "_Stored") -> tuple[list[str], list[str], int]:
        """Compare the schema and run the probes: findings, what wasn't tried, and how many probes have passed."""
        inventory = stored.inventory
        release = stored.release.functions if stored.release is not None else []
        names = [each.name for each in release]
        numbers = [str(each.version) for each in release]

        async def read(conn: Connection) -> tuple[str, list[DrilledChange], list[ProbedVersion]]:
            mismatch = plan.history_mismatch(inventory, plan.by_number(await conn.fetch(REVISIONS)))
            wanted = [str(change.number) for change in inventory.schema_changes]
            return mismatch, await conn.fetch(CHANGES, wanted), await conn.fetch(PROBED, names, numbers)

        mismatch, texts, versions = await self._db.read(read)
        if mismatch:
            return [f"Its schema is another one: {mismatch}."], [], 0
        by_checksum = {(text.number, text.checksum): text.sql for text in texts}
        changes = [
            {"number": change.number, "sql": by_checksum[change.number, change.checksum]}
            for change in inventory.schema_changes
            if not stored.unfinished
        ]
        chosen, untried = _chosen(versions)
        with tempfile.TemporaryDirectory(prefix="skerry-probes-", dir=self._folder) as folder:
            probes = [await self._fetched(version, Path(folder)) for version in chosen]
            asked = {"database": str(built.path), "changes": changes, "probes": probes}
            await self._checks.engines([Path(each["file"]) for each in probes])
            found = await self._checks.run(CALLER, ["restored"], orjson.dumps(asked), "check_unavailable")
        findings = [f"{text[0].upper()}{text[1:]}" for text in found["findings"]]
        untried += found["untried"]
        return findings, untried, max(0, len(chosen) - len(findings) - len(found["untried"]))

    async def _fetched(self, version: ProbedVersion, folder: Path) -> dict[str, Any]:
        file = folder / f"{version.sha256}.wasm"
        async with AsyncExitStack() as stack:
            _answer, pieces = await self._store.open(object_key(version.sha256, version.artifact_id))
            stack.push_async_callback(pieces.aclose)
            data = b"".join([piece async for piece in pieces])
        await asyncio.to_thread(file.write_bytes, data)
        return {"name": version.name, "version": version.version, "manifest": version.manifest, "file": str(file)}

    async def _make_snapshot(self, history: HistoryToDrill, built: BuiltDatabase) -> bool:
        """Make a snapshot of what was proven, if the newest one is old; return whether one was made."""
        if len(built.files) < 2:
            return False
        # By when the store got it: the node's clock may have been years ahead once.
        newest = built.files[0]
        stored = await self._builder.listed(*history, (newest.level,))
        if newest not in stored or stored[newest] > self._clock.now().timestamp() * 1000 - SNAPSHOT_EVERY_MS:
            return False
        try:
            made = await self._merger.snapshot(*history, built.path.parent, built.transaction)
        except ProblemError as problem:
            log.warning("no snapshot of node %s (history %s) could be made: %s", *history, problem.detail)
            return False
        if made is None:
            log.warning("no snapshot of node %s (history %s) is made: no store takes one so large", *history)
        return made is not None


class _Function(msgspec.Struct):
    name: str
    version: int


class _Release(msgspec.Struct):
    number: int
    functions: list[_Function]


class _Stored(msgspec.Struct):
    """What a database records of its release, as far as a drill needs it."""

    release: _Release | None
    inventory: wire.Inventory
    unfinished: bool = False


def _chosen(versions: Sequence[ProbedVersion]) -> tuple[list[ProbedVersion], list[str]]:
    """Return those whose probes are run, and what to say of the others."""
    chosen: list[ProbedVersion] = []
    untried = []
    size = 0
    for version in versions:
        name = f"the probe of {version.name}@{version.version}"
        if version.manifest.get("http") is not None or version.manifest.get("secrets"):
            untried.append(f"{name} wasn't tried: it needs HTTP or secrets, which only the node has")
        elif len(chosen) >= MOST_PROBES or size + version.size > PROBE_BYTES:
            untried.append(f"{name} wasn't tried: the probes are too many, or too large")
        else:
            chosen.append(version)
            size += version.size
    return chosen, untried
