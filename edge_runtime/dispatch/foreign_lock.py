"""Sees whether a process that is none of the node's has the database locked, as a shell or a backup, and says so."""

import logging
from pathlib import Path
from typing import Final

from edge_runtime import clock, database_users
from edge_runtime.database_users import DatabaseUser
from edge_runtime.dispatch.pool import Pool
from edge_runtime.ipc.zygote_client import ZygoteClient

log = logging.getLogger("skerry.database")

PERIOD: Final = 0.25
"""Seconds between two looks."""
LONG: Final = 1.0
"""Seconds from which on a lock is told of: other programs may write, too, as long as they are quick."""
LOG_PERIOD: Final = 60.0
"""Seconds between two lines of the log while the lock lasts."""


class ForeignLock:
    """Keeps `Pool.held_by`; `run` must be running while calls are."""

    def __init__(self, pool: Pool, processes: ZygoteClient, database: Path) -> None:
        self._pool = pool
        self._processes = processes
        self._database = database
        self._holder: DatabaseUser | None = None
        self._since = 0.0
        self._logged = 0.0
        pool.find_holder = self.find

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look(clock.monotonic())
            await clock.sleep(PERIOD)

    def look(self, now: float) -> None:
        """Look once, at the time `now` of `clock.monotonic`."""
        holder = self._foreign()
        if holder is None or self._holder is None or holder.pid != self._holder.pid:
            if self._pool.held_by:
                log.info("the database is free again, after %.0f s", now - self._since)
            self._pool.held_by = ""
            self._since, self._logged = now, 0.0
        self._holder = holder
        if holder is None or now - self._since < LONG:
            return
        self._pool.held_by = str(holder)
        if not self._logged or now - self._logged >= LOG_PERIOD:
            self._logged = now
            text = "another process holds the database, for %.0f s now: %s. Calls that need it get 503 (database_held)"
            log.error(text, now - self._since, holder)

    def find(self) -> str:
        """Return the process that holds the database just now, for a person; empty where none does."""
        return str(self._foreign() or "")

    def _foreign(self) -> DatabaseUser | None:
        try:
            holder = database_users.lock_holder(self._database)
        except OSError as error:
            log.debug("the database's locks can't be looked at: %s", error)
            return None
        # The node's processes that open the file are the zygote's children. One without a parent has just ended.
        ours = holder is not None and holder.pid and database_users.parent(holder.pid) in (self._processes.pid, 0)
        return None if ours else holder
