"""A replica's mark in the metadata, by which it notices that they were restored from a backup.

Each replica counts up in a row of its own, and looks at it with each reading of the epochs. Nobody else writes that
row, so a lower count there than this replica has seen committed is the count of an earlier time: the database lacks
what this replica knows, also where its epoch has passed the one that the replica read last (ADR 36).
"""

import logging
from datetime import timedelta
from uuid import uuid4

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import version
from control.storage import queries
from control.storage.database import Database

WRITE = queries.load("fleet").optional("write_mark", str)

PREFIX = "mark "
"""How the names of all marks begin; an id follows."""
PERIOD = 1.0
"""Seconds between two writes. A backup that is younger than that when it is restored shows by the epoch alone."""
KEPT = timedelta(days=30)
"""How long the row of a replica that ended is kept, before the monitor deletes it."""

log = logging.getLogger("skerry.fleet")


class ReplicaMark:
    """The mark of one process."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._count = 0
        self.name = f"{PREFIX}{uuid4()}"
        """The name of the row."""
        self.committed = 0
        """The highest count that the database must have; one whose COMMIT was lost may be there as well."""

    async def write(self) -> None:
        """Count up, unless the metadata have a lower count than they must have.

        Raises: ProblemError, when it isn't known to be written.
        """
        self._count = count = self._count + 1
        until, least = self._clock.now() + KEPT, self.committed
        row = self.name, str(count), until, least, version.running().short
        if await self._db.transaction(lambda conn: conn.fetchval(WRITE, *row)) is not None:
            # Where the metadata were found to be restored meanwhile, `committed` is lower, and so was the row.
            self.committed = count

    async def run(self) -> None:
        """Count up every `PERIOD` seconds until cancelled."""
        outage = Outage(log, "this replica's mark can't be written: it would notice a restored database later")
        while True:
            try:
                await self.write()
                outage.worked()
            except ProblemError as problem:
                outage.failed(problem.detail)
            await self._clock.sleep(PERIOD)
