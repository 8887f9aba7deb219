"""The database in memory does what PostgreSQL does: runs give both every statement, and both hold the same rows."""

import asyncio

import pytest

from tests.support.simulation.postgres import Postgres
from tests.support.simulation.runs import Result, run

SEEDS = (16, 8, 7, 11)
"""They have each statement that the first 24 have, with an answer and without one."""


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_run_on_postgresql_is_the_same_and_leaves_the_same_rows(seed: int, database_url: str) -> None:
    def on_postgresql() -> tuple[Result, int, int]:
        with Postgres(database_url) as postgres:
            result = run(seed, mirror=postgres)
            return result, postgres.compare(result.tables), postgres.statements

    result, rows, statements = await asyncio.to_thread(on_postgresql)
    if seed == SEEDS[0]:
        assert result.digest == (await asyncio.to_thread(run, seed)).digest
    assert rows > 100
    assert statements > 500
