"""The owner of the artifact bucket (ADR 22): set once, and checked before anything is stored or deleted.

The bucket has an object with its owner's id and a counter, and so do the metadata. A transaction that makes an artifact
necessary increments the counter, which is written to the bucket afterwards. So a bucket whose counter is ahead of the
metadata shows that these were restored: nothing is deleted until an operator resumes deletions. A counter that is ahead
and wasn't made with the key of these metadata belongs to somebody else: the bucket isn't used.
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import uuid4

from control.clock import Clock
from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import audit_log, owner_mark, queries
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database
from control.storage.object_store import SmallObject, Store, WriteConflict, artifact_id_of
from control.storage.owner_mark import BucketMark, OwnerMark, Standing, UnreadableMark

SQL = queries.load("bucket_owner")
KNOWN_ARTIFACTS = queries.load("artifacts").value("known", str)

CHECK_EVERY = 10.0
"""Seconds between two checks of the bucket by each replica."""
BELIEVED_FOR = 5.0
"""Seconds for which a check allows deletions."""
ATTEMPTS = 8
"""Attempts at a check if another replica writes the mark during each of them."""
PAGES = 10
"""Pages of 1,000 objects that are examined before a bucket without an owner is claimed."""

ACTOR = Actor("control", "control")

log = logging.getLogger("skerry.store")


class StoreRow(NamedTuple):
    """The metadata's row about the bucket. `owner` and `step` are None until this control has a bucket."""

    owner: str | None
    counter: int
    step: str | None
    held_since: datetime | None
    held_reason: str
    sweep_problem: str
    key: str
    """The key for the codes of what control writes to the bucket."""
    restored_at: datetime | None
    """When a restore of the metadata was noticed; None again once an operator has recovered."""


STATE = SQL.rows("state", StoreRow)


@dataclass(frozen=True)
class DeletionHold:
    """Why nothing is deleted from the bucket, and since when."""

    since: datetime
    reason: str


@dataclass(frozen=True)
class TakenOver:
    """The result of taking a bucket over."""

    taken_over: bool
    """False if the bucket already was this control's."""
    owner: str
    """The id of the control that owned the bucket, or ''."""


@dataclass(frozen=True)
class StoreState:
    """`StoreRow` as values."""

    mark: OwnerMark | None
    """None if this control never had a bucket."""
    held: DeletionHold | None
    sweep_problem: str
    key: str


async def state(conn: Connection) -> StoreRow:
    """Return the metadata's row about the bucket; every migrated database has one."""
    return await conn.one(STATE)


async def step(conn: Connection) -> None:
    """Increment the counter, in a transaction that makes an artifact necessary."""
    await conn.execute(SQL["step"], uuid4())


