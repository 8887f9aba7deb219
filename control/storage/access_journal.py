"""One replica's work with access lists: it writes changes to the bucket, and applies lists that the metadata don't
know (ADR 55).

A list is noted in the metadata before its object is written. So an object that isn't noted shows that the metadata were
restored from an earlier backup, and its changes are applied to them.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import access_changes, access_list, audit_log, bucket_owner, queries
from control.storage.access_list import AccessChange, UnverifiedList
from control.storage.announcements import Changed
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database
from control.storage.object_store import SmallObject, Store, WriteConflict


class WaitingChange(NamedTuple):
    """A change that isn't in a list yet."""

    id: str
    at: datetime
    kind: str
    subject: str
    details: dict[str, Any]


class UnlistedCount(NamedTuple):
    """How many changes aren't in a list yet, and since when."""

    changes: int
    since: datetime | None


class ListKey(NamedTuple):
    """The id of this control, None until it has a bucket, and the key for the codes of its lists."""

    owner: str | None
    key: str


SQL = queries.load("access_lists")
WAITING = SQL.rows("waiting", WaitingChange)
COUNT_WAITING = SQL.rows("count_waiting", UnlistedCount)
KEY = SQL.rows("key", ListKey)
NOTE = SQL.optional("note", str)
NOTED = SQL.value("noted", str)

PERIOD = 5.0
"""Seconds between two checks for changes to write."""
READ_AT_ONCE = 8
"""Lists that are read concurrently; they are applied in order."""
ACTOR = Actor("control", "recovery")

log = logging.getLogger("skerry.recovery")


@dataclass
class _Pass:
    """The progress of one pass over the bucket's lists."""

    judged: str = ""
    """The key up to which every list has been applied or found inapplicable."""
    lists: int = 0
    done: Counter[str] = field(default_factory=Counter)
    """How many changes of each kind, in the lists that were applied, changed something."""


