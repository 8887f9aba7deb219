"""What control does with backups by itself, on whichever replica has the lease: it merges shipments, sweeps what the
retention doesn't need, and proves each history in turn, within a budget of bytes a day.

Two replicas that do the same do no harm: files are put where there are none, and deleted once what replaces them is
verified.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeVar

from control.access.rate_limits import Allowance
from control.backups import merging, retention
from control.backups.builder import Builder
from control.backups.drills import Drills, HistoryToDrill, passes
from control.backups.merging import LARGE, Merger
from control.backups.objects import MERGED, SHIPMENT, SNAPSHOT, BackupFile
from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.storage import queries
from control.storage.database import Database
from control.sync.leases import Leases

PERIOD: Final = 15.0
"""Seconds between two looks for work, once none is left."""
LEASE: Final = timedelta(seconds=60)
RENEWED: Final = 15.0
"""Seconds between two renewals of the lease while something is done."""
AGE: Final = timedelta(hours=1)
"""How long a shipment stays as it is."""
MERGE_EVERY: Final = timedelta(hours=1)
SWEEP_EVERY: Final = timedelta(days=1)
PROVE_EVERY: Final = timedelta(days=1)
"""How often a history is proven that has gone on, or whose drill failed."""
PROVE_AGAIN: Final = timedelta(days=7)
"""How often one is proven to which nothing has come."""
PASSED: Final = 3600.0
"""Seconds after which a history is tried again at which the store, or the metadata database, failed."""
RETENTION: Final = 30 * 86_400
"""Seconds of history that are kept of a node whose group doesn't say it."""
SLACK: Final = 4
"""Files are swept once they are out of the retention for its length divided by this: each sweep reads a snapshot."""
AT_ONCE: Final = 4
"""Histories that are merged concurrently."""
ROUND_FILES: Final = 500
"""Shipments that are downloaded at once, to be merged."""
ROUND_BYTES: Final = 256 * 1024 * 1024
DAY: Final = 86_400.0

R = TypeVar("R")


class MergeDue(NamedTuple):
    """A history with shipments that may be old enough."""

    node_id: str
    lineage: str
    merged: int
    seen_at: datetime
    """When the node polled last: it has told of all releases before."""


class SweepDue(NamedTuple):
    """A history whose retention is looked at."""

    node_id: str
    lineage: str
    ended_at: datetime | None
    """When another history took its place, or the node was removed."""
    retention: int | None
    """Seconds, as the group says it."""
    replaced: bool
    """Whether nobody would go back to it for the latest state: another one is proven, or the node was removed."""


SQL = queries.load("backups")
MERGE_DUE = SQL.rows("merge_due", MergeDue)
SWEEP_DUE = SQL.rows("sweep_due", SweepDue)
DRILL_DUE = SQL.rows("drill_due", HistoryToDrill)
CUTS = SQL.value("cuts", int)

log = logging.getLogger("skerry.backups")


