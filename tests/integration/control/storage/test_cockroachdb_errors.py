"""CockroachDB's own errors, sent by the proxy: what is lost, what is done again, and what can't be known."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest

from control.local.pki import Pki
from control.problems import ProblemError
from control.storage import database
from control.storage.database import Database, UnknownCommit
from tests.support import cockroachdb
from tests.support.cockroachdb import Proxy
from tests.support.cockroachdb_rules import Refused
from tests.support.cockroachdb_session import AMBIGUOUS, RESTART
from tests.support.control import running

RANGE_UNAVAILABLE = Refused("58C00", "replica unavailable: (n1,s1):1 unable to serve request")
NODE_GONE = Refused("58C01", "communication error: rpc error: code = Unavailable desc = transport is closing")
DRAINING = Refused("57P01", "server is shutting down")
UNCATEGORIZED = Refused("XXUUU", "an error that nobody has given a code")


@pytest.fixture
async def through(empty_database_url: str) -> AsyncIterator[tuple[Proxy, Database]]:
    """A proxy before a database with the table `done`, and the database through it."""
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("CREATE TABLE done (n INT8)")
    await connection.close()
    async with cockroachdb.proxied(empty_database_url) as (proxy, url):
        db = await database.connect(url)
        yield proxy, db
        await db.close()


async def write(conn: Any) -> None:
    """Without a key: what is done twice is there twice."""
    await conn.execute("INSERT INTO done VALUES ($1)", 1)


async def done(db: Database) -> int:
    found: int = await db.read(lambda conn: conn.fetchval("SELECT count(*) FROM done"))
    return found


@pytest.mark.parametrize(
    "error", [RANGE_UNAVAILABLE, NODE_GONE, DRAINING, AMBIGUOUS, RESTART], ids=lambda e: e.sqlstate
)
async def test_a_statement_that_fails_is_done_again_with_its_transaction(
    through: tuple[Proxy, Database], error: Refused
) -> None:
    proxy, db = through
    proxy.errors.next_statements = [error, error]
    await db.transaction(write)
    assert (proxy.errors.next_statements, await done(db)) == ([], 1)


@pytest.mark.parametrize("error", [RANGE_UNAVAILABLE, NODE_GONE, DRAINING], ids=lambda e: e.sqlstate)
async def test_a_range_that_stays_away_is_a_database_that_cannot_be_reached(
    through: tuple[Proxy, Database], error: Refused
) -> None:
    proxy, db = through
    proxy.errors.next_statements = [error] * 100
    with pytest.raises(ProblemError) as away:
        await db.transaction(write)
    assert (away.value.code, away.value.status) == ("database_unavailable", 503)
    proxy.errors.next_statements = []
    assert await done(db) == 0


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("error", [AMBIGUOUS, RANGE_UNAVAILABLE, NODE_GONE, UNCATEGORIZED], ids=lambda e: e.sqlstate)
async def test_after_an_error_at_commit_it_is_not_known_and_not_done_again(
    through: tuple[Proxy, Database], error: Refused, saved: bool
) -> None:
    proxy, db = through
    proxy.errors.next_commits = [(error, saved)]
    with pytest.raises(UnknownCommit):
        await db.transaction(write)
    assert await done(db) == int(saved)
    await db.transaction(write)
    assert await done(db) == int(saved) + 1


async def test_a_transaction_that_is_restarted_at_commit_is_done_again(through: tuple[Proxy, Database]) -> None:
    proxy, db = through
    proxy.errors.next_commits = [(RESTART, False)] * 3
    await db.transaction(write)
    assert (proxy.errors.next_commits, await done(db)) == ([], 1)


@pytest.mark.parametrize("error", [AMBIGUOUS, RESTART, RANGE_UNAVAILABLE], ids=lambda e: e.sqlstate)
async def test_what_only_reads_is_read_again(through: tuple[Proxy, Database], error: Refused) -> None:
    proxy, db = through
    proxy.errors.next_commits = [(error, True)]
    assert await done(db) == 0
    assert proxy.errors.next_commits == []


@pytest.mark.parametrize("saved", [False, True])
async def test_an_operator_is_told_and_asks_again_under_the_same_key(
    database_url: str, bucket_url: str, pki: Pki, saved: bool
) -> None:
    async with (
        cockroachdb.proxied(database_url) as (proxy, url),
        running(url, bucket_url, pki) as control,
    ):
        key, body = str(uuid4()), {"name": "apart"}
        # Other transactions, which run beside, must not take the error.
        proxy.errors.next_after = "INSERT INTO groups"
        proxy.errors.next_commits = [(AMBIGUOUS, saved)]
        headers = {"authorization": f"Bearer {control.token}", "idempotency-key": key}
        headers["content-type"] = "application/json"
        data = orjson.dumps(body)
        async with control.session.post(f"{control.url}/v1/groups", data=data, headers=headers) as answer:
            told = await answer.json()
            assert (answer.status, told["code"]) == (503, "commit_unknown")
            assert answer.headers["retry-after"]
        assert (await control.call("POST", "/v1/groups", body, key=key)).status == 201
        assert (await control.call("POST", "/v1/groups", body)).code == "name_taken"
        created = [entry for entry in await control.items("/v1/audit") if entry["target"] == "apart"]
        assert len(created) == 1
