"""When operators last asked for something: noted in memory, written together once a minute."""

import logging
from datetime import datetime, timedelta
from functools import partial

from control.clock import Clock
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync import flush_loop

FLUSH_EVERY = 60.0
"""Seconds between two writes."""
NOTED_AGAIN = timedelta(seconds=60)
"""How old a noted use gets before another one is noted."""

SQL = queries.load("operators")

log = logging.getLogger("skerry.sessions")


class OperatorUses:
    """The last uses that this replica knows of."""

    def __init__(self, background: Database, clock: Clock) -> None:
        self._clock = clock
        self._background = background
        self._noted: dict[str, datetime] = {}
        self._unwritten: dict[str, datetime] = {}

    def note(self, operator_id: str, now: datetime) -> None:
        """An operator that was recognised asks for something, by its token or in a session."""
        noted = self._noted.get(operator_id)
        if noted is None or now - noted >= NOTED_AGAIN:
            self._noted[operator_id] = self._unwritten[operator_id] = now

    async def flush(self) -> None:
        """Write what isn't written. Raises: ProblemError, when the database doesn't answer."""
        if self._unwritten:
            written = dict(sorted(self._unwritten.items()))
            columns = list(written), [at.isoformat() for at in written.values()]
            await self._background.transaction(partial(_record, *columns))
            self._unwritten = {id: at for id, at in self._unwritten.items() if written.get(id) != at}

    async def run(self) -> None:
        """Flush every `FLUSH_EVERY` seconds until cancelled, and once more then."""
        await flush_loop.run(
            log, "last uses of operators", self._clock, FLUSH_EVERY, self.flush, lambda: len(self._unwritten)
        )


async def _record(ids: list[str], times: list[str], conn: Connection) -> None:
    await conn.execute(SQL["used"], ids, times)
