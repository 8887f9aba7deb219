"""What a node's front keeps of bodies: nothing once they are answered, and a bounded amount before."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import node
from tests.support.edge_process import FrontProcess, front_process

MIB = 1 << 20
PIECE = 64 * 1024


async def post(
    front: FrontProcess, size: int, leave: asyncio.Event | None = None, sent: list[int] | None = None
) -> tuple[int, int]:
    """Have a body echoed that is sent in pieces on a connection of its own; the answer's status, and its size.

    Where there is `leave`, nothing is read, and the client stays until it is set; `sent` has the size once all is sent.
    """
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        if leave is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, ("127.0.0.1", front.port))
        head = f"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {size}"
        await loop.sock_sendall(sock, head.encode() + b"\r\n\r\n")
        for at in range(0, size, PIECE):
            await loop.sock_sendall(sock, bytes(min(PIECE, size - at)))
        if sent is not None:
            sent.append(size)
        if leave is not None:
            await leave.wait()
            return 0, 0
        start, count = b"", 0
        while got := await loop.sock_recv(sock, MIB):
            start = start or got
            count += len(got)
        return int(start.split()[1]), count


async def shrunk(front: FrontProcess, to: float) -> None:
    """Wait until the front has at most so many MiB."""
    async with deadline(60):
        while front.memory() > to:
            await asyncio.sleep(0.1)


async def highest(front: FrontProcess, clients: int, sent: list[int], refused: list[Exception]) -> float:
    """The most MiB that the front has until all clients have sent theirs, or not, and until it grows no more."""
    most, still = front.memory(), 0
    async with deadline(60):
        while still < 10:
            await asyncio.sleep(0.05)
            now = front.memory()
            still = 0 if now > most or len(sent) + len(refused) < clients else still + 1
            most = max(most, now)
    return most


@pytest.mark.usefixtures("programs_by_exec")
async def test_the_front_keeps_no_memory_of_bodies_and_bounded_memory_for_stuck_clients(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release({"echo": guest("echo")})
    async with front_process(state, body_memory=64 * MIB, answer_memory=64 * MIB) as front:
        await front.echo(b"hello")
        start = front.memory()
        for _ in range(2):
            for size in (10, 70_000, 1_000_000, 7_000_000, 8_000_000):
                for _ in range(3):
                    status, count = await post(front, size)
                    assert status == 200
                    assert count > size
        await shrunk(front, start + 50)
        for _ in range(2):
            leave = asyncio.Event()
            sent: list[int] = []
            refused: list[Exception] = []
            async with asyncio.TaskGroup() as group:
                for _ in range(60):
                    group.create_task(_stuck(front, leave, sent, refused))
                most = await highest(front, 60, sent, refused)
                leave.set()
            # More than the limits let it keep.
            assert sum(sent) > 128 * MIB
            # The two limits, and what the workers are about to answer.
            assert most < start + 128 + 64
        await shrunk(front, start + 50)
        assert await front.echo(b"hello") == b"hello"


async def _stuck(front: FrontProcess, leave: asyncio.Event, sent: list[int], refused: list[Exception]) -> None:
    """A client that sends 4 MB and reads no answer; it may be given up or refused before it has sent all."""
    try:
        await post(front, 4_000_000, leave, sent)
    except ConnectionError as error:
        refused.append(error)
        await leave.wait()
