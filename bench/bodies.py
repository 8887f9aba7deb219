"""How much memory does a front keep for bodies? After crowds of clients, and while clients don't read their answers.

Bodies of 10 bytes to 8 MB are echoed, each sent in pieces on a separate connection, which then closes. Then, three
times, 400 clients send 7 MB each and read nothing. The ratio is the smaller of two: 50 MiB over the front's growth
since the start once all clients are gone, and what the two limits allow (`body_memory` and `answer_memory`, plus 64 MiB
for the answers that workers are about to send) over its growth at the peak.
"""

import asyncio
import contextlib
import socket
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.pss import own_memory
from bench.parts.servers import Alone, node_alone
from tests.guests.build import guest

BAR = 1
MIB = 1 << 20
SIZES = (10, 70_000, 1_000_000, 4_000_000, 8_000_000)
ROUNDS = 9
STUCK = 400
STUCK_BYTES = 7_000_000
MAY_KEEP = 50.0
MAY_HOLD = 256.0 + 256.0 + 64.0
"""MiB that the front may hold for bodies and answers by its default settings, and for itself."""
PIECE = 65_536


async def main() -> None:
    machine = cpu.machine()
    async with node_alone({"echo": (guest("echo"), {})}) as node:
        pid = node.pids[0]
        await _post(node.port, 1000)
        start = own_memory(pid)
        for _ in range(ROUNDS):
            for size in SIZES:
                await _post(node.port, size)
        after_bodies = own_memory(pid)
        most = start
        for _ in range(3):
            most = max(most, await _crowd(node, pid))
        # Twice the interval at which the front checks whether there is memory to return.
        await asyncio.sleep(3)
        end = own_memory(pid)
        await node.check()
    kept, held = max(end, after_bodies) - start, most - start
    print(f"{start:.0f} MiB at the start, {after_bodies:.0f} after bodies, {most:.0f} at most, {end:.0f} at the end")
    ratio = min(MAY_KEEP / max(kept, 1.0), MAY_HOLD / max(held, 1.0))
    details: dict[str, Any] = {
        "mib_at_start": round(start, 1),
        "mib_after_bodies": round(after_bodies, 1),
        "mib_at_most": round(most, 1),
        "mib_at_end": round(end, 1),
        "machine": machine,
    }
    result.write("bodies", ratio, BAR, details)


async def _post(port: int, size: int, leave: asyncio.Event | None = None) -> None:
    """Send a body in pieces to be echoed; with `leave`, read nothing of the answer and stay until it is set."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        head = f"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {size}"
        await loop.sock_sendall(sock, head.encode() + b"\r\n\r\n")
        for at in range(0, size, PIECE):
            await loop.sock_sendall(sock, bytes(min(PIECE, size - at)))
        if leave is not None:
            await leave.wait()
            return
        count = 0
        while got := await loop.sock_recv(sock, MIB):
            count += len(got)
        if count < size:
            raise RuntimeError(f"the answer to {size} bytes has {count}")


async def _crowd(node: Alone, pid: int) -> float:
    """Return the most memory that the front has while clients are stuck."""
    leave = asyncio.Event()

    async def stuck() -> None:
        # The node may refuse a body or give up an answer.
        with contextlib.suppress(ConnectionError):
            await _post(node.port, STUCK_BYTES, leave)

    most = 0.0
    async with asyncio.TaskGroup() as group:
        for _ in range(STUCK):
            group.create_task(stuck())
        for _ in range(20):
            await asyncio.sleep(0.25)
            most = max(most, await asyncio.to_thread(own_memory, pid))
        leave.set()
    return most


if __name__ == "__main__":
    uvloop.run(main())
