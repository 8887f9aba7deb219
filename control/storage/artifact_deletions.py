"""Deletion of artifacts: at once in the background, and by a sweep that finishes what crashes and failures left.

A row that is marked `deleting` says that its object is to be deleted; the row is deleted after the object. So a
request to delete is answered when the rows are committed, even if the store doesn't answer at the time.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from control.clock import Clock
from control.problems import ProblemError
from control.protocol import faults
from control.protocol.counts import counted
from control.storage import audit_log, queries
from control.storage.audit_log import Actor
from control.storage.bucket_owner import KNOWN_ARTIFACTS, Ownership
from control.storage.connection import Connection
from control.storage.database import Database, Locked
from control.storage.object_store import Store, artifact_id_of, object_key
from control.storage.queries import Rows, Value

STALE = timedelta(hours=1)
"""Time after which an unfinished upload is given up, and an artifact that no version uses is deleted."""
RETRY = timedelta(minutes=1)
"""Time after which the sweep retries an unfinished deletion."""
SWEPT_AT_ONCE = 200
"""Maximum deletions that one sweep tries."""
MARKED_AT_ONCE = 1000
"""Maximum unfinished uploads and unused artifacts that one sweep marks."""
WAITING = 10_000
"""Maximum artifacts that wait in memory for deletion; further ones are left to the sweep."""

ACTOR = Actor("control", "deletions")

log = logging.getLogger("skerry.artifacts")


class ArtifactKey(NamedTuple):
    """The sha256 of an artifact and the id of its row, which together form the key of its object in the bucket."""

    sha256: str
    id: str


class UnknownObject(NamedTuple):
    """The key of an object without a row, and when that was first noticed."""

    key: str
    since: datetime


SQL = queries.load("artifacts")
GIVE_UP = SQL.rows("give_up", ArtifactKey)
RELEASE_UNUSED = SQL.rows("release_unused", ArtifactKey)
DELETING = SQL.rows("deleting", ArtifactKey)
STALE_UPLOADS = SQL.value("stale_uploads", str)
UNUSED = SQL.value("stale", str)
LOCK_FREE = SQL.value("lock_free", str)
OWNERSHIP = queries.load("bucket_owner")
UNKNOWN_SINCE = OWNERSHIP.rows("unknown_since", UnknownObject)


class Deletions:
    """One replica's deletions. The sweep finishes those that it loses, as in a crash."""

    def __init__(self, db: Database, store: Store, ownership: Ownership, clock: Clock, unknown_kept: float) -> None:
        """`unknown_kept`: seconds for which an object without a row stays in the bucket."""
        self._db = db
        self._store = store
        self._ownership = ownership
        self._clock = clock
        self._unknown_kept = timedelta(seconds=unknown_kept)
        self._wake = asyncio.Event()
        self._given_up: list[ArtifactKey] = []
        self._deleting: list[ArtifactKey] = []

    def add(self, artifacts: Iterable[ArtifactKey]) -> None:
        """Queue artifacts whose rows are marked `deleting` for deletion."""
        self._deleting += list(artifacts)[: WAITING - len(self._deleting)]
        self._wake.set()

    def give_up(self, artifact: ArtifactKey) -> None:
        """Queue a failed upload to be undone: its row may still say `uploading`."""
        if len(self._given_up) < WAITING:
            self._given_up.append(artifact)
            self._wake.set()

    async def run(self) -> None:
        """Delete queued artifacts until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.step()

    async def step(self) -> None:
        """Delete what is queued so far."""
        given_up, deleting = self._given_up, self._deleting
        self._given_up, self._deleting = [], []
        left = len(given_up) + len(deleting)
        try:
            if given_up:
                ids, now = [artifact.id for artifact in given_up], self._clock.now()
                deleting = await self._db.transaction(lambda conn: conn.fetch(GIVE_UP, ids, now)) + deleting
            left = len(deleting)
            if deleting:
                await self._ownership.confirm()
            for artifact in deleting:
                await self.delete(artifact)
                left -= 1
        except ProblemError as error:
            log.warning("left to the sweep: %s: %s", counted(left, "deletion"), error.detail)

    async def delete(self, artifact: ArtifactKey) -> None:
        """Delete the object and then the row of an artifact that is marked `deleting` (R 2.4).

        Raises: ProblemError, when the store or the database doesn't answer, or deletions are on hold.
        """
        await self._ownership.may_delete()
        faults.reach("control.delete.object.before")
        await self._store.delete(object_key(*artifact))
        faults.reach("control.delete.object.after")
        await self._db.transaction(lambda conn: self._forget(conn, artifact))
        faults.reach("control.delete.row.after")

    async def _forget(self, conn: Connection, artifact: ArtifactKey) -> None:
        if await conn.execute(SQL["forget"], artifact.id) == "DELETE 1":
            before = {"object": object_key(*artifact)}
            await audit_log.record(conn, self._clock.now(), ACTOR, "artifact.delete", artifact.sha256, before=before)

    async def sweep(self) -> None:
        """Finish what crashes and failures left behind; do nothing while deletions are on hold.

        Raises: ProblemError, when the store or the database doesn't answer, or the bucket isn't this control's.
        """
        await self._ownership.confirm()
        if self._ownership.held is not None:
            return
        try:
            await self._sweep()
        except ProblemError as error:
            await self._ownership.note_sweep(error.detail)
            raise
        await self._ownership.note_sweep("")

    async def _sweep(self) -> None:
        now = self._clock.now()
        await self._mark_stale(STALE_UPLOADS, "uploading", GIVE_UP, now)
        await self._mark_stale(UNUSED, "ready", RELEASE_UNUSED, now)
        deleting = await self._db.read(lambda conn: conn.fetch(DELETING, now - RETRY, SWEPT_AT_ONCE))
        for artifact in deleting:
            # A row that another transaction has locked is left to a later sweep and doesn't delay the others.
            with contextlib.suppress(Locked):
                await self.delete(artifact)
        unknown = 0
        async for page in self._store.objects():
            old = {id: item.key for item in page if item.modified < now - STALE and (id := artifact_id_of(item.key))}
            if old:
                unknown += await self._delete_unknown(old, now)
        await self._db.transaction(lambda conn: conn.execute(OWNERSHIP["forget_old"], now - 2 * self._unknown_kept))
        if deleting or unknown:
            artifacts, objects = counted(len(deleting), "artifact"), counted(unknown, "object")
            log.info("swept %s, and %s that no row knew", artifacts, objects)

    async def _mark_stale(self, find: Value[str], state: str, mark: Rows[ArtifactKey], now: datetime) -> None:
        """Mark the artifacts in this state that `find` finds as deleting, except those locked by a transaction."""
        ids = await self._db.read(lambda conn: conn.column(find, now - STALE, MARKED_AT_ONCE))

        async def work(conn: Connection) -> None:
            # By id: CockroachDB locks each row that it reads for this, and others need the rows in use.
            free = await conn.column(LOCK_FREE, ids, state, now - STALE)
            if free:
                await conn.fetch(mark, free, now)

        if ids:
            await self._db.transaction(work)

    async def _delete_unknown(self, objects: dict[str, str], now: datetime) -> int:
        """Delete those of the objects (keys by row id) that have had no row for long; return how many."""

        async def look(conn: Connection) -> tuple[set[str], dict[str, datetime]]:
            known = set(await conn.column(KNOWN_ARTIFACTS, list(objects)))
            return known, dict(await conn.fetch(UNKNOWN_SINCE, list(objects.values())))

        known, since = await self._db.read(look)
        unknown = {key for artifact_id, key in objects.items() if artifact_id not in known}
        before = now - self._unknown_kept
        gone = [key for key in sorted(unknown) if key in since and since[key] < before]
        for key in gone:
            await self._ownership.may_delete()
            # Recorded first: nothing else would show a deletion that a crash interrupts.
            details = {"unknown_since": since[key]}
            await self._db.transaction(
                lambda conn, key=key, details=details: audit_log.record(  # type: ignore[misc]
                    conn, now, ACTOR, "object.delete", key, details
                )
            )
            await self._store.delete(key)
            log.info("deleted %s, which no row has known since %s", key, since[key])
        new, forget = sorted(unknown - since.keys()), sorted(since.keys() - unknown | set(gone))
        if new:
            log.warning("known to no row: %s of the bucket, such as %s", counted(len(new), "object"), new[0])
            await self._db.transaction(lambda conn: conn.execute(OWNERSHIP["note_unknown"], new, now))
        if forget:
            await self._db.transaction(lambda conn: conn.execute(OWNERSHIP["forget_unknown"], forget))
        return len(gone)
