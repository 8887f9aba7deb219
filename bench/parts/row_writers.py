"""A table of half a million rows of 150 bytes, and clients that change its rows without a pause."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson

from bench.parts.servers import Edge
from edge_runtime.sql import database

ROWS = 500_000
CHUNK = 250_000
"""Rows that are written in a transaction."""
CLIENTS = 8
PAUSE = 0.010
"""Seconds between a client's calls."""
FIRST = (
    "CREATE TABLE items (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, note TEXT NOT NULL, amount REAL NOT NULL, "
    "made TEXT NOT NULL)"
)
COLUMNS = "id, customer, note, amount, made"
FILL = f"""
INSERT INTO items ({COLUMNS}) WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?)
SELECT i, 'customer-' || (i * 7919 % 100003), hex(randomblob(45)), i * 0.01, '2026-01-01T00:00:00Z' FROM n
"""


class Writers:
    """Clients that each change a row, over and over, until the block ends."""

    def __init__(self, node: Edge) -> None:
        self.took: list[tuple[float, float]] = []
        """For each call the time it ended (monotonic clock), and the seconds that it took."""
        self._node = node

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write(random.Random(n))) for n in range(CLIENTS)]
            yield
            for task in tasks:
                task.cancel()

    def longest(self, since: float) -> float:
        return max(took for ended, took in self.took if ended >= since)

    async def _write(self, chance: random.Random) -> None:
        while True:
            sql = f"UPDATE items SET amount = amount + 1 WHERE id = {chance.randint(1, ROWS)}"
            started = time.monotonic()
            async with self._node.http.post("/functions/sql", data=orjson.dumps({"sql": sql})) as answer:
                body = await answer.read()
            ended = time.monotonic()
            if answer.status != 200 or b'"changes":1' not in body:
                raise self._node.process.failure(f"a write: {answer.status} {body.decode()}")
            self.took.append((ended, ended - started))
            await asyncio.sleep(PAUSE)


def fill(path: Path) -> None:
    """Write the rows into the node's database, from outside it."""
    with database.connect(path, "NORMAL") as opened:
        for first in range(1, ROWS + 1, CHUNK):
            opened.lock.acquire()
            opened.rows(FILL, (first, min(first + CHUNK - 1, ROWS)))
            opened.lock.release()
            opened.rows("PRAGMA wal_checkpoint(PASSIVE)")
