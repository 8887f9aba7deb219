"""Connections are taken a few at a time, and again once there are descriptors."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator

import pytest

from control.web.listener import AT_ONCE, RETRY, ListeningSockets
from tests.support.clock import SetClock
from tests.support.deadlines import deadline

SOON = 20.0


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(timers="stand")


@pytest.fixture
async def listener(clock: SetClock) -> AsyncIterator[ListeningSockets]:
    made = ListeningSockets(Echo, None, 1.0, 1.0, clock)
    await made.listen("127.0.0.1", 0, 4096)
    yield made
    made.close()


async def echoed(sock: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"hello")
    return await loop.sock_recv(sock, 5) == b"hello"


def connected(listener: ListeningSockets, count: int) -> list[socket.socket]:
    """Connections that the kernel has made, and that nobody has taken yet."""
    made = []
    for _ in range(count):
        sock = socket.create_connection(listener.sockets[0].getsockname())
        sock.setblocking(False)
        made.append(sock)
    return made


async def test_many_at_once_are_all_served_and_few_in_one_pass(
    listener: ListeningSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = listener._take

    def counted(sock: socket.socket) -> None:
        before = len(listener._opening)
        real(sock)
        taken.append(len(listener._opening) - before)

    monkeypatch.setattr(listener, "_take", counted)
    listener._loop.remove_reader(listener.sockets[0])
    listener._resume(listener.sockets[0])
    socks = connected(listener, 10 * AT_ONCE)
    try:
        async with deadline(SOON):
            assert all(await asyncio.gather(*(echoed(sock) for sock in socks)))
        assert max(taken) <= AT_ONCE
    finally:
        for sock in socks:
            sock.close()


async def test_without_a_descriptor_it_goes_on_later(
    listener: ListeningSockets, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    (sock,) = connected(listener, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    caplog.set_level(logging.ERROR)
    try:
        # None is free below it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        filling = [os.dup(0) for _ in range(_free())]
        async with deadline(SOON):
            while "no connection can be accepted for now" not in caplog.text:
                await asyncio.sleep(0.01)
        for descriptor in filling:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        clock.advance(RETRY)
        async with deadline(SOON):
            assert await echoed(sock)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sock.close()


def _free() -> int:
    """Descriptors that may still be opened below the limit."""
    made = []
    try:
        while True:
            made.append(os.dup(0))
    except OSError:
        return len(made)
    finally:
        for descriptor in made:
            os.close(descriptor)


async def test_an_address_in_use_is_said(listener: ListeningSockets) -> None:
    other = ListeningSockets(Echo, None, 1.0, 1.0, SetClock())
    with pytest.raises(OSError, match="in use"):
        await other.listen(*listener.sockets[0].getsockname()[:2], 16)
