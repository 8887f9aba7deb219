"""How long does a writer wait while a table of half a million rows is changed in steps?

Rows have 150 bytes. Eight clients each change one row, with 10 ms in between, without a pause: first alone, then in
three rounds. A round fills a new column in every row, and then recreates the table while emptying the old one; before
each, as the floor, SQLite alone makes the same change to a separate table, in transactions of 2,000 rows. The ratio is
the smaller of two: the longest time that a client waited for its answer during the latter over the longest during the
former, from the request for a release until everything is done (medians of the rounds), divided by its bar; and 64 MB
over the applier's peak memory (PSS). For comparison: the same clients' waits during CREATE INDEX, which can't be split.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import uvloop

from bench import result
from bench.parts import bare_change, cpu, pss
from bench.parts.servers import Edge, Site, edge, folder, site
from edge_runtime.sql import database
from tests.guests.build import guest

BAR = 1
STALL_OVER = 0.5
"""The least permitted ratio of the longest wait during the floor to that during a change."""
MEMORY_LIMIT = 64_000_000
ROWS = 500_000
CHUNK = 250_000
CLIENTS = 8
PAUSE = 0.010
ROUNDS = 3
BARE_BATCH = 2_000
"""Rows per transaction of the floor."""
CHANGE_LIMIT = 900.0
FIRST = (
    "CREATE TABLE items (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, note TEXT NOT NULL, amount REAL NOT NULL, "
    "made TEXT NOT NULL)"
)
COLUMNS = "id, customer, note, amount, made"
FILL = f"""
INSERT INTO items ({COLUMNS}) WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?)
SELECT i, 'customer-' || (i * 7919 % 100003), hex(randomblob(45)), i * 0.01, '2026-01-01T00:00:00Z' FROM n
"""
BARE_FILL = "UPDATE items SET total_{0} = amount * 1.2 WHERE id > {1} AND id <= {2}"
BARE_ANEW = f"INSERT INTO items_new ({COLUMNS}) SELECT {COLUMNS} FROM items WHERE id > {{1}} AND id <= {{2}}"
BARE_DELETE = "DELETE FROM items_old WHERE id > {1} AND id <= {2}"
BACK_FILL = """
-- skerry: before
ALTER TABLE items ADD COLUMN total_{0} REAL;
CREATE TRIGGER items_total AFTER UPDATE OF amount ON items BEGIN
    UPDATE items SET total_{0} = new.amount * 1.2 WHERE id = new.id;
END;
-- skerry: batch items by id
UPDATE items SET total_{0} = amount * 1.2 WHERE id > :after AND id <= :upto;
-- skerry: flip
DROP TRIGGER items_total;
-- skerry: undo
DROP TRIGGER items_total;
ALTER TABLE items DROP COLUMN total_{0};
"""
ANEW = f"""
-- skerry: before
CREATE TABLE items_new (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, note TEXT NOT NULL, amount REAL NOT NULL,
    made TEXT NOT NULL, made_anew INTEGER NOT NULL DEFAULT {{0}});
CREATE TRIGGER items_to_new AFTER UPDATE ON items BEGIN
    DELETE FROM items_new WHERE id IN (old.id, new.id);
    INSERT INTO items_new ({COLUMNS}) VALUES (new.id, new.customer, new.note, new.amount, new.made);
END;
-- skerry: batch items by id
INSERT INTO items_new ({COLUMNS}) SELECT {COLUMNS} FROM items WHERE id > :after AND id <= :upto
    ON CONFLICT (id) DO NOTHING;
-- skerry: flip
DROP TRIGGER items_to_new;
ALTER TABLE items RENAME TO items_old;
ALTER TABLE items_new RENAME TO items;
-- skerry: batch items_old by id
DELETE FROM items_old WHERE id > :after AND id <= :upto;
-- skerry: after
DROP TABLE items_old;
-- skerry: undo
DROP TRIGGER items_to_new;
DROP TABLE items_new;
"""
INDEX = "CREATE INDEX items_customer ON items (customer)"


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


class Memory:
    """Records the largest memory of the node's processes other than its front, zygote and workers."""

    def __init__(self, node: Edge) -> None:
        self.peak = 0
        self._node = node

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        workers = (await self._node.status())["workers"]
        known = {self._node.process.pid, workers["zygote"], *workers["pids"], *workers["spares"]}
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._watch(known))
            yield
            task.cancel()

    async def _watch(self, known: set[int]) -> None:
        while True:
            self.peak = max([self.peak, *pss.of_others(self._node.process.pid, known)])
            await asyncio.sleep(0.1)


