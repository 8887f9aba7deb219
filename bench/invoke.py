"""What does a call of a function cost? A 256-byte POST through front and worker, a fresh AOT instance each.

The guest is C, over WASI, and echoes what it gets. The ratio is requests a second of a real node (`skerry-edge run`,
joined, its release made by control) over those of a raw ASGI echo on one uvicorn process; 64 clients in both, and the
load shares both cores with what it loads.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import Client, Expected, Round, request
from bench.parts.servers import choose_port, edge, folder, process, site
from control.cli.local import OTHER_PORTS
from tests.guests.build import guest

BAR = 0.15
CLIENTS = 64
ROUNDS = 8
SECONDS = 1.0
BODY = bytes(range(256))

Pids = Callable[[], list[int]]


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        served: dict[str, tuple[Client, Pids]] = {}
        async with site(where, cores) as control:
            node = await stack.enter_async_context(edge(control, cores))
            version = await control.push("echo", guest("echo"), {})
            await control.call("POST", "/v1/releases", {"functions": {"echo": version}})
            status = await node.at_release(1, best=True)
        # Control and its services have ended: the node serves without, and the cores are its own.
        pids = [node.process.pid, *status["workers"]["pids"]]
        served["ours"] = await _client(stack, node.process.port, "/functions/echo"), lambda: pids

        port = choose_port(None, OTHER_PORTS)
        echo = await stack.enter_async_context(
            process(where, "echo", ["-m", "bench.parts.echo", str(port)], port, cores)
        )
        served["echo"] = await _client(stack, port, "/"), lambda: [echo.pid]

        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in served}
        for number in range(ROUNDS + 1):
            for name, (client, pids_of) in served.items():
                before = [cpu.seconds([pid]) for pid in pids_of()]
                done = await client.run(SECONDS)
                used = [cpu.seconds([pid]) - was for pid, was in zip(pids_of(), before, strict=True)]
                if number:  # the first warms up
                    rounds[name].append(_figures(done, used))
        after = await node.status()
    assert sorted(after["workers"]["pids"]) == sorted(status["workers"]["pids"]), "a worker died meanwhile"
    ratio = median(a["rate"] / b["rate"] for a, b in zip(rounds["ours"], rounds["echo"], strict=True))
    details: dict[str, Any] = {
        name: {key: round(median(figures[key] for figures in several), 2) for key in several[0]}
        for name, several in rounds.items()
    }
    details["ratios"] = [round(a["rate"] / b["rate"], 3) for a, b in zip(rounds["ours"], rounds["echo"], strict=True)]
    result.write("invoke", ratio, BAR, {**details, "workers": len(pids) - 1, "machine": machine})


async def _client(stack: AsyncExitStack, port: int, path: str) -> Client:
    sent = request(path, BODY, [("Content-Type", "application/octet-stream")])
    return await stack.enter_async_context(Client(port, [(sent, Expected(200, BODY))] * CLIENTS))


def _figures(done: Round, used: list[float]) -> dict[str, float]:
    """Of one round. The first of `used` is the process that takes the requests, the others its workers."""
    each = 1e6 / done.answers
    figures = {"rate": done.rate, "cpu_us": sum(used) * each}
    if len(used) > 1:
        figures |= {"front_us": used[0] * each, "workers_us": sum(used[1:]) * each}
    return figures | {"p50_ms": done.percentile(0.5) * 1000, "p99_ms": done.percentile(0.99) * 1000}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
