"""What does batching save? CPU with one transaction per heartbeat over ours, at 1,000 nodes.

Both write the same rows of the same database: one by one, in the cheapest possible transaction (a single autocommitted
UPDATE, 16 connections at once), and as control's `Heartbeats` does it once a second. The CPU is the client's and the
database's, including all of its processes. Receiving a heartbeat is the same for both and isn't measured.
"""

import asyncio
import time
from datetime import UTC, datetime
from statistics import median
from typing import Any
from uuid import uuid4

import asyncpg
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import database_and_keys, folder
from control.clock import SystemClock
from control.metrics import ControlMetrics
from control.storage import database
from control.sync.heartbeats import Heartbeats

BAR = 10
NODES = 1000
CONNECTIONS = 16
ROUNDS = 6
FLUSHES = 5
"""Seconds of a fleet's life that one of our rounds represents."""

ALONE = "UPDATE node_presence SET last_seen_at = $2, last_sync_at = $2 WHERE node_id = $1"


async def main() -> None:
    machine = cpu.machine()
    async with folder() as where, database_and_keys(where) as (services, _, _):
        pool = await asyncpg.create_pool(services.metadata_url, min_size=CONNECTIONS, max_size=CONNECTIONS)
        db = await database.connect(services.metadata_url, connections=CONNECTIONS)
        try:
            nodes = await _make_nodes(pool)
            presence = Heartbeats(db, SystemClock(), ControlMetrics())
            server = services.metadata.pid
            # Once for one-time work: statement plans, caches.
            await _alone(pool, nodes, server)
            await _batched(presence, pool, nodes, server)
            rounds = [
                (await _alone(pool, nodes, server), await _batched(presence, pool, nodes, server))
                for _ in range(ROUNDS)
            ]
        finally:
            await pool.close()
            await db.close()
    alone, ours = ([pair[side] for pair in rounds] for side in (0, 1))
    ratio = median(sum(a) / sum(b) for a, b in rounds)
    details = {
        "alone_client_us": round(median(client for client, _ in alone), 1),
        "alone_database_us": round(median(server for _, server in alone), 1),
        "ours_client_us": round(median(client for client, _ in ours), 2),
        "ours_database_us": round(median(server for _, server in ours), 2),
        "ratios": [round(sum(a) / sum(b), 1) for a, b in rounds],
        "nodes": NODES,
        "machine": machine,
    }
    result.write("heartbeat", ratio, BAR, details)


async def _make_nodes(pool: asyncpg.Pool) -> list[str]:
    """Write the rows of nodes that have joined."""
    ids = [uuid4() for _ in range(NODES)]
    now = datetime.now(UTC)
    group = await pool.fetchval("SELECT id FROM groups WHERE name = 'default'")
    await pool.executemany(
        "INSERT INTO nodes (id, name, group_id, state, state_since, joined_at) VALUES ($1, $2, $3, 'online', $4, $4)",
        [(id, f"node-{number}", group, now) for number, id in enumerate(ids)],
    )
    await pool.executemany("INSERT INTO node_presence (node_id) VALUES ($1)", [(id,) for id in ids])
    return [str(id) for id in ids]


async def _alone(pool: asyncpg.Pool, nodes: list[str], server: int) -> tuple[float, float]:
    """Write each node's heartbeat in a separate transaction; return the CPU µs of one, for client and database."""
    started = datetime.now(UTC)
    left = iter(nodes)

    async def some() -> None:
        async with pool.acquire() as connection:
            for id in left:
                # At SERIALIZABLE even these conflict now and then (they share pages), and are retried.
                while not await _record(connection, id):
                    pass

    before = time.process_time(), cpu.tree(server)
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(some())
    used = time.process_time() - before[0], cpu.tree(server) - before[1]
    await _check(pool, started)
    return used[0] / NODES * 1e6, used[1] / NODES * 1e6


async def _record(connection: Any, id: str) -> bool:
    try:
        return await connection.execute(ALONE, id, datetime.now(UTC)) == "UPDATE 1"
    except asyncpg.SerializationError:
        return False


async def _batched(presence: Heartbeats, pool: asyncpg.Pool, nodes: list[str], server: int) -> tuple[float, float]:
    """Write each node's heartbeats as control does; return the same as `_alone`."""
    before = time.process_time(), cpu.tree(server)
    for _ in range(FLUSHES):
        started = datetime.now(UTC)
        for id in nodes:
            presence.confirmed(id, started)
        await presence.flush()
    used = time.process_time() - before[0], cpu.tree(server) - before[1]
    await _check(pool, started)
    return used[0] / NODES / FLUSHES * 1e6, used[1] / NODES / FLUSHES * 1e6


async def _check(pool: asyncpg.Pool, since: datetime) -> None:
    """Check that every node's row was written."""
    written = await pool.fetchval("SELECT count(*) FROM node_presence WHERE last_sync_at >= $1", since)
    assert written == NODES, f"{written} of {NODES} heartbeats were written"


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
