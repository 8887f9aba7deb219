"""What do viewers cost control? Pages of the console at 10,000 nodes, and `skerry logs -f` on all nodes.

One control process on a separate core. 9,500 nodes are at their targets, and 1,500 of them poll six times as often as
nodes do, over TLS; 500 others fail, sync or are offline. Three pages are open and receive updates. A client requests
each page repeatedly, in turn, and waits for all of it; the time runs from the request to the last byte. After each page
it requests the same from the floor: `bare_pages`, where bare Starlette fills the same template from memory.
`watched_nodes` has the other half. The ratio is the smaller of two, each divided by its bar: the floor's time for all
pages (their medians) over control's, and 1.5 over the ratio of control's CPU with the view to that without.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import uvloop

from bench import result
from bench.parts import cpu, watched_nodes
from bench.parts.load import percentile, request
from bench.parts.servers import Site, folder, free_port, process, site
from control import tokens
from control.protocol import wire

BAR = 1
PAGES_OVER = 0.25
"""The least permitted ratio of the floor's time to control's."""
NODES = 10_000
AT_TARGET = 9_500
"""Those of them that are at their target."""
POLLING = 1_500
"""Those of them that hold a poll, for a sixth of a node's time: as many polls a second as from all nodes at their
targets."""
PATIENCE = "3600"
"""Seconds after which the others count as offline."""
AT_ONCE = 50
"""Connections that are made at a time."""
ROUNDS = 20
"""Counted requests for each page, and as many for its floor."""
WARM = 3
"""Uncounted requests for each before that."""
GROUPS = ("shops-eu", "shops-us", "lockers", "default")
PAGES = (
    "/",
    "/nodes",
    "/nodes?standing=failing",
    "/nodes?sort=standing",
    "/nodes?sort=seen",
    "/nodes?find=999&group=shops-eu",
    "/nodes?block=shops-eu-3",
    "/nodes/node-9999",
    "/acts/retry?all=1&error=disk_full",
    "/releases",
    "/releases/shops-eu/1",
    "/functions",
    "/schema",
    "/audit",
    "/settings",
    "/go?q=node-99",
)
LIVE = ("/", "/nodes?standing=failing", "/nodes/node-9999")
INVENTORY = wire.Inventory(database_id=str(uuid4()))

NODE_ROWS = """
INSERT INTO nodes (id, name, group_id, labels, protocol, state, state_since, joined_at, digest, database_id,
    confirmed_generation, error_code, error_message, error_at)
SELECT u.id::uuid, u.name, g.id, jsonb_build_object('site', 's' || (n % 18)), 2,
    CASE WHEN n <= $5 THEN 'online' WHEN n % 3 = 0 THEN 'offline' WHEN n % 3 = 1 THEN 'syncing' ELSE 'online' END,
    $4, $4, $6, $7, CASE WHEN n <= $5 THEN g.generation ELSE 0 END,
    CASE WHEN n <= $5 OR n % 3 = 1 THEN '' WHEN n % 4 = 0 THEN 'disk_full' ELSE 'schema_change_failed' END,
    CASE WHEN n <= $5 OR n % 3 = 1 THEN '' ELSE 'NOT NULL constraint failed: orders.total_cents' END, $4
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS u (id, name, group_name, n)
    JOIN groups AS g ON g.name = u.group_name
"""
PRESENCE_ROWS = "INSERT INTO node_presence (node_id, last_seen_at, confirmed_at) SELECT id, $1, $1 FROM nodes"
CREDENTIAL_ROWS = """
INSERT INTO credentials (id, node_id, secret_hash, created_at, first_used_at)
SELECT c.id::uuid, c.node_id::uuid, c.secret_hash, $4, $4
FROM unnest($1::text[], $2::text[], $3::text[]) AS c (id, node_id, secret_hash)
"""


@dataclass
class Fleet:
    """Nodes that hold polls."""

    wrong: list[bytes] = field(default_factory=list)
    """Answers that aren't 204."""
    lost: int = 0
    """Connections that control has closed."""
    over: bool = False


@dataclass
class Asked:
    """The time that a page took."""

    seconds: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    size: int = 0


