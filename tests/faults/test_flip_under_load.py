"""Releases as fast as they converge, while clients call, write and read slowly: none of them notices."""

import os

import pytest

from tests.support.cluster import WRITE, Cluster, cluster
from tests.support.load import Load, check_writes

RELEASES = int(os.environ.get("SKERRY_TEST_RELEASES", "3"))
CLIENTS = 28 if RELEASES > 10 else 12
"""That call `version`."""


def failing(number: int) -> bool:
    """Every third release's schema change fails on the node's data."""
    return number % 3 == 0


def change(number: int, *, amended: bool = False) -> str:
    """Makes the table on which the next release fails, or fails on what the node has in it."""
    sql = f"UPDATE generation SET number = {number};"
    if failing(number + 1):
        sql += f"CREATE TABLE twins_{number + 1} (n INTEGER);"
    if failing(number):
        sql += f"DELETE FROM twins_{number};" if amended else ""
        sql += f"CREATE UNIQUE INDEX only_{number} ON twins_{number} (n);"
    return sql


@pytest.mark.timeout(600)
async def test_releases_under_load() -> None:
    async with cluster(workers=3) as made:
        await made.seed(range(2, RELEASES + 2), change)
        async with Load(made, versions=CLIENTS, writers=3, readers=2, pause=0.04, slow=300) as load:
            for number in range(2, RELEASES + 2):
                made.doing = f"release {number} is made"
                if failing(number):
                    await _fails(made, load, number)
                else:
                    await made.release(number)
                    await made.converged(number)
                    await load.progress(number)
                load.check()
                made.check(not load.failures, f"calls failed: {load.failures[:5]}")
        load.check()
        made.check(not load.failures, f"calls failed: {load.failures[:5]}")
        await check_writes(made, load)
        assert load.written
        assert load.answered > 20 * RELEASES
        made.check_ends()
        assert made.front.starts == 1


async def _fails(made: Cluster, load: Load, number: int) -> None:
    """The release's schema change fails on the node's rows, and is amended; until the next one the old one serves."""
    twins = f'{{"sql": "INSERT INTO twins_{number} VALUES (1), (1)"}}'.encode()
    status, _, body = await made.ask(f"/functions/{WRITE}", twins)
    assert status == 200, body
    assert b'"changes":2' in body, body
    await made.release(number)

    async def told() -> bool:
        node = await made.node()
        return bool(node["error"] and node["error"]["code"] == "schema_change_failed" and node["state"] == "online")

    await made.until(f"control knows that release {number} failed", told)
    answered = load.answered

    async def serves() -> bool:
        load.check()
        return load.answered > answered + 10

    await made.until("the old release serves on", serves)
    assert load.highest == number - 1
    await made.call(
        "POST", f"/v1/schema-changes/{number}/revisions", {"sql": change(number, amended=True), "allow_loss": True}
    )
