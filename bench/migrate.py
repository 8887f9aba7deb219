"""How long does a writer wait while a table of half a million rows is changed in steps?

Rows have 150 bytes. Eight clients each change one row, with 10 ms in between, without a pause: first alone, then in
three rounds. A round fills a new column in every row, and then recreates the table while emptying the old one; before
each, as the floor, SQLite alone makes the same change to a separate table, in transactions of 2,000 rows. The ratio is
the smaller of two: the longest time that a client waited for its answer during the latter over the longest during the
former, from the request for a release until everything is done (medians of the rounds), divided by its bar; and 64 MB
over the applier's peak memory (PSS). For comparison: the same clients' waits during CREATE INDEX, which can't be split.
"""

import asyncio
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import bare_change, cpu, pss
from bench.parts.other_processes import Peak
from bench.parts.row_writers import CHUNK, COLUMNS, FILL, FIRST, ROWS, Writers, fill
from bench.parts.servers import Edge, Site, edge, folder, site
from edge_runtime.sql import database
from tests.guests.build import guest

BAR = 1
STALL_OVER = 0.5
"""The least permitted ratio of the longest wait during the floor to that during a change."""
MEMORY_LIMIT = 64_000_000
ROUNDS = 3
BARE_BATCH = 2_000
"""Rows per transaction of the floor."""
CHANGE_LIMIT = 900.0
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


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.change("first", FIRST)
        versions = {"sql": await control.push("sql", guest("sql"), {"sql": "write"})}
        await control.release(versions)
        await node.at_release(1, best=True)
        await asyncio.to_thread(fill, where / "edge" / database.FILE)
        writers, memory = Writers(node), Peak(node, _largest, 0.1)
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
        "applier_mb": round(memory.most / 1e6, 1),
        "machine": machine,
    }
    result.write("migrate", min(least / stall / STALL_OVER, MEMORY_LIMIT / memory.most), BAR, details)


def _largest(pids: list[int]) -> int:
    """Return the bytes (PSS) of the largest of these processes; 0 if there is none."""
    return max(map(pss.share, pids), default=0)


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