class HeldPoll(asyncio.Protocol):
    """A node's connection, on which it polls again after each answer."""

    def __init__(self, fleet: Fleet, poll: bytes) -> None:
        self._fleet = fleet
        self._poll = poll
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._poll)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 204"):
            self._fleet.wrong.append(data[:300])
            return
        self._transport.write(self._poll)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fleet.lost += not self._fleet.over


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    unheard = {"SKERRY_OFFLINE_AFTER": PATIENCE, "SKERRY_OVERDUE_AFTER": PATIENCE}
    async with folder() as where, site(where, server_core, **unheard) as control:
        for name in GROUPS:
            if name != "default":
                await control.call("POST", "/v1/groups", {"name": name})
            await control.release(group=name)
        credentials = await _make_nodes(control)
        with cpu.pinned(load_core):
            async with _polling(control, credentials) as fleet, AsyncExitStack() as live:
                floor = await live.enter_async_context(_floor(control, server_core))
                for page in LIVE:
                    await live.enter_async_context(control.api.get("/live", params={"page": page}))
                found = {page: await _page(control, floor, page) for page in PAGES}
        if fleet.wrong:
            raise control.control.failure(f"a poll was answered otherwise than by 204: {fleet.wrong[0]!r}")
        if fleet.lost:
            raise control.control.failure(f"{fleet.lost} polls were cut off")
    async with folder() as where, site(where, server_core) as control:
        with cpu.pinned(load_core):
            ratio, watched = await watched_nodes.measure(control)
    p50 = {page: median(each.seconds) for page, each in found.items()}
    least = {page: median(each.floor) for page, each in found.items()}
    pages_over = sum(least.values()) / sum(p50.values())
    details = {
        "pages_over": round(pages_over, 3),
        "p50_ms": {page: _ms(seconds) for page, seconds in p50.items()},
        "floor_p50_ms": {page: _ms(seconds) for page, seconds in least.items()},
        "p99_ms": {page: _ms(percentile(sorted(each.seconds), 0.99)) for page, each in found.items()},
        "kilobytes": {page: round(each.size / 1000, 1) for page, each in found.items()},
        "nodes": NODES,
        "held_polls": POLLING,
        "watched": watched,
        "machine": machine,
    }
    result.write("console", min(pages_over / PAGES_OVER, watched_nodes.MOST / ratio), BAR, details)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


async def _make_nodes(control: Site) -> list[str]:
    """Insert nodes as if they had joined and reached their targets, or not; return the credentials of those that
    poll."""
    now = datetime.now(UTC)
    ids = [str(uuid4()) for _ in range(NODES)]
    names = [f"node-{number}" for number in range(1, NODES + 1)]
    groups = [GROUPS[number % len(GROUPS)] for number in range(NODES)]
    made = [tokens.new_token("node") for _ in range(POLLING)]
    connection = await asyncpg.connect(control.services.metadata_url)
    try:
        digest = wire.digest(INVENTORY)
        await connection.execute(NODE_ROWS, ids, names, groups, now, AT_TARGET, digest, INVENTORY.database_id)
        await connection.execute(PRESENCE_ROWS, now)
        columns = [str(t.id) for t in made], ids[:POLLING], [t.secret_hash for t in made]
        await connection.execute(CREDENTIAL_ROWS, *columns, now)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    return [token.text for token in made]


@asynccontextmanager
async def _polling(control: Site, credentials: Sequence[str]) -> AsyncIterator[Fleet]:
    """Hold a poll for each of these; the block runs once all are held."""
    fleet, slots, loop = Fleet(), asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop()
    tls, digest = control.tls, wire.digest(INVENTORY)
    made: list[asyncio.BaseTransport] = []

    async def connect(number: int, credential: str) -> None:
        # As in a fleet, not all of them end at the same time.
        wait = 2.5 + number % 100 / 60
        poll = wire.canonical(wire.Poll(generation=0, digest=digest, boot_id=str(uuid4()), wait=wait))
        headers = [("Authorization", f"Bearer {credential}"), ("Content-Type", "application/json")]
        raw = request("/v1/poll", poll, headers)
        async with slots:
            transport, _ = await loop.create_connection(
                lambda: HeldPoll(fleet, raw), "127.0.0.1", control.control.port, ssl=tls, server_hostname="127.0.0.1"
            )
        made.append(transport)

    try:
        await asyncio.gather(*(connect(number, credential) for number, credential in enumerate(credentials)))
        async with asyncio.timeout(300):
            while await _held(control) < len(credentials) * 0.99:
                await asyncio.sleep(0.2)
        yield fleet
    finally:
        fleet.over = True
        for transport in made:
            transport.close()


async def _held(control: Site) -> int:
    """Return how many polls control holds, by its own count."""
    async with control.api.get("/metrics") as answer:
        text = await answer.text()
    return int(float(next(line for line in text.splitlines() if line.startswith("skerry_held_polls ")).split()[1]))


@asynccontextmanager
async def _floor(control: Site, cores: set[int]) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the server of pages filled from memory on these cores, and yield a session with it."""
    port = free_port()
    settings = {**control.settings, "SKERRY_PORT": str(port)}
    connector = aiohttp.TCPConnector(ssl=control.tls)
    url = f"https://127.0.0.1:{port}"
    async with (
        process(control.folder, "floor", ["-m", "bench.parts.bare_pages"], port, cores, **settings),
        aiohttp.ClientSession(url, connector=connector, headers=control.api.headers) as session,
    ):
        yield session


async def _page(control: Site, floor: aiohttp.ClientSession, page: str) -> Asked:
    found = Asked()

    async def ask(api: aiohttp.ClientSession) -> float:
        began = time.perf_counter()
        async with api.get(page, headers={"accept": "text/html"}) as answer:
            body = await answer.read()
        took = time.perf_counter() - began
        if answer.status != 200:
            raise control.control.failure(f"{page}: {answer.status} {body[:300]!r}")
        found.size = len(body)
        return took

    for number in range(ROUNDS + WARM):
        seconds, least = await ask(control.api), await ask(floor)
        if number >= WARM:
            found.seconds.append(seconds)
            found.floor.append(least)
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
