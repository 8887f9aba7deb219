"""The connection to the metadata database is cut at each message of a join, a poll, a push, a release and a report.

Whoever asked asks again, as nodes and operators do: each is answered as if nothing had been, and nothing is there twice
or missing. The messages of an operation are those of one that isn't disturbed: BEGIN, each statement's preparing and
running, COMMIT, and what the database answers to each. `just faults` cuts at each of them, `just test` at every third
group of them that is sent together, and goes on until a COMMIT's answer was among them.
"""

import asyncio
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from control.edge_check import OperatorChecks
from control.protocol import wire
from control.storage import batched_lookups, database
from control.sync import fleet_cache
from tests.support import cockroachdb, seeds
from tests.support.cockroachdb import Proxy
from tests.support.control import module
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, Site, TestNode, plan_of
from tests.support.services import ServerUrls

AGAIN = ("commit_unknown", "database_unavailable", "database_busy")
EACH = int(os.environ.get("SKERRY_TEST_KILLS", "25")) >= 100
STEP = 1 if EACH else 3
"""From one cut to the next. An odd number: what is asked and what is answered take turns."""
MOST = 1000
"""Runs of an operation at most."""

pytestmark = pytest.mark.timeout(900)


@dataclass
class Sweep:
    """A replica behind a proxy, and what has been done to it."""

    replica: Replica
    proxy: Proxy
    metadata: asyncpg.Connection
    told: dict[str, int] = field(default_factory=dict)
    """How often each code was answered."""

    async def call(self, method: str, path: str, body: Any = None, *, token: str | None = None, key: str = "") -> Any:
        """Ask until there is an answer that isn't "ask again"."""
        headers = {"authorization": f"Bearer {token or self.replica.admin}"}
        if key:
            headers["idempotency-key"] = key
        data = body
        if not isinstance(body, bytes):
            headers["content-type"] = "application/json"
            data = None if body is None else wire.canonical(body)
        async with deadline(60):
            while True:
                async with self.replica.session.request(
                    method, self.replica.url + path, data=data, headers=headers
                ) as answer:
                    found = Answered(answer.status, {}, await answer.read())
                if found.status != 503:
                    assert found.status < 300, (method, path, found)
                    return found
                code = found.json()["code"]
                assert code in AGAIN, found
                self.told[code] = self.told.get(code, 0) + 1

    async def each(self, operation: Callable[[int], Awaitable[None]]) -> int:
        """Run `operation` with the connection cut at its first message, at another behind it and so on, and at last
        uncut; return how often it ran. It is given the number of its run, from 1.

        On a busy machine messages come together or apart, so that a number may be another message each time: where
        nobody was told that a COMMIT's outcome is unknown, the numbers between them are tried, and all once more.
        """
        first = at = 1
        for n in range(1, MOST + 1):
            self.proxy.messages, self.proxy.cuts, self.proxy.cut_at = 0, 0, at
            await operation(n)
            at += STEP
            if not self.proxy.cuts:
                self.proxy.cut_at = None
                if "commit_unknown" in self.told:
                    return n
                first = at = first % STEP + 1
        raise AssertionError(f"after {MOST} runs: {self.told}")

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        return [tuple(row) for row in await self.metadata.fetch(sql, *arguments)]


