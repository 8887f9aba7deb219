"""How fast does a large body pass through, and what does it cost concurrent small calls?

A C function on WASI echoes 10 MB through a real node (`skerry-edge run`, joined, its release made by control): into the
front, into a worker, through the guest, and back. The floor is the same body through two processes that pass it on
(`bench/parts/large_echo.py`), in the same rounds. The ratio is the floor's time, from the first byte sent to the last
one received, over ours: lower quartiles, which neighbours affect least. Then other clients call a function with 256
bytes, alone and beside large calls: the details have their times, and those of the large calls.
"""

import asyncio
import socket
import time
from statistics import median, quantiles
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import Client, Expected, Round, request
from bench.parts.servers import free_port, node_alone, process
from tests.guests.build import guest

BAR = 0.5
LARGE = bytes(range(250)) * 40_000
SMALL = bytes(range(256))
CLIENTS = 2
CALLS = 10
"""Large calls in a row."""
ROUNDS = 4
SECONDS = 1.0
KIND = [("Content-Type", "application/octet-stream")]


async def main() -> None:
    machine = cpu.machine()
    functions: dict[str, tuple[bytes, dict[str, Any]]] = {
        "small": (guest("echo"), {}),
        "large": (guest("echo"), {"response_limit": len(LARGE), "time_limit_ms": 10_000}),
    }
    sent = request("/functions/small", SMALL, KIND), Expected(200, SMALL)
    port = free_port()
    arguments = ["-m", "bench.parts.large_echo", str(port)]
    async with (
        node_alone(functions) as served,
        process(served.folder, "large-echo", arguments, port, cpu.all_cores()),
        Client(served.port, [sent] * CLIENTS) as client,
    ):
        sock = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        bare = socket.create_connection(("127.0.0.1", port), timeout=30)
        for each in (sock, bare):
            await asyncio.to_thread(_echo, each)
        await client.run(SECONDS)

        alone: list[Round] = []
        beside: list[Round] = []
        times: list[float] = []
        floor: list[float] = []
        busy: list[float] = []
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                times.append(await asyncio.to_thread(_echo, sock))
                floor.append(await asyncio.to_thread(_echo, bare))
            alone.append(await client.run(SECONDS))
            running = asyncio.ensure_future(client.run(SECONDS))
            while not running.done():
                busy.append(await asyncio.to_thread(_echo, sock))
            beside.append(await running)
        sock.close()
        bare.close()
    rate = len(LARGE) / 1e6 / median(times)
    details = {
        "mb_per_s": round(rate, 1),
        "floor_mb_per_s": round(len(LARGE) / 1e6 / median(floor), 1),
        "best_mb_per_s": round(len(LARGE) / 1e6 / min(times), 1),
        "mb_per_s_beside_small": round(len(LARGE) / 1e6 / median(busy), 1),
        "small_p50_ms": {"alone": _ms(alone, 0.5), "beside": _ms(beside, 0.5)},
        "small_p99_ms": {"alone": _ms(alone, 0.99), "beside": _ms(beside, 0.99)},
        "small_worst_ms": {"alone": _ms(alone, 1.0), "beside": _ms(beside, 1.0)},
        "machine": machine,
    }
    result.write("size", quantiles(floor)[0] / quantiles(times)[0], BAR, details)


def _ms(rounds: list[Round], part: float) -> float:
    return round(median(r.percentile(part) for r in rounds) * 1000, 2)


def _echo(sock: socket.socket) -> float:
    """Return the seconds of one large call."""
    started = time.perf_counter()
    sock.sendall(request("/functions/large", LARGE, KIND))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(65_536)
    head, _, first = head.partition(b"\r\n\r\n")
    body = bytearray(len(LARGE))
    body[: len(first)] = first
    view = memoryview(body)[len(first) :]
    while view:
        got = sock.recv_into(view)
        assert got, "the connection was closed"
        view = view[got:]
    took = time.perf_counter() - started
    assert head.startswith(b"HTTP/1.1 200"), head
    assert body == LARGE
    return took


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