class Ownership:
    """One replica's view of who owns the bucket."""

    def __init__(self, db: Database, store: Store, clock: Clock) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._begun = self._ended = 0
        """The numbers of the last check that began and the last one that ended."""
        self._checked_at = -BELIEVED_FOR
        self._owner = ""
        self.problem: ProblemError | None = ProblemError("store_unavailable", "the artifact store wasn't asked yet")
        """The problem that the last check found; None if the bucket is this control's."""
        self.held: DeletionHold | None = None
        self.sweep_problem = ""
        self.keeps_versions = False

    async def confirm(self) -> None:
        """Compare the bucket's mark with the metadata, and bring its counter up to date.

        All waiting callers share one comparison, which begins after they have called.
        Raises: ProblemError, when the bucket isn't this control's, or the store or the database doesn't answer.
        """
        before = self._begun
        async with self._lock:
            if self._ended <= before:
                self._begun += 1
                await self._look()
                self._ended = self._begun
        if self.problem is not None:
            raise ProblemError(self.problem.code, self.problem.detail)

    async def may_delete(self) -> None:
        """Check that objects may be deleted. Raises: ProblemError, when the bucket isn't this control's, or deletions
        are on hold.
        """
        if self.problem is not None or self._clock.monotonic() - self._checked_at > BELIEVED_FOR:
            await self.confirm()
        if self.held is not None:
            raise ProblemError("deletions_held", f"{self.held.reason}; {RESUME}")

    async def ready(self) -> None:
        """Read the bucket's mark; write nothing. Raises: ProblemError, when the store doesn't answer, or the bucket
        or its mark isn't this control's.
        """
        found = await self._store.read(owner_mark.KEY)
        mark = None if found is None else owner_mark.decode(found.data)
        if self.problem is not None:
            self.wake()
        refused = self.problem is not None and self.problem.code == "store_mark_refused"
        if isinstance(mark, OwnerMark) and mark.owner == self._owner and not refused:
            return
        self.wake()
        if mark is None or not self._owner or refused:
            raise self.problem or ProblemError("store_unavailable", f"the bucket {self._store.bucket} has no owner yet")
        raise self._refused(mark) if isinstance(mark, UnreadableMark) else self._foreign(mark)

    def wake(self) -> None:
        """Have the bucket checked soon: the metadata may be a step ahead of it."""
        self._wake.set()

    async def run(self) -> None:
        """Check the bucket every `CHECK_EVERY` seconds, and after `wake`, until cancelled."""
        versions_at = -math.inf
        while True:
            try:
                async with self._clock.timeout(CHECK_EVERY):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.confirm()
                if self._clock.monotonic() >= versions_at:
                    self.keeps_versions = await self._store.keeps_versions()
                    versions_at = self._clock.monotonic() + 3600
            except ProblemError:
                # `_look` reports it. Don't retry at once, however many callers ask.
                await self._clock.sleep(0.5)

    async def note_sweep(self, problem: str) -> None:
        """Store why the last sweep failed, or '' if it didn't."""
        if problem != self.sweep_problem:
            await self._db.transaction(lambda conn: conn.execute(SQL["sweep_problem"], problem))
            self.sweep_problem = problem

    async def take_over(self, command: str) -> TakenOver:
        """Make the bucket this control's, whoever owned it, and hold deletions; if it already is, do nothing.

        An invalid mark is replaced. The counter continues from that of the metadata, whatever the bucket says.

        `command`: the name of the actor in the audit log.

        Raises: ProblemError, when the store or the database doesn't answer, or another replica wrote meanwhile.
        """
        async with self._lock:
            found = await self._store.read(owner_mark.KEY)
            there = None if found is None else owner_mark.decode(found.data)
            mark, key = await self._named()
            standing = owner_mark.compare(there, mark, key) if isinstance(there, BucketMark) else None
            if isinstance(there, BucketMark) and standing not in (Standing.FOREIGN, Standing.FORGED):
                return TakenOver(False, there.owner)
            from_whom = "nobody who can be told"
            if isinstance(there, BucketMark):
                from_whom = f"control {there.owner}" if standing is Standing.FOREIGN else "whoever wrote its mark"
            reason = f"the bucket was taken over from {from_whom}"
            now = self._clock.now()

            async def work(conn: Connection) -> None:
                await conn.execute(SQL["begin_anew"], owner_mark.ANEW, uuid4(), now, reason)
                actor, details = Actor("control", command), {"from": from_whom}
                await audit_log.record(conn, now, actor, "artifacts.take-over", self._store.bucket, details)

            await self._db.transaction(work)
            try:
                stored = await self._read()
                assert stored.mark is not None  # noqa: S101
                await self._write(stored.mark, stored.key, found)
            except WriteConflict:
                raise ProblemError("store_unavailable", "the bucket's owner changed meanwhile; try again") from None
            return TakenOver(True, there.owner if isinstance(there, BucketMark) else "")

    async def _look(self) -> None:
        """Compare as `confirm` does, and store the result in `problem` and `held`."""
        try:
            for _ in range(ATTEMPTS):
                try:
                    await self._compare()
                    break
                except WriteConflict:
                    continue
            else:
                raise ProblemError(
                    "store_unavailable", "other replicas kept writing the bucket's mark meanwhile; try again"
                )
        except ProblemError as error:
            if self.problem is None or self.problem.detail != error.detail:
                log.warning("the bucket of artifacts isn't used for now: %s", error.detail)
            self.problem = error
            return
        if self.problem is not None:
            log.info("the bucket %s is this control's", self._store.bucket)
        self.problem, self._checked_at = None, self._clock.monotonic()

    async def _compare(self) -> None:
        """Compare once. Raises: ProblemError, when the bucket can't be used; WriteConflict, to have it repeated."""
        # The bucket first: its counter was committed in the metadata earlier.
        found = await self._store.read(owner_mark.KEY)
        stored = await self._read()
        if found is None:
            await self._claim()
            raise WriteConflict
        there = owner_mark.decode(found.data)
        if isinstance(there, UnreadableMark):
            raise self._refused(there)
        if stored.mark is None:
            raise self._foreign(there)
        standing = owner_mark.compare(there, stored.mark, stored.key)
        if standing is Standing.FOREIGN:
            raise self._foreign(there)
        if standing is Standing.FORGED:
            raise self._refused(there, stored.mark)
        if standing is Standing.AHEAD:
            await self._restored(there, stored.mark)
            raise WriteConflict
        if standing is Standing.BEHIND:
            await self._write(stored.mark, stored.key, found)
        if self.held is None and stored.held is not None:
            log.warning("no artifact is deleted from the bucket: %s; %s", stored.held.reason, RESUME)
        self.held, self._owner, self.sweep_problem = stored.held, there.owner, stored.sweep_problem

    async def _claim(self) -> None:
        """Claim a bucket without an owner. Raises: ProblemError, when its artifacts seem to be another control's."""
        known, unknown = 0, 0
        pages = 0
        async for page in self._store.objects():
            ids = [found for item in page if (found := artifact_id_of(item.key))]
            rows = await self._db.read(lambda conn, ids=ids: conn.column(KNOWN_ARTIFACTS, ids))  # type: ignore[misc]
            known, unknown = known + len(rows), unknown + len(ids) - len(rows)
            pages += 1
            if pages == PAGES:
                break
        if unknown and not known:
            raise ProblemError(
                "store_not_owned",
                f"the bucket {self._store.bucket} has {counted(unknown, 'artifact')}, of which this metadata database "
                f"knows none, and no owner: it seems to be another control's. {TAKE_OVER}",
            )
        bucket, now = self._store.bucket, self._clock.now()
        reason = (
            f"when the bucket was claimed, it had {counted(unknown, 'artifact')} that the metadata don't know"
            if unknown
            else ""
        )

        async def work(conn: Connection) -> None:
            if reason:
                await conn.execute(SQL["hold"], now, reason)
            after = {"held_reason": reason} if reason else {}
            await audit_log.record(conn, now, ACTOR, "artifacts.claim", bucket, after=after)

        await self._db.transaction(work)
        mark, key = await self._named()
        await self._write(mark, key, None)
        log.info("claimed the bucket %s for control %s", self._store.bucket, mark.owner)

    async def _named(self) -> tuple[OwnerMark, str]:
        """Return the mark and key of the metadata; the first time, make the id of this control."""
        await self._db.transaction(lambda conn: conn.execute(SQL["name_owner"], uuid4()))
        stored = await self._read()
        assert stored.mark is not None  # noqa: S101
        return stored.mark, stored.key

    async def _restored(self, bucket: OwnerMark, metadata: OwnerMark) -> None:
        reason = (
            f"the metadata were restored: the bucket is at step {bucket.counter}, they were at {metadata.counter}, "
            "and may not know artifacts that a newer backup needs"
        )
        now = self._clock.now()

        async def work(conn: Connection) -> None:
            if (await state(conn)).step == metadata.step:
                await conn.execute(SQL["hold_above"], bucket.counter, uuid4(), now, reason)
                await conn.execute(SQL["note_restored"], now)
                details = {"bucket": bucket.counter, "metadata": metadata.counter}
                await audit_log.record(conn, now, ACTOR, "artifacts.hold", self._store.bucket, details)

        await self._db.transaction(work)

    async def _write(self, mark: OwnerMark, key: str, replaces: SmallObject | None) -> None:
        data, tag = owner_mark.encode(key, mark), None if replaces is None else replaces.tag
        await self._store.write(owner_mark.KEY, data, tag)

    async def _read(self) -> StoreState:
        row = await self._db.read(state)
        return StoreState(
            None if row.owner is None or row.step is None else OwnerMark(row.owner, row.counter, row.step),
            None if row.held_since is None else DeletionHold(row.held_since, row.held_reason),
            row.sweep_problem,
            row.key,
        )

    def _foreign(self, there: BucketMark) -> ProblemError:
        return ProblemError(
            "store_not_owned",
            f"the bucket {self._store.bucket} belongs to another control ({there.owner}), not to the one of this "
            f"metadata database: correct SKERRY_ARTIFACTS_URL or SKERRY_METADATA_URL. {TAKE_OVER}",
            retry_after=5,
        )

    def _refused(self, there: BucketMark | UnreadableMark, metadata: OwnerMark | None = None) -> ProblemError:
        if isinstance(there, UnreadableMark):
            why = f"can't be read ({there.why})"
        else:
            at = "" if metadata is None else f", and the metadata at {metadata.counter}"
            why = f"isn't one that this control wrote: it is at step {there.counter}{at}"
        return ProblemError(
            "store_mark_refused",
            f"the object {owner_mark.KEY} of the bucket {self._store.bucket} {why}. Nothing is stored or deleted. Find "
            "out who else can write to the bucket, then make it anew: `skerry artifacts take-over`",
            retry_after=5,
        )


TAKE_OVER = "If it is to be this control's from now on: `skerry artifacts take-over`"
RESUME = "`skerry artifacts resume` lets deletions go on"
