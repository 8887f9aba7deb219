"""Statements that lock what nobody else has locked read no other rows: CockroachDB locks each row that they read."""

import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from control.storage import queries
from tests.support.services import ServerUrls

LOCKING = [
    (path.stem, name)
    for path in sorted((queries.folder() / "queries").glob("*.sql"))
    for name, text in queries.load(path.stem).items()
    if "SKIP LOCKED" in text
]
READS = re.compile(r"(Seq Scan|Index Scan|Index Only Scan|Bitmap Index Scan)\b.*?(?=->|\Z)", re.DOTALL)


@pytest.fixture
async def connection(services: ServerUrls, database_url: str) -> AsyncIterator[Any]:
    url = services.past_proxy(database_url, "its plans are read by what PostgreSQL alone has")
    made = await asyncpg.connect(url, statement_cache_size=0)
    # Where an index serves at all it is taken, however small the tables are.
    await made.execute("SET plan_cache_mode = force_generic_plan")
    for method in ("seqscan", "hashjoin", "mergejoin"):
        await made.execute(f"SET enable_{method} = off")
    # Many open syncs: else one index of them is as good as another.
    await made.execute("SET session_replication_role = replica")
    await made.execute(
        "INSERT INTO syncs (node_id, release_id, generation, status, started_at, lease_until)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 1, 'running', now(), now() FROM generate_series(1, 3000)"
    )
    await made.execute("ANALYZE syncs")
    yield made
    await made.close()


def unbounded(plan: str) -> list[str]:
    """The parts of a plan that read a whole table, or a whole index."""
    return [found[0] for found in READS.finditer(plan) if "Index Cond" not in found[0]]


async def plan_of(connection: Any, text: str) -> str:
    """How it is carried out whatever its arguments are."""
    await connection.execute(f"DEALLOCATE ALL; PREPARE it AS {text}")
    arguments = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", text))))
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE it ({arguments})"))


async def test_each_reads_chosen_rows_by_an_index(connection: Any) -> None:
    assert len(LOCKING) > 10
    plans = {one: await plan_of(connection, queries.load(one[0])[one[1]]) for one in LOCKING}
    # What else it asks is asked of rows that were found before, without a lock, and are given by their ids.
    assert {one: plan for one, plan in plans.items() if unbounded(plan) or "id = ANY" not in plan} == {}


async def test_the_test_finds_those_that_read_more(connection: Any) -> None:
    for text in (
        "SELECT id FROM artifacts WHERE created_at < $1::timestamptz FOR NO KEY UPDATE SKIP LOCKED",
        "SELECT id FROM nodes WHERE joined_at > $1 OR state_since > $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
    ):
        assert unbounded(await plan_of(connection, text))
