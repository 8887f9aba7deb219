"""A replica of control that the tests of a module are lent, one after the other: those that only ask it.

What a test leaves behind is looked for when it gives the replica back: rows, transactions, connections, descriptors,
processes, files, and a clock that was moved. It has a moment to go by itself; else the test fails, and the next one is
lent a new replica. A test that leaves something on purpose has a replica of its own, by the fixture `control`.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from control.local.pki import Pki
from control.sync import fleet_cache
from tests.support import services as servers
from tests.support.clock import SetClock
from tests.support.control import Control
from tests.support.replica import prepare, silence, wait_longer
from tests.support.returned import descriptors, left_behind, processes, told

RECORDS = {
    "access_changes", "access_lists", "artifact_store", "audit", "audit_seals", "auth_failure_batches", "auth_failures",
    "epochs", "events", "generations", "idempotency", "leases", "node_presence", "operator_uses",
}  # fmt: skip
"""Tables of what control notes of all that is asked of it, also of what it refuses."""
TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
TRANSACTIONS = """
    SELECT pid, xact_start, query FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""


class Lender:
    """Has one replica at a time; `made` is what was made of it before it is lent, the same for each test.

    `written` are tables whose rows the tests leave to each other: what a test makes there has a name of its own, and
    what it asks has that name in it.
    """

    def __init__(
        self,
        services: servers.ServerUrls,
        pki: Pki,
        spool: Path,
        make: Callable[[Control], Awaitable[Any]] | None = None,
        *,
        written: Collection[str] = (),
        **settings: Any,
    ) -> None:
        self.made: Any = None
        self.control: Control | None = None
        self._services, self._pki, self._spool = services, pki, spool
        self._make, self._settings = make, settings
        self._unseen = RECORDS.union(written)
        self._reader: Any = None
        """The lender's own connection to the database."""
        self._tables: list[str] = []
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Control]:
        """Lend the replica until the block ends."""
        control = self.control or await self._start()
        before = await self._traces(control)
        tls = ssl.create_default_context(cafile=str(self._pki.ca))
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
            yield replace(control, session=session)
        if left := await left_behind(before, lambda: self._traces(control)):
            await self.end()
            pytest.fail(told(left))

    async def end(self) -> None:
        """End the replica, if there is one."""
        self.control = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def _start(self) -> Control:
        stack, services = self._stack, self._services
        url = await services.fresh_database()
        stack.push_async_callback(services.give_back, url)
        bucket_url = await servers.fresh_bucket(services.artifacts_url)
        stack.push_async_callback(servers.drop_bucket, bucket_url)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        wait_longer(patch)
        # It is for tests of what it answers, and on a busy machine a reading of the targets may take seconds.
        patch.setattr(fleet_cache, "STALE_AFTER", 60.0)
        clock = SetClock(time="run")
        site = await prepare(url, bucket_url, self._pki, self._spool)
        with pytest.MonkeyPatch.context() as start:
            # It does nothing by itself, whatever the test names that is the first to be lent it.
            silence(start)
            found = await stack.enter_async_context(site.running(clock=clock, **self._settings))
        self.control = Control(found.server, site.admin, clock, found.session)
        self._reader = await asyncpg.connect(url)
        stack.push_async_callback(self._reader.close)
        self._tables = [row[0] for row in await self._reader.fetch(TABLES) if row[0] not in self._unseen]
        self.made = None if self._make is None else await self._make(self.control)
        return self.control

    async def _traces(self, control: Control) -> set[str]:
        """What there is now of all that a test may leave behind."""
        found = {f"clock: moved to {control.clock.time}"}
        rows = " UNION ALL ".join(f"SELECT '{table}', t::text FROM {table} t" for table in self._tables)
        found |= {f"row of {table}: {row}" for table, row in await self._reader.fetch(rows)}
        if self._services.postgresql_url:
            found |= {f"transaction: {tuple(row)}" for row in await self._reader.fetch(TRANSACTIONS)}
        state = control.server.server_state
        found |= {f"connection: {id(each)}" for each in state.connections}
        found |= {f"request: {task!r}" for task in state.tasks}
        found |= {f"file: {path}" for path in self._spool.rglob("*")}
        return found | processes() | descriptors()
