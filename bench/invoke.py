"""What does a call of a function cost? A 256-byte POST through front and worker, a fresh AOT instance each.

The guest is C, over WASI, and echoes what it gets. The ratio is requests a second of a real node (`skerry-edge run`,
joined, its release made by control) over those of a raw ASGI echo on one uvicorn process; 64 clients in both, and the
load shares both cores with what it loads.
"""

import asyncio
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu, rounds
from bench.parts.load import Client, Expected, request
from bench.parts.rounds import Loaded
from bench.parts.servers import choose_port, node_alone, process
from control.cli.support.local import OTHER_PORTS
from tests.guests.build import guest

BAR = 0.15
CLIENTS = 64
ROUNDS = 8
SECONDS = 1.0
BODY = bytes(range(256))


async def main() -> None:
    machine = cpu.machine()
    port = choose_port(None, OTHER_PORTS)
    arguments = ["-m", "bench.parts.echo", str(port)]
    async with (
        node_alone({"echo": (guest("echo"), {})}) as served,
        process(served.folder, "echo", arguments, port, cpu.all_cores()) as echo,
        client(served.port, "/functions/echo") as ours,
        client(port, "/") as theirs,
    ):
        loaded = {
            "ours": Loaded(lambda: ours.run(SECONDS), served.pids, node=True),
            "echo": Loaded(lambda: theirs.run(SECONDS), [echo.pid]),
        }
        found = await rounds.take(loaded, ROUNDS)
        await served.check()
    details: dict[str, Any] = {
        **rounds.medians(found),
        "ratios": [round(ratio, 3) for ratio in rounds.ratios(found, "ours", "echo")],
        "workers": len(served.pids) - 1,
        "machine": machine,
    }
    result.write("invoke", rounds.over(found, "ours", "echo"), BAR, details)


def client(port: int, path: str) -> Client:
    """Return 64 clients that send 256 bytes, and get them back."""
    sent = request(path, BODY, [("Content-Type", "application/octet-stream")])
    return Client(port, [(sent, Expected(200, BODY))] * CLIENTS)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