def fill(path: Path) -> None:
    """Write the rows into the node's database, from outside it."""
    with database.connect(path, "NORMAL") as opened:
        for first in range(1, ROWS + 1, CHUNK):
            opened.lock.acquire()
            opened.rows(FILL, (first, min(first + CHUNK - 1, ROWS)))
            opened.lock.release()
            opened.rows("PRAGMA wal_checkpoint(PASSIVE)")


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.change("first", FIRST)
        versions = {"sql": await control.push("sql", guest("sql"), {"sql": "write"})}
        await control.release(versions)
        await node.at_release(1, best=True)
        await asyncio.to_thread(fill, where / "edge" / database.FILE)
        writers, memory = Writers(node), Memory(node)
        found: dict[str, Any] = {"fill_s": [], "anew_s": []}
        stalls, floor = [], []
        filled = [FILL.replace("?", "{}").format(at + 1, min(at + CHUNK, ROWS)) for at in range(0, ROWS, CHUNK)]
        async with bare_change.beside(where, [FIRST, *filled]) as bare, writers.running(), memory.watched():
            for number, (since, name, sql) in enumerate(_changes(), 2):
                started = time.monotonic()
                await bare.run(_bare(name, since))
                floor.append(writers.longest(started))
                started = time.monotonic()
                await _change(control, node, number, sql.format(since))
                found[name].append(round(time.monotonic() - started, 1))
                stalls.append(writers.longest(started))
            started = time.monotonic()
            await _change(control, node, 2 * ROUNDS + 2, INDEX)
            index = writers.longest(started)
        rounds, bare_rounds = (
            [max(pair) for pair in zip(longest[::2], longest[1::2], strict=True)] for longest in (stalls, floor)
        )
    stall, least = median(rounds), median(bare_rounds)
    details = {
        **found,
        "longest_ms": round(stall * 1000, 1),
        "longest_of_each_round_ms": [round(longest * 1000, 1) for longest in rounds],
        "floor_of_each_round_ms": [round(longest * 1000, 1) for longest in bare_rounds],
        "longest_beside_an_index_ms": round(index * 1000, 1),
        "write_p50_ms": round(median(took for _, took in writers.took) * 1000, 2),
        "writes": len(writers.took),
        "applier_mb": round(memory.peak / 1e6, 1),
        "machine": machine,
    }
    result.write("migrate", min(least / stall / STALL_OVER, MEMORY_LIMIT / memory.peak), BAR, details)


def _changes() -> Iterator[tuple[int, str, str]]:
    for number in range(1, ROUNDS + 1):
        yield number, "fill_s", BACK_FILL
        yield number, "anew_s", ANEW


def _bare(name: str, number: int) -> list[str]:
    """Return the statements of a change, each a transaction, without those that keep concurrent writers' rows
    correct."""

    def batches(sql: str) -> list[str]:
        return [sql.format(number, at, at + BARE_BATCH) for at in range(0, ROWS, BARE_BATCH)]

    if name == "fill_s":
        return [f"ALTER TABLE items ADD COLUMN total_{number} REAL", *batches(BARE_FILL)]
    made = FIRST.replace("TABLE items", "TABLE items_new")
    swapped = "ALTER TABLE items RENAME TO items_old; ALTER TABLE items_new RENAME TO items"
    return [made, *batches(BARE_ANEW), swapped, *batches(BARE_DELETE), "DROP TABLE items_old"]


async def _change(control: Site, node: Edge, number: int, sql: str) -> None:
    """Register a change and release it; wait until the node has it and has finished the steps after its flip."""
    await control.change(f"change-{number}", sql)
    await control.release(allow_loss=True, allow_stall=sql == INDEX)
    deadline = time.monotonic() + CHANGE_LIMIT
    while True:
        status = await node.status()
        if status["error"] or time.monotonic() > deadline:
            raise node.process.failure(f"change {number} isn't done: {status}")
        steps = status["database"]["steps"]
        if status["release"]["number"] == number and status["at_target"] and not steps["unfinished"]:
            return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
