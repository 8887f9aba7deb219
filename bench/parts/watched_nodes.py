"""What an open `skerry logs -f` on all nodes costs control.

Simulated nodes at their targets hold polls over TLS, as nodes do. Then an operator watches them all, and each node
sends one log line a minute on a second connection that it keeps. The comparison is between the CPU of control's process
with the view and that before and after it. To take only a minute, it uses a fifth of the nodes, with all times a fifth
as long: control gets as many polls and lines a second as from 2,000 nodes whose polls are held for 25 s.
"""

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import mean
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from bench.parts import cpu
from bench.parts.servers import Site
from control import tokens
from control.protocol import wire
from control.storage import database

MOST = 1.5
"""The most CPU with an open view over that without one."""
NODES = 400
HOLD = 5.0
"""Seconds for which a poll may be held."""
MINUTE = 12.0
"""Seconds between two lines of a node."""
WARM = 6.0
"""Seconds within which all nodes have polled again and have their connections."""
SECONDS = 10.0
"""Twice as long as polls are held on average: nodes that poll together do so twice in each measurement."""
IDLE = 100.0
"""Seconds after which a node replaces its idle connection, which control closes after two minutes."""
ROUNDS = 2
"""Consecutive measurements with an open view: a request's cost differs by a fifth from one to the next."""
JOINS = 50
"""Handshakes at once."""


