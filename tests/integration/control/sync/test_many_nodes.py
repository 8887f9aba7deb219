"""A large fleet: what control does all the time reads only the nodes that it concerns."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from control import tokens
from control.clock import SystemClock
from control.local.pki import Pki
from control.storage import queries
from control.sync import monitor
from tests.support import many_nodes, replica
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Site
from tests.support.services import ServerUrls, drop_bucket, drop_database, fresh_bucket

NOW = datetime.now(UTC).replace(microsecond=0)
NODES = int(os.environ.get("SKERRY_TEST_FLEET", "20000"))
IDS = [str(uuid4()) for _ in range(NODES // 2000)]
"""So small a share of the nodes that PostgreSQL reads them by an index, and all nodes where there is none."""
ONE = IDS[:1]
TIMES = [NOW.isoformat()] * len(IDS)
BOOTS = [""] * len(IDS)

MAIN: dict[tuple[str, str], tuple[Any, ...]] = {
    ("fleet", "epoch"): ("mark x",),
    ("fleet", "announced"): (),
    ("fleet", "groups_since"): (0,),
    ("fleet", "nodes_since"): (0,),
    ("fleet", "credentials_since"): (0,),
    ("fleet", "operators_since"): (0,),
    ("fleet", "nodes_by_id"): (IDS,),
    ("fleet", "credentials_by_id"): (IDS,),
    ("heartbeats", "lock_free"): (IDS,),
    ("heartbeats", "seen"): (IDS, TIMES, BOOTS, NOW),
    ("heartbeats", "confirmed"): (IDS, TIMES, BOOTS, NOW),
    ("monitor", "unseen"): (NOW - timedelta(seconds=75), monitor.PAGE),
    ("monitor", "seen_again"): (NOW - timedelta(seconds=75), monitor.PAGE),
    ("monitor", "lock_unseen"): (IDS, NOW),
    ("monitor", "lock_seen_again"): (IDS, NOW),
    ("monitor", "lock_free"): (IDS,),
    ("monitor", "change_states"): (IDS, "offline", NOW),
    ("monitor", "set_offline"): (IDS, True),
    ("monitor", "overdue"): (NOW - timedelta(seconds=300), monitor.PAGE),
    ("monitor", "overdue_no_more"): (NOW - timedelta(seconds=300), monitor.PAGE),
    ("monitor", "lock_overdue"): (IDS, NOW),
    ("monitor", "lock_overdue_no_more"): (IDS, NOW),
    ("monitor", "set_overdue"): (IDS, True),
    ("monitor", "clear_warnings"): (IDS, NOW, "overdue"),
    ("monitor", "crossing"): (NOW - timedelta(minutes=1), monitor.PAGE),
    ("monitor", "crossing_no_more"): (NOW - timedelta(minutes=5), monitor.PAGE),
    ("monitor", "lock_crossing"): (IDS, NOW),
    ("monitor", "lock_crossing_no_more"): (IDS, NOW),
    ("monitor", "set_cloned"): (IDS, True),
    ("monitor", "expired"): (NOW, 500),
    ("monitor", "old_credentials"): (NOW - timedelta(days=35), 500),
    ("future_times", "found"): (NOW + timedelta(seconds=10), NOW + timedelta(seconds=70)),
    ("syncs", "nodes"): (IDS,),
    ("syncs", "lock_free_nodes"): (IDS,),
    ("syncs", "node_functions"): (IDS,),
    ("syncs", "delete_functions"): (IDS,),
    ("syncs", "open_syncs"): (IDS,),
    ("syncs", "syncs"): (IDS,),
    ("compatibility", "next_capabilities"): (IDS[0], ""),
    ("compatibility", "with_digest"): (IDS[0], "c", 20),
    ("node_views", "nodes"): ("n1", *(None,) * 8, False, None, None, None, NOW, 300.0, 3.0, 100),
    ("node_views", "functions"): (IDS,),
    ("node_views", "warnings"): (IDS,),
    ("node_views", "open_syncs"): (IDS,),
    ("nodes", "find_by_name"): ("n1",),
    ("nodes", "revoke_credentials"): (uuid4(), NOW),
}
"""The statements of heartbeats, polls, syncs, the monitor, a release and a page of nodes, with arguments."""
pytestmark = pytest.mark.timeout(600)
LARGE = re.compile(r"Seq Scan on (nodes|node_presence|node_functions|credentials)\b")


@pytest.fixture(scope="module")
def fleet(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose database has `NODES` nodes."""
    with asyncio.Runner() as runner:
        database_url = runner.run(services.fresh_database())
        bucket_url = runner.run(fresh_bucket(services.artifacts_url))
        try:
            site = runner.run(replica.prepare(database_url, bucket_url, pki, tmp_path_factory.mktemp("spool")))
            runner.run(_fill(services, database_url))
            yield site
        finally:
            runner.run(drop_bucket(bucket_url))
            runner.run(drop_database(services.metadata_url, database_url))