class BackupKeeper:
    """One replica's part in keeping backups."""

    def __init__(
        self, db: Database, builder: Builder, merger: Merger, drills: Drills, clock: Clock, bytes_a_day: int
    ) -> None:
        self._db = db
        self._builder = builder
        self._merger = merger
        self._drills = drills
        self._clock = clock
        self._leases = Leases(db, clock)
        self._outage = Outage(log, "backups can't be kept, and are tried again")
        # A replica that starts again and again reads an hour's share each time.
        self._left = Allowance(bytes_a_day, DAY, bytes_a_day / 24, clock.monotonic())
        self._passed: dict[HistoryToDrill, float] = {}
        """Histories at which the store or the metadata database failed, and until when others are tried first."""

    async def run(self) -> None:
        """Keep backups until cancelled."""
        try:
            while True:
                more = False
                try:
                    more = await self.tick()
                    self._outage.worked()
                except ProblemError as problem:
                    self._outage.failed(problem.detail)
                await self._clock.sleep(0.0 if more else PERIOD)
        finally:
            with contextlib.suppress(TimeoutError, ProblemError):
                async with self._clock.timeout(1.0):
                    await self._leases.give_back()

    async def tick(self) -> bool:
        """Do what is due, at most one drill; return whether more is. Does nothing where another replica has the lease.

        Raises: ProblemError, when the store or the metadata database doesn't answer.
        """
        if not await self._leases.take("backups", LEASE):
            return False
        async with self._holding():
            merged = await self._merge_some()
            swept = await self._sweep_some()
            drilled = await self._drill_one()
        return merged or swept or drilled

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[None]:
        """Renew the lease until the block ends."""

        async def renew() -> None:
            while True:
                await self._clock.sleep(RENEWED)
                with contextlib.suppress(ProblemError):
                    await self._leases.take("backups", LEASE)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def _merge_some(self) -> bool:
        """Merge shipments of some histories; return whether there were any."""
        before = self._clock.now() - MERGE_EVERY
        due = await self._db.read(lambda conn: conn.fetch(MERGE_DUE, before, AT_ONCE))
        merging = (self._each(self._merge, each) for each in due)
        for result in await asyncio.gather(*merging, return_exceptions=True):
            if result is not None:
                raise result
        return bool(due)

    async def _sweep_some(self) -> bool:
        """Sweep some histories; return whether there were any."""
        before = self._clock.now() - SWEEP_EVERY
        due = await self._db.read(lambda conn: conn.fetch(SWEEP_DUE, before, AT_ONCE))
        for each in due:
            await self._each(self._sweep, each)
        return bool(due)

    async def _drill_one(self) -> bool:
        """Prove the history that was proven longest ago, while the day's budget lasts; return whether there was one."""
        if self._left.refill(self._clock.monotonic()) <= 0 or self._drills.busy:
            return False
        now = self._clock.now()
        passed = self._clock.monotonic()
        self._passed = {history: until for history, until in self._passed.items() if until > passed}
        asked = now - PROVE_EVERY, now - PROVE_AGAIN, len(self._passed) + 1
        found = await self._db.read(lambda conn: conn.fetch(DRILL_DUE, *asked))
        due = next((history for history in found if history not in self._passed), None)
        if due is None:
            return False
        before = self._builder.read
        try:
            await self._drills.drill(due)
        except ProblemError as problem:
            if passes(problem):
                # It may be one object that the store can't read.
                self._passed[due] = self._clock.monotonic() + PASSED
                raise
        finally:
            self._left.count -= self._builder.read - before
        return True

    async def _each(self, work: Callable[[R], Awaitable[None]], due: R) -> None:
        """Do a piece of work for a history; one that can't be done keeps no other.

        Raises: ProblemError, when the store or the metadata database doesn't answer, or deletions are held.
        """
        try:
            await work(due)
        except ProblemError as problem:
            if passes(problem):
                raise
            node_id, lineage = due[:2]  # type: ignore[index]
            log.warning("node %s (history %s): %s [%s]", node_id, lineage, problem.detail, problem.code)

    async def _merge(self, due: MergeDue) -> None:
        history, now = (due.node_id, due.lineage), self._clock.now()
        await self._db.transaction(lambda conn: conn.execute(SQL["note_merged"], *history, now, 0))
        listed = await self._builder.listed(*history, (SHIPMENT, MERGED), due.merged)
        # Read after the listing: whatever is due was shipped before the node told of its last release.
        left = merging.covered(listed, await self._cuts(history))
        await self._merger.finish(*history, left)
        gone = {file for some in left.values() for file in some}
        before = (min(now, due.seen_at) - AGE).timestamp() * 1000
        shipments = sorted(
            file
            for file, at in listed.items()
            if file.level == SHIPMENT and not file.whole and at <= before and file not in gone
        )
        for some in _rounds(shipments):
            # A long history takes a while, and a restore to one of its states may be ordered meanwhile.
            cuts = await self._cuts(history)
            await self._merger.merge(*history, [file for file in some if file.size < LARGE], cuts)
            last = some[-1].last
            await self._db.transaction(lambda conn, last=last: conn.execute(SQL["note_merged"], *history, now, last))  # type: ignore[misc]

    async def _cuts(self, history: tuple[str, str]) -> set[int]:
        """Return the transactions whose states must stay."""
        snapshots = await self._builder.listed(*history, (SNAPSHOT,))
        told = await self._db.read(lambda conn: conn.column(CUTS, *history))
        return {*told, *(file.last for file in snapshots)}

    async def _sweep(self, due: SweepDue) -> None:
        history, now = (due.node_id, due.lineage), self._clock.now()
        seconds = RETENTION if due.retention is None else due.retention
        since = now - timedelta(seconds=seconds)
        listed = await self._builder.listed(*history)
        size = sum(file.size for file in listed)
        await self._db.transaction(lambda conn: conn.execute(SQL["note_swept"], *history, now, size))
        if due.ended_at is not None:
            if due.replaced and due.ended_at < since:
                await self._merger.sweep(*history, None, sorted(listed))
                await self._db.transaction(lambda conn: conn.execute(SQL["forget_boundaries"], *history))
                await self._db.transaction(lambda conn: conn.execute(SQL["forget"], *history))
                log.info("node %s: deleted the history %s, which ended at %s", *history, due.ended_at.isoformat())
            return
        since_ms = int(since.timestamp() * 1000)
        now_ms = int(now.timestamp() * 1000)
        oldest = retention.oldest_needed(await self._made_ms(history, listed, now_ms), since_ms)
        unneeded = retention.unneeded(listed, oldest)
        late = since_ms - seconds * 1000 // SLACK
        if oldest is None or not any(listed[file] <= late for file in unneeded):
            return
        # Drills wait for what this reads, or else those that use up the budget would keep everything from being swept.
        before = self._builder.read
        try:
            await self._merger.sweep(*history, oldest, unneeded)
        finally:
            self._left.count -= self._builder.read - before
        log.info(
            "node %s: deleted %d files of before the retention (history %s)", history[0], len(unneeded), history[1]
        )

    async def _made_ms(
        self, history: tuple[str, str], listed: dict[BackupFile, int], now_ms: int
    ) -> dict[BackupFile, int]:
        """Return when each snapshot was made: by the node's clock, or when the store got it, if that is later, or if
        the node's clock was ahead of what it is now."""
        found = {}
        for file, at in listed.items():
            if file.whole and (header := await self._builder.header(*history, file)) is not None:
                found[file] = max(at, header.at_ms) if header.at_ms <= now_ms else at
        return found


def _rounds(shipments: Sequence[BackupFile]) -> list[list[BackupFile]]:
    """Return the shipments in lists that may be downloaded at once."""
    found: list[list[BackupFile]] = []
    size = 0
    for file in shipments:
        small = 0 if file.size >= LARGE else file.size
        if not found or len(found[-1]) >= ROUND_FILES or size + small > ROUND_BYTES:
            found.append([])
            size = 0
        found[-1].append(file)
        size += small
    return found