class AccessJournal:
    """Writes the lists and applies them."""

    def __init__(self, db: Database, store: Store, clock: Clock) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._applying = asyncio.Lock()
        self.looked = False
        """Whether this replica has applied, since its start, all lists that existed."""
        self.answered = False
        """Whether the store has listed the lists: until they are read, this replica knows that it may not know of all
        revocations."""
        self.unverified = 0
        """How many lists can't be applied, because they don't belong to these metadata or were changed."""
        self._pass = _Pass()

    async def run(self) -> None:
        """Apply the lists once the store answers, and write changes every few seconds until cancelled."""
        outage = Outage(log, "revocations can't be written to the bucket, and wait in the metadata")
        while True:
            await self._clock.sleep(PERIOD)
            try:
                if not self.looked:
                    await self.apply()
                await self.write()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)

    async def write(self) -> None:
        """Write a list of the waiting changes, if any. Raises: ProblemError, when the store or the database doesn't
        answer; the changes are written later.
        """
        while True:
            rows = await self._db.read(lambda conn: conn.fetch(WAITING, access_list.MOST))
            owner, key = await self._db.read(lambda conn: conn.one(KEY))
            if not rows or owner is None:
                return
            now = self._clock.now()
            name = access_list.name(owner, now, uuid4())
            # A store that doesn't answer fails here, before the list is noted: a noted list stays.
            await self._store.head(name)
            waiting = [AccessChange(row.at, row.kind, row.subject, row.details) for row in rows]
            changes = access_list.first_of(waiting)
            note = name, now
            await self._db.transaction(lambda conn, note=note: conn.fetchval(NOTE, *note))  # type: ignore[misc]
            try:
                await self._store.write(name, access_list.encode(key, name, changes), None)
            except WriteConflict:
                raise ProblemError("store_unavailable", f"the bucket has an object {name} already") from None
            ids = [row.id for row in rows[: len(changes)]]
            await self._db.transaction(lambda conn, ids=ids: conn.execute(SQL["forget"], ids))  # type: ignore[misc]
            if len(ids) == len(rows) < access_list.MOST:
                return

    async def apply(self, *, restored: bool = False, on_list: Callable[[], None] = lambda: None) -> None:
        """Apply the bucket's lists that the metadata don't know: such lists show that the metadata were restored.

        `restored`: a restore is known already, and all lists are read; otherwise, those that an interrupted call has
        judged aren't read again. `on_list` is called only after lists that were applied: anybody who can write to the
        bucket can add any number of others. Raises: ProblemError, when the store or the database doesn't answer.
        """
        async with self._applying:
            if self.looked and not restored:
                return  # another call has done it meanwhile
            owner, key = await self._db.read(lambda conn: conn.one(KEY))
            if restored or not self._pass.judged:
                self._pass, self.unverified = _Pass(), 0
            at = self._pass
            more = owner is not None
            while more:
                folder = access_list.folder(owner or "")
                names, more = await self._store.keys(folder, at.judged or folder)
                self.answered = True
                noted = set(await self._db.read(lambda conn, names=names: conn.column(NOTED, names)))  # type: ignore[misc]
                unknown = [name for name in names if name not in noted]
                for start in range(0, len(unknown), READ_AT_ONCE):
                    part = unknown[start : start + READ_AT_ONCE]
                    read = await asyncio.gather(*(self._store.read(name, access_list.MOST_BYTES) for name in part))
                    for name, found in zip(part, read, strict=True):
                        applied = await self._apply(key, name, found)
                        at.judged = name
                        if applied is not None:
                            at.lists += 1
                            at.done.update(applied)
                            on_list()
                at.judged = names[-1] if names else at.judged
            if restored or at.lists:
                await self._db.transaction(lambda conn: self._note_restored(conn, at.lists, at.done))
            self.looked, self._pass = True, _Pass()

    async def waiting(self, conn: Connection) -> UnlistedCount:
        """Return the changes that aren't in the bucket yet: restoring an earlier backup would undo them."""
        return await conn.one(COUNT_WAITING)

    async def _apply(self, key: str, name: str, found: SmallObject | None) -> Counter[str] | None:
        """Apply one list that was read; return None if it doesn't belong to these metadata."""
        if found is None:
            return None
        try:
            changes = access_list.decode(key, name, found.data)
        except UnverifiedList as error:
            if not self.unverified:
                log.error(
                    "the access list %s isn't applied, since %s: if the metadata were restored, those revoked since "
                    "may be good again; look at `skerry operator list` and `skerry node list`. /readyz counts those "
                    "that can't be applied",
                    name,
                    error,
                )
            self.unverified += 1
            return None

        async def work(conn: Connection) -> Counter[str]:
            changed, now = Changed(), self._clock.now()
            if await conn.fetchval(NOTE, name, now) is None:
                return Counter()  # another replica was first
            if (await bucket_owner.state(conn)).restored_at is None:
                await conn.execute(bucket_owner.SQL["note_restored"], now)
            # In order of time: written again after later changes, they would undo those.
            columns = zip(*((change.at.isoformat(), change.kind, change.subject) for change in changes), strict=True)
            await conn.execute(SQL["forget_listed"], *map(list, columns))
            done = await access_changes.apply(conn, changed, changes)
            await changed.announce(conn)
            return done

        return await self._db.transaction(work)

    async def _note_restored(self, conn: Connection, lists: int, done: Counter[str]) -> None:
        now = self._clock.now()
        if (await bucket_owner.state(conn)).restored_at is None:
            await conn.execute(bucket_owner.SQL["note_restored"], now)
        elif not lists:
            return  # another replica has said it
        details = {"access_lists": lists, "applied": dict(sorted(done.items()))}
        await audit_log.record(conn, now, ACTOR, "metadata.restored", "metadata", details)
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(done.items())) or "nothing"
        log.warning("the metadata were restored; applied of %s: %s", counted(lists, "access list"), told)
