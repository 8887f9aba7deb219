"""The metadata database is killed under transactions: each is done once or not at all, and its caller is told."""

import asyncio
import random
from collections import Counter
from typing import Any

from control.problems import ProblemError
from control.storage import database
from tests.support.edge import until
from tests.support.services import OwnServers, drop_database, fresh_database

KILLS = 4


async def test_the_database_is_killed_under_transactions(own_services: OwnServers) -> None:
    server = own_services.processes.metadata
    url = await fresh_database(own_services.metadata_url)
    db = await database.connect(url, connections=12)
    chance = random.Random(3)
    outcomes: dict[int, str] = {}
    stopping = False

    async def client(number: int) -> None:
        turn = 0
        while not stopping:
            turn += 1
            name = number * 1_000_000 + turn

            async def work(conn: Any, name: int = name) -> None:
                await conn.fetchval("SELECT count(*) FROM pg_class")
                await conn.execute("INSERT INTO done VALUES ($1)", name)

            try:
                await db.transaction(work)
                outcomes[name] = "done"
            except ProblemError as problem:
                outcomes[name] = problem.code
            await asyncio.sleep(chance.uniform(0, 0.02))

    try:
        # Nothing that a transaction does here can conflict: without a key, one that is done twice shows.
        await db.transaction(lambda conn: conn.execute("CREATE TABLE done (name BIGINT)"))
        clients = [asyncio.ensure_future(client(number)) for number in range(12)]
        for _ in range(KILLS):
            # However slow the machine is, it was well in between.
            done = Counter(outcomes.values())["done"]
            await until(lambda done=done: Counter(outcomes.values())["done"] > done)
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            await server.kill()
            await server.start()
        stopping = True
        await asyncio.gather(*clients)
        rows = await db.read(lambda conn: conn.fetch("SELECT name FROM done"))
        there = Counter(row["name"] for row in rows)
    finally:
        await db.close()
        await drop_database(own_services.metadata_url, url)
    assert set(outcomes.values()) <= {"done", "commit_unknown", "database_unavailable"}, Counter(outcomes.values())
    assert max(there.values()) == 1
    done = {name for name, outcome in outcomes.items() if outcome == "done"}
    assert done <= there.keys()
    assert {outcomes[name] for name in there.keys() - done} <= {"commit_unknown"}
