"""What do traces cost a call? A 256-byte POST to a node that traces 1 % of its calls, and to one that sends no traces.

The ratio is the CPU of front and workers for a call without traces over that with them, in alternating rounds; the bar
corresponds to "at most 1.05 times". The guest echoes its input; the collector runs beside the load.
"""

import asyncio
from contextlib import AsyncExitStack
from statistics import quantiles
from typing import Any

import uvloop

from bench import result
from bench.invoke import client
from bench.parts import cpu, rounds
from bench.parts.rounds import Loaded
from bench.parts.servers import Alone, node_alone
from tests.guests.build import guest
from tests.support.otlp_receiver import collector

BAR = 1 / 1.05
ROUNDS = 20
SECONDS = 0.5
SHARE = 0.01


async def main() -> None:
    machine = cpu.machine()
    functions: dict[str, tuple[bytes, dict[str, Any]]] = {"echo": (guest("echo"), {})}
    async with AsyncExitStack() as stack:
        got = stack.enter_context(collector())
        traced = {"SKERRY_EDGE_OTLP_URL": got.url, "SKERRY_EDGE_TRACE_SHARE": str(SHARE)}
        nodes: dict[str, Alone] = {
            "without": await stack.enter_async_context(node_alone(functions)),
            "with": await stack.enter_async_context(node_alone(functions, **traced)),
        }
        loaded = {}
        for name, node in nodes.items():
            load = await stack.enter_async_context(client(node.port, "/functions/echo"))
            loaded[name] = Loaded(lambda load=load: load.run(SECONDS), node.pids, node=True)  # type: ignore[misc]
        found = await rounds.take(loaded, ROUNDS)
        for node in nodes.values():
            await node.check()
        spans = len(await asyncio.to_thread(got.wait, "guest"))
    details: dict[str, Any] = {
        **rounds.medians(found),
        "ratios": [round(ratio, 3) for ratio in rounds.ratios(found, "without", "with", "cpu_us")],
        "share": SHARE,
        "traced_calls": spans,
        "machine": machine,
    }
    result.write("traces", quiet(found, "without") / quiet(found, "with"), BAR, details)


def quiet(found: rounds.Rounds, name: str) -> float:
    """Return the CPU of a call in the quieter rounds, as the lower quartile: neighbours only add to it."""
    return quantiles([each["cpu_us"] for each in found[name]])[0]


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