def postgresql(services: ServerUrls, url: str) -> str:
    """Return the database's URL past the proxy that plays CockroachDB."""
    return services.past_proxy(url, "it is filled, and its plans are read, by what PostgreSQL alone has")


async def _fill(services: ServerUrls, url: str) -> None:
    connection = await asyncpg.connect(postgresql(services, url))
    try:
        await many_nodes.add(connection, NOW, NODES)
    finally:
        await connection.close()


@pytest.fixture
async def connection(services: ServerUrls, fleet: Site) -> AsyncIterator[Any]:
    made = await asyncpg.connect(postgresql(services, fleet.settings.metadata_url))
    yield made
    await made.close()


async def test_no_main_statement_reads_all_nodes(connection: Any) -> None:
    plans = {}
    for (module, name), arguments in MAIN.items():
        plan = await connection.fetch(f"EXPLAIN {queries.load(module)[name]}", *arguments)
        plans[f"{module}.{name}"] = "\n".join(row[0] for row in plan)
    assert {name: plan for name, plan in plans.items() if LARGE.search(plan)} == {}


async def test_the_test_finds_a_statement_that_reads_all_nodes(connection: Any) -> None:
    plan = await connection.fetch("EXPLAIN SELECT id FROM nodes WHERE state = 'offline'")
    assert LARGE.search("\n".join(row[0] for row in plan))


async def test_a_replica_starts_without_reading_the_nodes_and_learns_each_when_it_asks(fleet: Site) -> None:
    async with fleet.running() as started:
        memory = started.services.fleet
        assert len(memory.nodes) == len(memory.credentials) == 0
        node = await started.join("one")
        assert (await node.poll()).status == 204
        assert list(memory.nodes) == [node.id]
        # One that joined before this replica was started.
        token = tokens.new_token("node")
        await started.services.db.transaction(
            lambda conn: conn.execute(
                "INSERT INTO credentials (id, node_id, secret_hash, created_at, first_used_at)"
                " SELECT $1, id, $2, $3, $3 FROM nodes WHERE name = 'n7'",
                token.id,
                token.secret_hash,
                SystemClock().now(),
            )
        )
        before = replica.TestNode(started, "", token.text)
        assert (await before.poll()).status in (200, 204)
        assert len(memory.nodes) == 2


async def test_a_mass_outage_is_recorded_in_one_pass(fleet: Site) -> None:
    """And its end likewise."""
    count = max(NODES * 6 // 100, 2 * monitor.PAGE + 1)
    clock = SetClock(NOW)
    async with fleet.running(clock=clock) as started:
        db = started.services.db

        async def counts(conn: Any) -> tuple[int, int]:
            offline = await conn.fetchval("SELECT count(*) FROM nodes WHERE state = 'offline'")
            warned = await conn.fetchval("SELECT count(*) FROM warnings WHERE cleared_at IS NULL AND kind = 'overdue'")
            return offline, warned

        async def heard(conn: Any, at: datetime) -> None:
            # That many rows in one statement are the test's alone: the program's limit isn't for it.
            await conn.execute("SET LOCAL statement_timeout = 0")
            some = f"SELECT id FROM nodes ORDER BY id LIMIT {count}"
            update = f"UPDATE node_presence SET last_seen_at = $1, confirmed_at = $1 WHERE node_id IN ({some})"
            await conn.execute(update, at, timeout=600)

        passes = started.services.monitor()
        await db.transaction(lambda conn: heard(conn, NOW - timedelta(minutes=10)))
        await passes.look(NOW)
        assert await db.read(counts) == (count, count)
        await db.transaction(lambda conn: heard(conn, NOW))
        await passes.look(NOW)
        assert await db.read(counts) == (0, 0)


async def test_ended_credentials_are_deleted_after_a_time(fleet: Site) -> None:
    clock = SetClock(NOW)
    async with fleet.running(clock=clock) as started:
        ended = "SELECT count(*) FROM credentials WHERE revoked_at IS NOT NULL"

        async def some(conn: Any) -> None:
            """The others would take long to delete."""
            await conn.execute(
                "UPDATE credentials SET revoked_at = revoked_at - interval '36 days' WHERE id IN"
                " (SELECT id FROM credentials WHERE revoked_at IS NOT NULL ORDER BY id LIMIT 1200)"
            )

        before = await started.services.db.read(lambda conn: conn.fetchval(ended))
        await started.services.db.transaction(some)
        passes = started.services.monitor()
        async with deadline(300):
            # A slow machine doesn't come to the end of it in one pass.
            while not await passes.retention(NOW):
                pass
        assert await started.services.db.read(lambda conn: conn.fetchval(ended)) == before - 1200
