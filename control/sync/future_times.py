"""Correction of stored times that are further ahead than `AHEAD`, because a wrong clock wrote them.

Otherwise a node seen at such a time would count as online for as long as that clock was ahead, without a warning; its
open sync wouldn't expire, and a join token would be valid for longer.
"""

import logging
from datetime import datetime, timedelta
from typing import NamedTuple

from control.clock import AHEAD
from control.protocol.counts import counted
from control.settings import ControlSettings
from control.storage import audit_log, queries
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database


class Found(NamedTuple):
    """Which tables have times that are ahead."""

    presence: bool
    nodes: bool
    syncs: bool
    tokens: bool


SQL = queries.load("future_times")
FOUND = SQL.rows("found", Found)
FINDS = {table: SQL.value(f"find_{table}", str) for table in Found._fields}
LOCKS = {table: SQL.value(f"lock_{table}", str) for table in Found._fields}
"""By id: CockroachDB locks every row that it reads for such a statement, even those that don't match."""

HEARD = 40.0
"""Seconds within which a live node is heard from again: one and a half times a held poll."""
LIMIT = 500
"""Maximum rows that one transaction changes."""

log = logging.getLogger("skerry.clock")


async def correct(db: Database, settings: ControlSettings, now: datetime) -> None:
    """Change times that are ahead of `now` to what does the least harm.

    Raises: ProblemError, when the database doesn't answer.
    """
    lease = timedelta(seconds=settings.sync_lease)
    limit, lease_limit = now + AHEAD, now + lease + AHEAD
    found = await db.read(lambda conn: conn.one(FOUND, limit, lease_limit))
    if not any(found):
        return
    # A node that isn't heard from within `HEARD` from now counts as offline or overdue.
    seen, confirmed = (
        now - timedelta(seconds=max(after - HEARD, 0)) for after in (settings.offline_after, settings.overdue_after)
    )
    arguments: dict[str, tuple[datetime, tuple[datetime, ...]]] = {
        "presence": (limit, (limit, seen, confirmed)),
        "nodes": (limit, (limit, now, confirmed)),
        "syncs": (lease_limit, (now + lease,)),
        "tokens": (limit, (now,)),
    }
    for table, is_ahead in found._asdict().items():
        if is_ahead and (count := await _correct_all(db, now, table, *arguments[table])):
            log.warning("%s: corrected %s with times of a clock that was ahead", table, counted(count, "row"))


async def _correct_all(
    db: Database, now: datetime, table: str, beyond: datetime, arguments: tuple[datetime, ...]
) -> int:
    """Correct all rows of a table, and return how many. Locked rows are left to the next pass."""

    async def work(conn: Connection) -> int:
        ids = await conn.column(LOCKS[table], beyond, (await conn.column(FINDS[table], beyond, LIMIT))[:LIMIT])
        if ids:
            await conn.execute(SQL[table], *arguments, ids)
            await audit_log.record(conn, now, Actor("control", "monitor"), "times.correct", table, {"rows": len(ids)})
        return len(ids)

    count = 0
    while True:
        changed = await db.transaction(work)
        count += changed
        if changed < LIMIT:
            return count