@pytest.fixture
async def sweep(
    control_site: Site, services: ServerUrls, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sweep]:
    """Nothing runs beside the requests, and every statement is prepared anew: an operation's messages are the same."""

    async def nothing(_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(fleet_cache.FleetCache, "run", nothing)
    monkeypatch.setattr(fleet_cache, "STALE_AFTER", 1e6)
    monkeypatch.setattr(batched_lookups, "PAUSE", 0.0)
    monkeypatch.setattr(database, "FIRST_PAUSE", 0.001)
    create_pool = functools.partial(asyncpg.create_pool, statement_cache_size=0)
    monkeypatch.setattr(asyncpg, "create_pool", create_pool)

    async def fits(*_: object) -> dict[str, Any]:
        return {"ok": True, "abi": "wagi", "memory_pages": 1}

    monkeypatch.setattr(OperatorChecks, "module", fits)
    metadata = await asyncpg.connect(database_url)
    async with (
        cockroachdb.proxied(control_site.settings.metadata_url, plain=True) as (proxy, url),
        # A sync that waits for its turn isn't expired meanwhile, however slow the machine is.
        control_site.at(url).running(sync_lease=3600.0) as replica,
    ):
        proxy.together = not EACH
        yield Sweep(replica, proxy, metadata)
    await metadata.close()


async def test_a_join(sweep: Sweep) -> None:
    tokens: list[str] = []
    for _ in range(500 if EACH else 130):
        tokens.append((await sweep.replica.call("POST", "/v1/join-tokens", {"group": "default"})).json()["token"])
    joined: dict[int, Any] = {}

    async def join(n: int) -> None:
        body = wire.Join(f"node-{n}", str(uuid4()))
        joined[n] = (await sweep.call("POST", "/v1/nodes", body, token=tokens[n])).json()

    count = await sweep.each(join)
    found = await sweep.rows("SELECT id::text, name FROM nodes ORDER BY joined_at")
    assert dict(found) == {joined[n]["node_id"]: f"node-{n}" for n in range(1, count + 1)}
    good = await sweep.rows("SELECT node_id::text, id::text FROM credentials WHERE revoked_at IS NULL")
    assert sorted(good) == sorted((j["node_id"], j["credential"].split("_")[1]) for j in joined.values())
    assert await sweep.rows("SELECT count(*) FROM node_presence") == [(count,)]


async def test_a_poll(sweep: Sweep) -> None:
    await seeds.function(sweep.replica, "f")
    await seeds.release(sweep.replica, functions={"f": 1})
    nodes = await seeds.nodes(sweep.replica, 300)
    plans: dict[str, wire.Plan] = {}

    async def poll(n: int) -> None:
        node = nodes[n]
        body = wire.Poll(generation=0, digest=wire.digest(node.inventory), wait=0.0)
        plans[node.id] = plan_of(await sweep.call("POST", "/v1/poll", body, token=node.credential))

    count = await sweep.each(poll)
    syncs = await sweep.rows("SELECT node_id::text, id::text, status FROM syncs")
    assert sorted(syncs) == sorted((node, plan.sync_id, "running") for node, plan in plans.items())
    assert len(plans) == count
    assert await sweep.rows("SELECT count(*) FROM nodes WHERE state = 'syncing'") == [(count,)]


async def test_a_push(sweep: Sweep) -> None:
    made: dict[int, tuple[str, int]] = {}

    async def push(n: int) -> None:
        wasm = module(str(n))
        sha256, key = hashlib.sha256(wasm).hexdigest(), str(uuid4())
        await sweep.call("PUT", f"/v1/artifacts/{sha256}", wasm)
        body = {"sha256": sha256, "manifest": {}}
        made[n] = sha256, (await sweep.call("POST", "/v1/functions/f/versions", body, key=key)).json()["version"]

    count = await sweep.each(push)
    assert sorted(version for _, version in made.values()) == list(range(1, count + 1))
    assert await sweep.rows("SELECT sha256, version FROM function_versions ORDER BY version") == list(made.values())
    ready = await sweep.rows("SELECT sha256, id::text FROM artifacts WHERE state = 'ready'")
    assert sorted(sha256 for sha256, _ in ready) == sorted(sha256 for sha256, _ in made.values())
    store = sweep.replica.services.store
    for sha256, id in ready:
        assert await store.head(f"{sha256}/{id}") is not None
    assert await sweep.rows("SELECT count(*) FROM audit WHERE action = 'function.push'") == [(count,)]


async def test_a_release(sweep: Sweep) -> None:
    for _ in range(2):
        await seeds.function(sweep.replica, "f")

    async def release(n: int) -> None:
        body = {"functions": {"f": 1 + n % 2}}
        made = (await sweep.call("POST", "/v1/releases", body, key=str(uuid4()))).json()
        assert (made["number"], made["generation"]) == (n, n)
        [group] = sweep.replica.services.fleet.groups.values()
        assert group.generation == n

    count = await sweep.each(release)
    released = await sweep.rows("SELECT number, generation FROM releases ORDER BY number")
    assert released == [(n, n) for n in range(1, count + 1)]
    assert await sweep.rows("SELECT generation FROM groups") == [(count,)]
    assert await sweep.rows("SELECT count(*) FROM audit WHERE action = 'release.create'") == [(count,)]
    assert await sweep.rows("SELECT epoch FROM epochs") == [(count + 1,)]  # the admin's is the first


async def test_a_report(sweep: Sweep) -> None:
    await seeds.function(sweep.replica, "f")
    await seeds.release(sweep.replica, functions={"f": 1})
    nodes = await seeds.nodes(sweep.replica, 300)
    plans = await asyncio.gather(*(node.plan() for node in nodes))

    async def report(n: int) -> None:
        node: TestNode = nodes[n]
        node.apply(plans[n])
        body = wire.SyncUpdate(status="succeeded", inventory=node.inventory)
        state = await sweep.call("PUT", f"/v1/syncs/{plans[n].sync_id}", body, token=node.credential)
        assert msgspec.json.decode(state.body, type=wire.SyncState).status == "succeeded"

    count = await sweep.each(report)
    done = await sweep.rows("SELECT node_id::text, late_status FROM syncs WHERE status = 'succeeded'")
    assert sorted(done) == sorted((node.id, None) for node in nodes[1 : count + 1])
    assert sorted(await sweep.rows("SELECT node_id::text, name, version FROM node_functions")) == sorted(
        (node.id, "f", 1) for node in nodes[1 : count + 1]
    )
    confirmed = "SELECT count(*) FROM nodes WHERE confirmed_generation = 1 AND failures = 0 AND state = 'online'"
    assert await sweep.rows(confirmed) == [(count,)]
