"""A thousand held polls: woken by a new target, answered at the end; over the guarded, encrypted connections."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from control import wire
from control.web.server import ControlServer
from tests.support import seeds
from tests.support.replica import Replica, Site, TestNode

NODES = 1000
HOLD = 60.0
"""Seconds for which a poll is held, or three quarters of it."""
SOON = 40.0
"""Seconds; what isn't done by then would be by the end of the hold."""


class Held(asyncio.Protocol):
    """A held poll, as light as a client can be: a thousand must not keep the server from its work."""

    def __init__(self, node: TestNode) -> None:
        poll = wire.canonical(wire.Poll(0, wire.digest(node.inventory), wait=HOLD))
        head = f"POST /v1/poll HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.credential}\r\n"
        self._request = head.encode() + b"content-length: %d\r\n\r\n" % len(poll) + poll
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes] = self._loop.create_future()
        self.answered_at = 0.0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

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


@asynccontextmanager
async def holding(replica: Replica, nodes: list[TestNode]) -> AsyncIterator[list[Held]]:
    """All nodes' polls, held."""
    context = ssl.create_default_context(cafile=str(replica.ca))
    loop, parts = asyncio.get_running_loop(), urlsplit(replica.url)
    polls: list[Held] = []
    for start in range(0, len(nodes), 50):
        made = await asyncio.gather(
            *(
                loop.create_connection(lambda node=node: Held(node), parts.hostname, parts.port, ssl=context)  # type: ignore[misc]
                for node in nodes[start : start + 50]
            )
        )
        polls += [protocol for _, protocol in made]
    waiters = replica.services.fleet.waiters
    async with asyncio.timeout(SOON):
        while len(waiters) < len(nodes):
            await asyncio.sleep(0.01)
    try:
        yield polls
    finally:
        for poll in polls:
            poll.transport.abort()  # type: ignore[attr-defined]


@pytest.mark.timeout(180)
async def test_a_new_target_wakes_a_thousand(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        await seeds.function(replica, "hello")
        async with holding(replica, nodes) as polls:
            await seeds.release(replica, functions={"hello": 1})
            since = time.monotonic()
            async with asyncio.timeout(SOON):
                await asyncio.gather(*(poll.answer for poll in polls))
            took = sorted(poll.answered_at - since for poll in polls)
            print(f"of {NODES}: half told after {took[NODES // 2] * 1000:.0f} ms, all after {took[-1] * 1000:.0f} ms")
            assert {poll.status for poll in polls} == {200}
            assert all(b'"type":"plan"' in poll.data for poll in polls)
            assert took[-1] < 20
        opened = await replica.services.db.read(
            lambda conn: conn.fetchval("SELECT count(DISTINCT node_id) FROM syncs WHERE status = 'running'")
        )
        assert opened == NODES
        shown = await replica.node("seed-7")
        assert shown["state"] == "syncing"


@pytest.mark.timeout(180)
async def test_a_thousand_are_answered_at_the_end(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may need longer for so many than the end waits.
    monkeypatch.setattr("control.web.server.GRACE", SOON)
    took: list[float] = []
    polls: list[Held] = []
    async with control_site.running(hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        async with holding(replica, nodes) as polls:
            server: ControlServer = replica.server
            since = time.monotonic()
            server.should_exit = True
            async with asyncio.timeout(SOON):
                await asyncio.gather(*(poll.answer for poll in polls))
            took = sorted(poll.answered_at - since for poll in polls)
            print(
                f"of {NODES}: half answered after {took[NODES // 2] * 1000:.0f} ms, all after {took[-1] * 1000:.0f} ms"
            )
            assert took[-1] < 20
            for poll in polls:
                head = poll.data.lower()
                assert poll.status == 503
                assert b"\r\nretry-after: 1\r\n" in head
                assert b"\r\nconnection: close\r\n" in head
                assert b'"code":"shutting_down"' in head


@pytest.mark.timeout(180)
async def test_a_thousand_aborted_clients_are_freed(control_site: Site) -> None:
    async with control_site.running(hold=HOLD) as replica:
        nodes = await seeds.nodes(replica, NODES)
        async with holding(replica, nodes) as polls:
            since = time.monotonic()
            for poll in polls:
                poll.transport.abort()  # type: ignore[attr-defined]
            async with asyncio.timeout(SOON):
                while replica.services.fleet.waiters or replica.server.server_state.tasks:
                    await asyncio.sleep(0.01)
            print(f"{NODES} freed after {(time.monotonic() - since) * 1000:.0f} ms")