class SimulatedNode:
    """A node at its target: one connection that polls, and one that sends lines while somebody watches."""

    def __init__(self, name: str, credential: str, tls: ssl.SSLContext, port: int) -> None:
        self.name = name
        self._tls = tls
        self._port = port
        self._auth = f"host: 127.0.0.1\r\nauthorization: Bearer {credential}\r\n".encode()
        self._inventory = wire.Inventory(database_id=str(uuid4()))
        self._boot_id = str(uuid4())
        self.watching = ""
        self.watch = ""
        """The id of the watch, '' if there is none."""
        self.sent = 0
        self.polls = 0

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls, server_hostname="127.0.0.1")

    async def _ask(self, stream: Any, path: str, body: bytes) -> tuple[int, bytes]:
        reader, writer = stream
        head = b"POST %b HTTP/1.1\r\n%bcontent-type: application/json\r\n" % (path.encode(), self._auth)
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        status = int(answer[9:12])
        length = next((int(line[15:]) for line in answer.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        return status, await reader.readexactly(length)

    def _poll(self, wait: float, *, report: bool = False) -> bytes:
        inventory = self._inventory if report else None
        poll = wire.Poll(0, wire.digest(self._inventory), self._boot_id, wait, inventory=inventory)
        poll.protocol, poll.watching = wire.PROTOCOL, self.watching
        return wire.canonical(poll)

    async def run(self, slots: asyncio.Semaphore) -> None:
        """Poll until cancelled."""
        async with slots:
            stream = await self._connect()
            status, body = await self._ask(stream, "/v1/poll", self._poll(0.0, report=True))
        await asyncio.sleep(random.random() * HOLD)
        while True:
            if status == 200:
                answer = orjson.loads(body)
                assert answer["type"] == "watch", answer
                self.watching = answer["digest"]
                self.watch = next((question["id"] for question in answer.get("questions", [])), "")
                # Simultaneous polls cost less than those of a fleet, which spread out after some minutes.
                await asyncio.sleep(random.random() * HOLD)
            else:
                assert status == 204, body
            status, body = await self._ask(stream, "/v1/poll", self._poll(HOLD))
            self.polls += 1

    async def write(self, slots: asyncio.Semaphore) -> None:
        """Send a line each minute while somebody watches, until cancelled."""
        stream: Any = None
        used_at = 0.0
        await asyncio.sleep(random.random() * MINUTE)
        while True:
            if self.watch:
                if stream is None or time.monotonic() - used_at > IDLE:
                    if stream is not None:
                        stream[1].close()
                    async with slots:
                        stream = await self._connect()
                used_at = time.monotonic()
                t = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000Z"
                told = {"t": t, "kind": "log", "level": "info", "function": "orders", "version": 3, "release": 12}
                line = orjson.dumps({**told, "call": "6f2a1b3c-17", "message": f"order {self.sent} was stored"})
                path = f"/v1/nodes/self/watches/{self.watch}?sampled=0&left_out=0&done=false"
                status, body = await self._ask(stream, path, line + b"\n")
                assert status in (200, 410), body
                self.sent += status == 200
            await asyncio.sleep(MINUTE)


async def put_nodes(control: Site, count: int) -> list[tuple[str, str]]:
    """Insert nodes directly into the metadata; return their names and credentials."""
    made = [(f"watched-{number}", str(uuid4()), tokens.new_token("node")) for number in range(count)]
    db = await database.connect(control.services.metadata_url, connections=1)

    async def write(conn: Any) -> None:
        await conn.execute(
            "INSERT INTO nodes (id, name, group_id, state, state_since, joined_at, protocol) SELECT k.id, k.name, g.id,"
            " 'online', now(), now(), 2 FROM unnest($1::text[]::uuid[], $2::text[]) AS k (id, name),"
            " (SELECT id FROM groups WHERE name = 'default') AS g",
            [id for _, id, _ in made],
            [name for name, _, _ in made],
        )
        await conn.execute(
            "INSERT INTO node_presence (node_id, last_seen_at, confirmed_at) SELECT k.id, now(), now()"
            " FROM unnest($1::text[]::uuid[]) AS k (id)",
            [id for _, id, _ in made],
        )
        await conn.execute(
            "INSERT INTO credentials (id, node_id, secret_hash, created_at, first_used_at)"
            " SELECT k.id, k.node, k.hash, now(), now()"
            " FROM unnest($1::text[]::uuid[], $2::text[]::uuid[], $3::text[]) AS k (id, node, hash)",
            [str(token.id) for _, _, token in made],
            [id for _, id, _ in made],
            [token.secret_hash for _, _, token in made],
        )

    try:
        await db.transaction(write)
    finally:
        await db.close()
    return [(name, token.text) for name, _, token in made]


@asynccontextmanager
async def view(control: Site) -> AsyncIterator[dict[str, int]]:
    """Watch all nodes, as `skerry logs -f` does; yield how many lines came, by node."""
    shown: dict[str, int] = {}

    async def read() -> None:
        limits = aiohttp.ClientTimeout(total=None)
        async with control.api.get("/v1/logs", params={"follow": "true"}, timeout=limits) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.strip():
                    said = orjson.loads(line)
                    if said["kind"] == "log":
                        shown[said["node"]] = shown.get(said["node"], 0) + 1

    reading = asyncio.ensure_future(read())
    try:
        yield shown
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def measure(control: Site) -> tuple[float, dict[str, Any]]:
    """Return the CPU with an open view over that without one, and details."""
    slots = asyncio.Semaphore(JOINS)
    credentials = await put_nodes(control, NODES)
    nodes = [SimulatedNode(name, credential, control.tls, control.control.port) for name, credential in credentials]
    pid = control.control.pid

    async def used() -> dict[str, float]:
        def now() -> tuple[float, ...]:
            counts = sum(node.polls for node in nodes), sum(node.sent for node in nodes)
            return time.monotonic(), cpu.seconds([pid]), *counts

        began = now()
        await asyncio.sleep(SECONDS)
        passed, core, polls, lines = (after - before for before, after in zip(began, now(), strict=True))
        return {"core": round(core / passed, 4), "polls": round(polls / passed, 1), "lines": round(lines / passed, 1)}

    tasks = [asyncio.ensure_future(node.run(slots)) for node in nodes]
    tasks += [asyncio.ensure_future(node.write(slots)) for node in nodes]
    try:
        await asyncio.sleep(WARM)
        without = [await used()]
        async with view(control) as shown:
            # All have opened their second connection, which they keep.
            await asyncio.sleep(MINUTE + 3)
            watched = [await used() for _ in range(ROUNDS)]
        assert len(shown) == NODES, f"lines of {len(shown)} nodes were shown"
        await asyncio.sleep(WARM)
        without.append(await used())
        failed = [task for task in tasks if task.done()]
        assert not failed, failed[0].exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ratio = mean(each["core"] for each in watched) / mean(each["core"] for each in without)
    return ratio, {"nodes": NODES, "without": without, "watched": watched, "ratio": round(ratio, 3)}
