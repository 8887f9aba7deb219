"""Many held polls: woken by a new target, answered at the end; over the guarded, encrypted connections."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from control.protocol import wire
from control.web.server import ControlServer
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.replica import Replica, Site, TestNode

NODES = int(os.environ.get("SKERRY_TEST_POLLS", "250"))
HOLD = 60.0
"""Seconds for which a poll is held, or three quarters of it: of the replica's clock, which stands."""
SOON = 40.0


class Held(asyncio.Protocol):
    """A held poll, as light as a client can be: many must not keep the server from its work."""

    def __init__(self, node: TestNode) -> None:
        self.node = node
        poll = wire.canonical(wire.Poll(0, wire.digest(node.inventory), wait=HOLD))
        head = f"POST /v1/poll HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.credential}\r\n"
        self._request = head.encode() + b"content-length: %d\r\n\r\n" % len(poll) + poll
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes] = self._loop.create_future()
        self.answered_at = 0.0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.answer.done():
            self.answered_at = time.monotonic()
            self.answer.set_result(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc or ConnectionError("closed"))
            self.answer.exception()

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])


class Polls(list[Held]):
    """One poll of each node."""

    def __init__(self, replica: Replica) -> None:
        self._context = ssl.create_default_context(cafile=str(replica.ca))
        self._at = urlsplit(replica.url)
        self._waiters = replica.services.fleet.waiters

    async def are_held(self, nodes: list[TestNode]) -> None:
        """Have all of them wait at once."""
        for start in range(0, len(nodes), 50):
            self += await asyncio.gather(*(self._made(node) for node in nodes[start : start + 50]))
        async with deadline(SOON):
            while len(self._waiters) < len(nodes):
                await asyncio.sleep(0.01)

    async def _made(self, node: TestNode) -> Held:
        loop = asyncio.get_running_loop()
        _, poll = await loop.create_connection(lambda: Held(node), self._at.hostname, self._at.port, ssl=self._context)
        return poll


@asynccontextmanager
async def holding(replica: Replica, nodes: list[TestNode]) -> AsyncIterator[Polls]:
    """All nodes' polls, held."""
    polls = Polls(replica)
    try:
        await polls.are_held(nodes)
        yield polls
    finally:
        for poll in polls:
            poll.transport.abort()


@pytest.mark.timeout(180)
async def test_a_new_target_wakes_all(control_site: Site) -> None:
    async with control_site.running(clock=SetClock(timers="stand"), hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        await seeds.function(replica, "hello")
        async with holding(replica, nodes) as polls:
            await seeds.release(replica, functions={"hello": 1})
            since = time.monotonic()
            async with deadline(SOON):
                await asyncio.gather(*(poll.answer for poll in polls))
            took = sorted(poll.answered_at - since for poll in polls)
            print(f"of {NODES}: half told after {took[NODES // 2] * 1000:.0f} ms, all after {took[-1] * 1000:.0f} ms")
            assert {poll.status for poll in polls} == {200}
            assert all(b'"type":"plan"' in poll.data for poll in polls)
            assert took[-1] < SOON
        opened = await replica.services.db.read(
            lambda conn: conn.fetchval("SELECT count(DISTINCT node_id) FROM syncs WHERE status = 'running'")
        )
        assert opened == NODES
        shown = await replica.node("seed-7")
        assert shown["state"] == "syncing"


@pytest.mark.timeout(180)
async def test_all_are_answered_at_the_end(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may need longer for so many than the end waits.
    monkeypatch.setattr("control.web.server.GRACE", SOON)
    took: list[float] = []
    polls: list[Held] = []
    async with control_site.running(clock=SetClock(timers="stand"), hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        async with holding(replica, nodes) as polls:
            server: ControlServer = replica.server
            since = time.monotonic()
            server.should_exit = True
            async with deadline(SOON):
                await asyncio.gather(*(poll.answer for poll in polls))
            took = sorted(poll.answered_at - since for poll in polls)
            print(
                f"of {NODES}: half answered after {took[NODES // 2] * 1000:.0f} ms, all after {took[-1] * 1000:.0f} ms"
            )
            assert took[-1] < SOON
            for answer in (poll.data.lower() for poll in polls):
                assert answer.startswith(b"http/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in answer
                assert b"\r\nconnection: close\r\n" in answer
                assert b'"code":"shutting_down"' in answer


@pytest.mark.timeout(180)
async def test_aborted_clients_are_freed(control_site: Site) -> None:
    async with control_site.running(clock=SetClock(timers="stand"), hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        async with holding(replica, nodes) as polls:
            since = time.monotonic()
            for poll in polls:
                poll.transport.abort()
            async with deadline(SOON):
                while replica.services.fleet.waiters or replica.server.server_state.tasks:
                    await asyncio.sleep(0.01)
            print(f"{NODES} freed after {(time.monotonic() - since) * 1000:.0f} ms")
