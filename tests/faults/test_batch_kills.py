"""Processes are killed at random while a schema change goes in batches: each row is changed exactly once.

SKERRY_TEST_KILLS says how many kills, SKERRY_TEST_SEED repeats a run's order; what was killed when hangs on the clock.
"""

import asyncio
import contextlib
import os
import random
import signal
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.cluster import LIMIT, WRITE, Cluster, cluster
from tests.support.deadlines import deadline

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "4"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
ROWS = 10_000 + 2_000 * KILLS
ITEMS = (
    "UPDATE generation SET number = 2; CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);"
    f"INSERT INTO items SELECT value, 0 FROM generate_series(1, {ROWS})"
)
COUNTED = """
-- skerry: before
ALTER TABLE items ADD COLUMN times INTEGER NOT NULL DEFAULT 0;
-- skerry: batch items by id
UPDATE items SET times = times + 1 WHERE id > :after AND id <= :upto;
-- skerry: flip
UPDATE generation SET number = 3;
ALTER TABLE items ADD COLUMN flipped INTEGER NOT NULL DEFAULT 1;
-- skerry: batch items by id
UPDATE items SET flipped = flipped + 1 WHERE id > :after AND id <= :upto;
-- skerry: undo
ALTER TABLE items DROP COLUMN times;
"""
"""Neither batch is right if it is done twice to a row."""
FAILS = {"worker_crashed", "commit_unknown"}


async def rows(made: Cluster, sql: str) -> list[list[Any]]:
    """Ask until there is an answer: the front may be away, and a worker killed."""
    # Kills follow each other faster than a busy machine starts a front: a write may wait until they end.
    async with deadline(LIMIT + KILLS):
        while True:
            try:
                status, _, body = await made.ask(f"/functions/{WRITE}", orjson.dumps({"sql": sql}))
            except (aiohttp.ClientError, OSError):
                status, body = 0, b""
            if status == 200:
                found: list[list[Any]] = orjson.loads(body)["rows"]
                return found
            await asyncio.sleep(0.05)


def victims(made: Cluster) -> dict[str, int]:
    return {"front": made.front.pid, "zygote": made.zygote(), "control": made.control.pid}


@pytest.mark.timeout(600)
async def test_batches_under_kills() -> None:
    print(f"SKERRY_TEST_KILLS={KILLS} SKERRY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    async with cluster(workers=2) as made:
        await made.seed(range(2, 4), lambda number: ITEMS if number == 2 else COUNTED)
        await made.release(2)
        await made.converged(2)
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await rows(made, f"UPDATE items SET n = n + 1 WHERE id = {chance.randint(1, ROWS)}")
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await made.release(3)
            for number in range(KILLS):
                victim = chance.choice(["applier", "applier", "front", "zygote", "control"])
                made.doing = f"kill {number + 1} of {KILLS}: {victim}"
                point = chance.choice(["edge.batch.before", "edge.batch.after", "edge.step.before", "edge.step.after"])
                if victim == "applier":
                    made.arm(point, "kill")
                    await asyncio.sleep(chance.uniform(0.0, 0.3))
                    made.disarm()
                else:
                    await asyncio.sleep(chance.uniform(0.0, 0.3))
                    # A zygote whose front was killed goes by itself.
                    with contextlib.suppress(ProcessLookupError):
                        if pid := victims(made)[victim]:
                            os.kill(pid, signal.SIGKILL)
                status = await made.status()
                if status and status["failed_generation"] and not status["report_waits"]:
                    await made.call("POST", "/v1/nodes/edge-1/retry")
            made.doing = "the end"
            await made.converged(3, hurry=True)
            stop.set()

        async def done() -> bool:
            status = await made.status()
            return bool(status and not status["database"]["steps"]["unfinished"])

        await made.until("what comes after the flip is done", done)
        found = await rows(made, "SELECT count(*), sum(times = 1), sum(flipped = 2) FROM items")
        made.check(found == [[ROWS, ROWS, ROWS]], f"rows, changed once before the flip, once behind it: {found}")
        made.check_ends()
