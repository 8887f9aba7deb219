"""The alerts about a node's disk and database: without room, with a log that can't be moved, held by others."""

import asyncio
import os
import shutil

import orjson
import pytest

from edge_runtime import wal
from tests.integration.edge_runtime.cli.test_backup import holder
from tests.support.cluster import WRITE
from tests.support.deadlines import deadline
from tests.support.watched import LIMIT, LOG_LIMIT, ROOM, Watched, repeating

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_disk_fills(watched: Watched) -> None:
    filled = watched.cluster.folder / "filled"
    size = int(shutil.disk_usage(watched.cluster.folder).free * 2 * ROOM)
    with filled.open("wb") as file:
        await asyncio.to_thread(os.posix_fallocate, file.fileno(), 0, size)
    try:
        await watched.tell_now()
        await watched.fires("SkerryEdgeDiskLow", "SkerryGroupDiskLow")
    finally:
        filled.unlink()
    await watched.tell_now()
    await watched.ends("SkerryEdgeDiskLow", "SkerryGroupDiskLow")


async def test_a_long_read_keeps_the_log_from_being_moved(watched: Watched) -> None:
    database = watched.cluster.folder / "edge" / wal.FILE
    async with holder(database, "BEGIN", "SELECT count(*) FROM written"):
        text = "substr(replace(hex(zeroblob(500)), '00', 'ab'), 1, 1000)"
        rows = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100)"
        number = 0
        # The metric is some seconds old: the log may be at its limit before it says so, and refuse what is written.
        async with deadline(LIMIT):
            while await watched.metric("skerry_edge_wal_bytes") < 0.6 * LOG_LIMIT:
                number += 1
                sql = f"INSERT INTO written {rows} SELECT {number} || '-' || x || {text} FROM c"
                if await watched.call(WRITE, orjson.dumps({"sql": sql})) != 200:
                    await asyncio.sleep(0.2)
        await watched.tell_now()
        await watched.fires("SkerryEdgeLogLong", "SkerryGroupLogLong")
    delete = orjson.dumps({"sql": "DELETE FROM written WHERE id LIKE '%-%'"})
    async with deadline(LIMIT):
        while await watched.call(WRITE, delete) != 200:
            await asyncio.sleep(0.2)
    await watched.ends("SkerryEdgeLogLong")
    await watched.tell_now()
    await watched.ends("SkerryGroupLogLong")


async def test_another_program_holds_the_database(watched: Watched) -> None:
    database = watched.cluster.folder / "edge" / wal.FILE
    delete = orjson.dumps({"sql": "DELETE FROM written"})
    async with holder(database, "BEGIN IMMEDIATE"), repeating(lambda: watched.call(WRITE, delete)):
        await watched.fires("SkerryEdgeDatabaseHeld")
    await watched.ends("SkerryEdgeDatabaseHeld")
