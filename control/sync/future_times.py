"""Stored times that are further ahead than `AHEAD` are of a clock that was wrong: put right before they mislead.

A node that was heard of then would read online for as long as that clock was ahead, its warning wouldn't come, its
open sync wouldn't expire, a join token would be good for longer.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from control.api.services import Services
from control.clock import AHEAD
from control.storage import queries

SQL = queries.load("ahead")

HEARD = 40.0
"""Seconds within which a node that lives is heard of again: a held poll and a half."""
LIMIT = 500
"""Rows that one transaction changes."""

log = logging.getLogger("skerry.clock")


async def correct(services: Services, now: datetime) -> None:
    """Make stored times that are ahead of `now` what does least harm. Raises `ProblemError`."""
    settings, db = services.settings, services.beside
    lease = timedelta(seconds=settings.sync_lease)
    limit, lease_limit = now + AHEAD, now + lease + AHEAD
    found = await db.read(lambda conn: conn.fetchrow(SQL["found"], limit, lease_limit))
    # Who isn't heard of within `HEARD` from now on is taken for silent, or overdue.
    seen, confirmed = (
        now - timedelta(seconds=max(after - HEARD, 0)) for after in (settings.offline_after, settings.overdue_after)
    )
    for name, beyond, arguments in (
        ("presence", limit, (limit, seen, confirmed)),
        ("nodes", limit, (limit, now, confirmed)),
        ("syncs", lease_limit, (now + lease,)),
        ("tokens", limit, (now,)),
    ):
        if found[name] and (count := await _all(services, name, beyond, *arguments)):
            log.warning("%s: %d rows had times of a clock that was ahead; they were put right", name, count)


async def _all(services: Services, name: str, beyond: datetime, *arguments: Any) -> int:
    """Put all rows right but those that another transaction has locked, which the next pass sees to; how many."""

    async def work(conn: Any) -> int:
        ids = [row["id"] for row in await conn.fetch(SQL[f"lock_{name}"], beyond, LIMIT)]
        if ids:
            await conn.execute(SQL[name], *arguments, ids)
        return len(ids)

    count = 0
    while True:
        changed = await services.beside.transaction(work)
        count += changed
        if changed < LIMIT:
            return count
