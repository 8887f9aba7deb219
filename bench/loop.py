"""How long does a poll wait beside a request that is large? p99 of polls at target beside each load, against 50 ms.

One control process on a core of its own. Eight nodes at target poll over TLS, each fifty times a second, while another
process asks for one large thing after the other: pages of releases with 500 functions, of nodes with 50 functions, of
versions whose manifests have 3.8 MB, bodies with 150,000 names or with a node's inventory of 3.7 MB, and the largest
ones of these that are taken. The ratio is 50 ms over the worst p99; `quiet` is the p99 beside no load.
"""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import msgspec
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import percentile
from bench.parts.servers import Site, folder, site
from bench.poll import ask, node_at_target
from control import wire
from control.local.process import ending_with_us

BAR = 1
LIMIT = 0.05
"""The most seconds that p99 may be."""
NODES = 8
PAUSE = 0.02
SECONDS = 6.0

SEEDS = (
    """INSERT INTO releases (group_id, number, generation, schema_floor, reason, created_by, created_at)
    SELECT id, n, n, 0, 'many', 'bench', created_at FROM groups, generate_series(1000, 1199) AS n
    WHERE name = 'default'""",
    """INSERT INTO release_functions (release_id, name, version, sha256)
    SELECT id, 'function-' || n, 1, repeat('0', 64) FROM releases, generate_series(1, 500) AS n
    WHERE reason = 'many'""",
    """INSERT INTO nodes (name, group_id, state, state_since, joined_at)
    SELECT 'many-' || n, id, 'online', created_at, created_at FROM groups, generate_series(1, 1000) AS n
    WHERE name = 'default'""",
    """INSERT INTO node_functions (node_id, name, version, sha256, manifest_digest)
    SELECT id, 'function-' || n, 1, repeat('0', 64), repeat('1', 64) FROM nodes, generate_series(1, 50) AS n
    WHERE name LIKE 'many-%'""",
    """INSERT INTO functions (name, last_version, created_at) SELECT 'large', 20, created_at FROM groups
    WHERE name = 'default'""",
    """INSERT INTO artifacts (sha256, size, state, created_at, state_since)
    SELECT repeat('0', 64), 1, 'ready', created_at, created_at FROM groups WHERE name = 'default'""",
    """INSERT INTO function_versions
        (name, version, artifact_id, sha256, size, manifest, manifest_digest, created_by, created_at)
    SELECT 'large', v, a.id, a.sha256, 1, jsonb_build_object('config', m.config), repeat('1', 64), 'bench', a.created_at
    FROM artifacts AS a, generate_series(1, 20) AS v,
        (SELECT jsonb_object_agg('name-' || n, repeat('x', 4000)) AS config FROM generate_series(1, 950) AS n) AS m
    WHERE a.sha256 = repeat('0', 64)""",
)


class Load(NamedTuple):
    """A request that is sent over and over."""

    name: str
    method: str
    path: str
    token: str
    body: str = ""


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    async with folder() as where, site(where, server_core) as control:
        await control.call("POST", "/v1/releases", {})
        polls = await asyncio.gather(*[node_at_target(control, number) for number in range(NODES)])
        await _seed(control)
        loads = await _loads(control)
        with cpu.pinned(load_core):
            async with _polling(control, polls) as latencies:
                quiet = await _beside(control, latencies, None)
                found = {load.name: await _beside(control, latencies, load) for load in loads}
    worst = max(found.values())
    details = {
        "quiet_p99_ms": round(quiet * 1000, 2),
        "p99_ms": {name: round(p99 * 1000, 2) for name, p99 in found.items()},
        "machine": machine,
    }
    result.write("loop", LIMIT / worst, BAR, details)


async def _seed(control: Site) -> None:
    connection = await asyncpg.connect(control.services.metadata_url)
    try:
        for statement in SEEDS:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _loads(control: Site) -> list[Load]:
    token = (await control.call("POST", "/v1/join-tokens", {}))["token"]
    node = (await ask(control, "/v1/nodes", wire.Join("large", str(uuid4())), token))["credential"]

    def version(names: int) -> str:
        config = {f"name-{number:06d}": "value" for number in range(names)}
        return json.dumps({"sha256": "1" * 64, "manifest": {"config": config}})

    def poll(changes: int) -> str:
        applied = [wire.AppliedChange(number + 1, 1, f"{number:064x}") for number in range(changes)]
        inventory = wire.Inventory(changes, applied, [], "database")
        return msgspec.json.encode(wire.Poll(0, wire.digest(inventory), inventory=inventory)).decode()

    def capabilities(count: int) -> str:
        told = {f"name-{number:06d}": "value" for number in range(count)}
        return msgspec.json.encode(wire.Poll(0, "0" * 64, capabilities=told, capabilities_digest="x")).decode()

    versions = "/v1/functions/large/versions"
    admin = control.api.headers["authorization"].removeprefix("Bearer ")
    return [
        Load("200 releases of 500 functions", "GET", "/v1/releases?limit=1000", admin),
        Load("1,000 nodes of 50 functions", "GET", "/v1/nodes?limit=1000", admin),
        Load("versions of 3.8 MB", "GET", f"{versions}?limit=1000", admin),
        Load("150,000 names", "POST", versions, admin, version(150_000)),
        Load("10,000 names", "POST", versions, admin, version(10_000)),
        Load("1,000 names", "POST", versions, admin, version(1_000)),
        Load("a poll of 3.7 MB", "POST", "/v1/poll", node, poll(34_000)),
        Load("a poll with 10,000 changes", "POST", "/v1/poll", node, poll(wire.MOST_CHANGES)),
        Load("a poll with 60,000 capabilities", "POST", "/v1/poll", node, capabilities(60_000)),
    ]


@asynccontextmanager
async def _polling(control: Site, polls: Sequence[bytes]) -> AsyncIterator[list[float]]:
    """Polls until the block ends; the seconds that each took, to be cleared by whoever reads them."""
    latencies: list[float] = []

    async def go(poll: bytes) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", control.control.port, ssl=control.tls, server_hostname="127.0.0.1"
        )
        try:
            while True:
                since = time.perf_counter()
                writer.write(poll)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 204"), head
                latencies.append(time.perf_counter() - since)
                await asyncio.sleep(PAUSE)
        finally:
            writer.close()

    polling = [asyncio.create_task(go(poll)) for poll in polls]
    try:
        yield latencies
    finally:
        for task in polling:
            task.cancel()
        ended = await asyncio.gather(*polling, return_exceptions=True)
        failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        assert not failed, failed


async def _beside(control: Site, latencies: list[float], load: Load | None) -> float:
    """The p99 of polls beside this request, sent over and over."""
    loader = None
    if load is not None:
        loader = await asyncio.create_subprocess_exec(
            *ending_with_us([sys.executable, "-m", "bench.parts.loader", str(SECONDS + 1)]), stdin=PIPE, stdout=PIPE
        )
        assert loader.stdin is not None
        asked = {**load._asdict(), "port": control.control.port, "ca": str(control.keys.ca)}
        loader.stdin.write(json.dumps(asked).encode())
        loader.stdin.write_eof()
    await asyncio.sleep(1)
    latencies.clear()
    await asyncio.sleep(SECONDS)
    taken = sorted(latencies)
    p99 = percentile(taken, 0.99)
    count = 0
    if loader is not None:
        output, _ = await loader.communicate()
        assert loader.returncode == 0
        count = int(output)
    print(f"{load.name if load else 'quiet'}: p99 {p99 * 1000:.1f} ms, {len(taken)} polls beside {count}", flush=True)
    return p99


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
