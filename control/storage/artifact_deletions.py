"""Deleting artifacts: at once in the background, and by a sweep for what kills and failures left behind.

A row that is marked deleting says that its object is to go; the row goes after the object. So a deletion is answered
when its rows are committed, and whether the store answers then is nobody's concern but the sweep's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from control import faults
from control.api.artifacts import object_key
from control.api.services import Services
from control.problems import ProblemError
from control.storage import queries
from control.storage.database import Locked
from control.storage.object_store import artifact_id_of

SQL = queries.load("artifacts")
OWNERSHIP = queries.load("ownership")
STALE = timedelta(hours=1)
"""After which an upload is given up, and an artifact that no version uses is deleted."""
RETRY = timedelta(minutes=1)
"""After which the sweep takes up a deletion that hasn't come to its end."""
SWEPT_AT_ONCE = 200
WAITING = 10_000
"""Artifacts that wait for their deletion in memory; more are left to the sweep."""

Artifact = tuple[str, str]
"""sha256 and id of the row."""

log = logging.getLogger("skerry.artifacts")


class Deletions:
    """One replica's deletions beside the requests. What it doesn't come to, the sweep does."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._wake = asyncio.Event()
        self._given_up: list[Artifact] = []
        self._deleting: list[Artifact] = []

    def add(self, artifacts: Iterable[Artifact]) -> None:
        """Delete artifacts whose rows are marked deleting."""
        self._deleting += list(artifacts)[: WAITING - len(self._deleting)]
        self._wake.set()

    def give_up(self, artifact: Artifact) -> None:
        """Undo an upload that failed: its row may still say that it is being uploaded."""
        if len(self._given_up) < WAITING:
            self._given_up.append(artifact)
            self._wake.set()

    async def run(self) -> None:
        """Delete what comes in, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.step()

    async def step(self) -> None:
        """Delete what has come in so far."""
        given_up, deleting = self._given_up, self._deleting
        self._given_up, self._deleting = [], []
        left = len(given_up) + len(deleting)
        try:
            if given_up:
                ids, now = [artifact_id for _, artifact_id in given_up], self._services.clock.now()
                rows = await self._services.beside.transaction(lambda conn: conn.fetch(SQL["give_up"], ids, now))
                deleting = [(row["sha256"], row["id"]) for row in rows] + deleting
            left = len(deleting)
            if deleting:
                await self._services.ownership.confirm()
            for artifact in deleting:
                await delete(self._services, artifact)
                left -= 1
        except ProblemError as error:
            log.warning("%d deletions are left to the sweep: %s", left, error.detail)


async def delete(services: Services, artifact: Artifact) -> None:
    """Delete the object and then the row of an artifact that is marked deleting (R 2.4). Raises `ProblemError`."""
    sha256, artifact_id = artifact
    await services.ownership.may_delete()
    faults.reach("control.delete.object.before")
    await services.store.delete(object_key(sha256, artifact_id))
    faults.reach("control.delete.object.after")
    await services.beside.transaction(lambda conn: conn.execute(SQL["forget"], artifact_id))
    faults.reach("control.delete.row.after")


async def sweep(services: Services) -> None:
    """Finish what kills and failures left behind, unless deletions are held.

    Raises `ProblemError` where the store or the database is away, or the bucket is another control's.
    """
    ownership = services.ownership
    await ownership.confirm()
    if ownership.held is not None:
        return
    try:
        await _sweep(services)
    except ProblemError as error:
        await ownership.note_sweep(error.detail)
        raise
    await ownership.note_sweep("")


async def _sweep(services: Services) -> None:
    now = services.clock.now()
    await services.beside.transaction(lambda conn: _mark_stale(conn, now))
    deleting = await services.beside.read(lambda conn: conn.fetch(SQL["deleting"], now - RETRY, SWEPT_AT_ONCE))
    for row in deleting:
        # One that another transaction has locked waits for a later sweep, the others don't.
        with contextlib.suppress(Locked):
            await delete(services, (row["sha256"], row["id"]))
    unknown = 0
    async for page in services.store.objects():
        old = {found: item.key for item in page if item.modified < now - STALE and (found := artifact_id_of(item.key))}
        if old:
            unknown += await _unknown(services, old, now)
    kept = timedelta(seconds=services.settings.unknown_objects_kept)
    await services.beside.transaction(lambda conn: conn.execute(OWNERSHIP["forget_old"], now - 2 * kept))
    if deleting or unknown:
        log.info("swept %d artifacts and %d objects that no row knew", len(deleting), unknown)


async def _unknown(services: Services, objects: dict[str, str], now: datetime) -> int:
    """Delete those of the objects (key by row id) that no row has known for long; returns how many."""

    async def look(conn: Any) -> tuple[set[str], dict[str, datetime]]:
        known = {row["id"] for row in await conn.fetch(SQL["known"], list(objects))}
        since = await conn.fetch(OWNERSHIP["unknown_since"], list(objects.values()))
        return known, {row["key"]: row["since"] for row in since}

    known, since = await services.beside.read(look)
    unknown = {key for artifact_id, key in objects.items() if artifact_id not in known}
    before = now - timedelta(seconds=services.settings.unknown_objects_kept)
    gone = [key for key in sorted(unknown) if key in since and since[key] < before]
    for key in gone:
        await services.ownership.may_delete()
        await services.store.delete(key)
        log.info("deleted %s, which no row has known since %s", key, since[key])
    new, forget = sorted(unknown - since.keys()), sorted(since.keys() - unknown | set(gone))
    if new:
        log.warning("%d objects of the bucket are known to no row, such as %s", len(new), new[0])
        await services.beside.transaction(lambda conn: conn.execute(OWNERSHIP["note_unknown"], new, now))
    if forget:
        await services.beside.transaction(lambda conn: conn.execute(OWNERSHIP["forget_unknown"], forget))
    return len(gone)


async def _mark_stale(conn: Any, now: datetime) -> None:
    for lock, mark in (("lock_stale_uploads", "give_up"), ("lock_stale", "release_unused")):
        ids = [row["id"] for row in await conn.fetch(SQL[lock], now - STALE)]
        if ids:
            await conn.execute(SQL[mark], ids, now)
