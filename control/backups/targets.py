"""Which state of a node's database somebody means: at a time, before a release, the latest, or a transaction's.

Every restore, copy and undo goes by `StateFinder.find`. The table of histories says which there are, the store which
files they have, and the headers of files say of when their states are.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from control.backups.builder import TRIES, Builder, FileGone
from control.backups.chain import ChainError, chain, last_at, restorable
from control.backups.objects import BackupFile, is_lineage
from control.clock import Clock
from control.problems import ProblemError
from control.protocol import ltx
from control.storage import queries
from control.storage.database import Database

BEFORE: Final = "before:"
LATEST: Final = "latest"
MOST_RELEASE: Final = 2**62

SQL = queries.load("backups")
LINEAGES = SQL.value("lineages", str)
RELEASE = SQL.optional("release_of_node", UUID)


class AtTime(NamedTuple):
    """The last state that is at the store and isn't younger than a time."""

    time: datetime


class BeforeRelease(NamedTuple):
    """The state before the node went to a release of its group."""

    number: int


class Latest(NamedTuple):
    """The last state that the store has."""


class AtTransaction(NamedTuple):
    """The state after a transaction of a lineage."""

    lineage: str
    transaction: int


BOUNDARY = SQL.rows("boundary", AtTransaction)

Target = AtTime | BeforeRelease | Latest | AtTransaction


@dataclass(frozen=True)
class RestorableState:
    """A state of a node's database that can be made of files at the store."""

    lineage: str
    transaction: int
    at: datetime
    """When the node had committed all of it, by its clock."""
    files: list[BackupFile]
    """What it is made of: a snapshot, and files that follow it."""
    size: int
    """Bytes of the database."""
    before_release: UUID | None = None
    """The release before which it is, if that was asked for."""

    @property
    def read(self) -> int:
        """Return the bytes of its files."""
        return sum(file.size for file in self.files)


def parse(text: str, field: str, code: str = "invalid_parameter") -> Target:
    """Return what a text such as `2026-12-02T10:00:00Z`, `before:12`, `latest` or `LINEAGE/7` asks for.

    Raises: ProblemError `code`, for anything else.
    """
    if text == LATEST:
        return Latest()
    if text.startswith(BEFORE):
        number = _number(text.removeprefix(BEFORE), MOST_RELEASE)
        if number:
            return BeforeRelease(number)
    lineage, slash, transaction = text.partition("/")
    if slash and is_lineage(lineage):
        number = _number(transaction, ltx.MOST_TRANSACTIONS)
        if number:
            return AtTransaction(lineage, number)
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None and "T" in text:
            return AtTime(time.astimezone(UTC))
    except (ValueError, OverflowError):
        pass
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    raise ProblemError(
        code,
        f"{shown!r} is none of: a time with its offset, such as 2026-12-02T10:00:00Z; before:RELEASE with a release's "
        f"number; {LATEST}; LINEAGE/TRANSACTION",
        field=field,
    )


def _number(text: str, most: int) -> int:
    """Return the number from 1 to `most` that a text is, else 0."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return 0
    return int(text) if int(text) <= most else 0


class StateFinder:
    """Finds the states that are asked for."""

    def __init__(self, reads: Database, builder: Builder, clock: Clock) -> None:
        self._reads = reads
        self._builder = builder
        self._clock = clock

    async def find(self, node_id: str, target: Target) -> RestorableState:
        """Find a state of a node's database.

        Raises: ProblemError backup_incomplete, when the store has no files that lead there, with what it has instead;
        backup_damaged, when a file's header can't be read; invalid_parameter, for a time that is yet to come;
        unknown_release, for a release that the node's group doesn't have; and as `Store` and `Database` do.
        """
        if isinstance(target, BeforeRelease):
            release_id = await self._reads.read(lambda conn: conn.fetchval(RELEASE, node_id, target.number))
            if release_id is None:
                raise ProblemError("unknown_release", f"the node's group has no release {target.number}")
            return await self.before(node_id, release_id, str(target.number))
        if isinstance(target, AtTime) and target.time > (now := self._clock.now()):
            raise ProblemError("invalid_parameter", f"{_shown(target.time)} is yet to come: it is {_shown(now)} here")
        if isinstance(target, AtTransaction):
            lineages = [target.lineage]
        else:
            lineages = await self._reads.read(lambda conn: conn.column(LINEAGES, node_id))
        for lineage in lineages:
            found = await self._within(node_id, lineage, target)
            if found is not None:
                return found
        if isinstance(target, AtTime):
            raise ProblemError(
                "backup_incomplete", f"the store has no state of this node at {_shown(target.time)} or before"
            )
        raise ProblemError("backup_incomplete", "the store has no file of a backup of this node")

    async def before(self, node_id: str, release_id: UUID, name: str) -> RestorableState:
        """Find the state before the node went to a release, by the release's id. Raises: as `find`."""
        position = await self._reads.read(lambda conn: conn.fetchrow(BOUNDARY, node_id, release_id))
        if position is None:
            text = (
                f"this node hasn't gone to release {name}, wasn't backed up when it went, or was killed just then: "
                "that state is unknown. `--to TIME` brings back an earlier one, if there is any"
            )
            raise ProblemError("backup_incomplete", text)
        return replace(await self.find(node_id, position), before_release=release_id)

    async def _within(
        self, node_id: str, lineage: str, target: AtTime | Latest | AtTransaction
    ) -> RestorableState | None:
        """Find a state in a lineage; None if that has no state so early, or no file at all."""
        for _ in range(TRIES):
            files = await self._builder.files(node_id, lineage)
            try:
                to = await self._transaction(node_id, lineage, files, target)
                if to is None:
                    return None
                found = chain(files, to)
                header = await self._header(node_id, lineage, found[-1])
            except FileGone:
                continue
            except ChainError as error:
                instead = f"; {lineage}/{error.reached} can be brought back" if error.reached else ""
                raise ProblemError("backup_incomplete", f"nothing leads there: {error}{instead}") from None
            at = _time(header.at_ms, found[-1])
            return RestorableState(lineage, to, at, found, header.pages * header.page_bytes)
        raise ProblemError("backup_incomplete", "files of the backup were deleted while they were read; try again")

    async def _transaction(
        self, node_id: str, lineage: str, files: list[BackupFile], target: AtTime | Latest | AtTransaction
    ) -> int | None:
        """Return the transaction of a lineage that is asked for; None as `_within` says. Raises: FileGone."""
        if isinstance(target, AtTransaction):
            return target.transaction
        if isinstance(target, Latest):
            # A history whose first snapshot isn't there yet has no state; a gap in one is told.
            return max((file.last for file in files), default=None) if restorable(files) else None

        async def made_ms(file: BackupFile) -> int:
            return (await self._header(node_id, lineage, file)).at_ms

        found = await last_at(restorable(files), int(target.time.timestamp() * 1000), made_ms)
        return None if found is None else found.last

    async def _header(self, node_id: str, lineage: str, file: BackupFile) -> ltx.Header:
        """Read a file's header. Raises: FileGone."""
        header = await self._builder.header(node_id, lineage, file)
        if header is None:
            raise FileGone
        return header


def _time(at_ms: int, file: BackupFile) -> datetime:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC)
    except (ValueError, OverflowError):
        text = f"the file {file.name} says that it was made {at_ms} ms after 1970"
        raise ProblemError("backup_damaged", text) from None


def _shown(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
