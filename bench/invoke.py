"""What does a function call cost? A 256-byte POST through front and worker, with a fresh AOT instance each.

The guest is in C, on WASI, and echoes its input. The ratio is the CPU of a request to a raw ASGI echo on one uvicorn
process over that of a call to a real node (`skerry-edge run`, joined, its release made by control), front and workers
together; 64 clients in both, and the load shares both cores with what it loads. The load is our own client, which
checks every answer: it costs 10 µs of CPU a request, as much as wrk does, in a process whose core isn't full (`load_us`
in the details). The details have requests a second, and the same for our uncompiled node.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import uvloop

from bench import result
from bench.parts import both, cpu, rounds
from bench.parts.load import Client, Expected, request
from bench.parts.rounds import Loaded
from bench.parts.servers import free_port, process
from tests.guests.build import guest

BAR = 0.5
CLIENTS = 64
ROUNDS = 5
SECONDS = 1.0
BODY = bytes(range(256))


async def main() -> None:
    machine = cpu.machine()
    port = free_port()
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(both.nodes({"echo": (guest("echo"), {})}))
        served = nodes[""]
        echo = await stack.enter_async_context(
            process(served.folder, "echo", ["-m", "bench.parts.echo", str(port)], port, cpu.all_cores())
        )
        loaded = {}
        for suffix, node in nodes.items():
            ours = await stack.enter_async_context(client(node.port, "/functions/echo"))
            loaded["ours" + suffix] = Loaded(partial(ours.run, SECONDS), node.pids, node=True)
        theirs = await stack.enter_async_context(client(port, "/"))
        loaded["echo"] = Loaded(partial(theirs.run, SECONDS), [echo.pid])
        found = await rounds.take(loaded, ROUNDS)
        for node in nodes.values():
            await node.check()
    details: dict[str, Any] = {
        **rounds.medians(found),
        **both.ratios(nodes, found, "echo"),
        "workers": len(served.pids) - 1,
        "machine": machine,
    }
    result.write("invoke", rounds.over(found, "echo", "ours", "cpu_us"), BAR, details)


def client(port: int, path: str) -> Client:
    """Return 64 clients that send 256 bytes and get them back."""
    sent = request(path, BODY, [("Content-Type", "application/octet-stream")])
    return Client(port, [(sent, Expected(200, BODY))] * CLIENTS)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
