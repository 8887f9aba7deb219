"""Is one of our calls, in a fresh instance in a fenced worker, cheaper than workerd's with a fresh instance?

A 256-byte POST that is echoed, 64 connections of wrk, which shares both cores with what it loads. Ours is a real node
(`skerry-edge run`, joined, its release made by control) with a guest in C, on the ABI `direct` and on WAGI. workerd
runs a WASM echo with a fresh instance per request, in one process (which has one thread for JavaScript) and in two, and
with one instance for all requests.

The ratio is the smallest of five, each divided by its bar:

- the CPU time of a request of two processes over that of ours, at least 2.8;
- the same where no two heads of requests are the same, for both, at least 2.8: cached heads are then useless;
- our p99 over that of two processes, at most 0.6;
- the CPU time of a request of `direct` over that of WAGI, at least 0.65;
- the CPU time of a request of workerd's one instance for all over that of ours, at least 1.6.

The details have each, requests a second beside workerd's, the same for our uncompiled node, and the distance to the
floor (`bench/parts/floor.c`): a front and a worker in C that do next to nothing.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import both, cpu, floor, rounds, workerd
from bench.parts.both import UNCOMPILED
from bench.parts.rounds import Loaded, Rounds, medians, over
from bench.parts.servers import Alone
from bench.parts.wrk import Target, Wrk
from tests.guests.build import guest

BAR = 1.0
TWO_CPU, TWO_CPU_OTHER_HEADS, P99_OVER_TWO, DIRECT_OVER_WAGI, REUSED_CPU = 2.8, 2.8, 0.6, 0.65, 1.6
CONNECTIONS = 64
ROUNDS = 3
SECONDS = 1
BODY = bytes(range(256))
ABIS = {"direct": "direct_echo", "wagi": "echo"}
OTHER_HEADS = "_other_heads"
"""The suffix for names of measurements with a different head in each request."""


async def main() -> None:
    workerd.install()
    machine = cpu.machine()
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(
            both.nodes({name: (guest(source), {}) for name, source in ABIS.items()})
        )
        served = nodes[""]
        wrk = Wrk(served.folder, BODY, CONNECTIONS)
        targets: dict[str, list[Target]] = {}
        pids: dict[str, list[int]] = {}
        for suffix, node in nodes.items():
            for name in ABIS:
                targets[name + suffix] = [Target(node.port, f"/functions/{name}")] * 2
                pids[name + suffix] = node.pids
        scripts = {"fresh": workerd.fresh(), "fresh_too": workerd.fresh(), "reused": workerd.reused()}
        others = {
            name: await stack.enter_async_context(workerd.serve(served.folder, name, script))
            for name, script in scripts.items()
        }
        for name, used in (
            ("workerd_two", ("fresh", "fresh_too")),
            ("workerd_one", ("fresh", "fresh")),
            ("workerd_reused", ("reused", "reused")),
        ):
            running = [others[each] for each in used]
            targets[name] = [Target(each.port, "/") for each in running]
            pids[name] = list({each.pid for each in running})
        least = await stack.enter_async_context(floor.serve(served.folder))
        targets["floor"] = [Target(least.port, "/")] * 2
        pids["floor"] = least.pids
        for each in targets.values():
            await wrk.check(each, BODY)
        found = await rounds.take(_loaded(wrk, targets, pids), ROUNDS)
        for each in targets.values():
            await wrk.check(each, BODY)
        for node in nodes.values():
            await node.check()
    write(found, served, machine)


def _loaded(wrk: Wrk, targets: dict[str, list[Target]], pids: dict[str, list[int]]) -> dict[str, Loaded]:
    """Return the loads of a round: all targets, plus those that are also compared with different heads."""
    loaded = {}
    for name, each in targets.items():
        has_front = "workerd" not in name
        loaded[name] = Loaded(partial(wrk.run, each, SECONDS), pids[name], has_front)
        if name.startswith(("direct", "workerd_two")):
            run = partial(wrk.run, each, SECONDS, other_heads=True)
            loaded[name + OTHER_HEADS] = Loaded(run, pids[name], has_front)
    return loaded


def compared(found: Rounds, suffix: str = "") -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures that have bars, for the node with this suffix, and each divided by its bar."""
    direct = f"direct{suffix}"
    figures = {
        "two_cpu_over_ours": over(found, "workerd_two", direct, "cpu_us"),
        "two_cpu_over_ours_other_heads": over(found, "workerd_two" + OTHER_HEADS, direct + OTHER_HEADS, "cpu_us"),
        "p99_over_two_processes": over(found, direct, "workerd_two", "p99_ms"),
        "direct_cpu_over_wagi": over(found, direct, f"wagi{suffix}", "cpu_us"),
        "reused_cpu_over_ours": over(found, "workerd_reused", direct, "cpu_us"),
    }
    met = {
        "two_cpu_over_ours": figures["two_cpu_over_ours"] / TWO_CPU,
        "two_cpu_over_ours_other_heads": figures["two_cpu_over_ours_other_heads"] / TWO_CPU_OTHER_HEADS,
        "p99_over_two_processes": P99_OVER_TWO / figures["p99_over_two_processes"],
        "direct_cpu_over_wagi": figures["direct_cpu_over_wagi"] / DIRECT_OVER_WAGI,
        "reused_cpu_over_ours": figures["reused_cpu_over_ours"] / REUSED_CPU,
    }
    return figures, met


def told(found: Rounds, suffix: str = "") -> dict[str, float]:
    """Return figures without a bar, for the node with this suffix."""
    direct = f"direct{suffix}"
    return {
        "over_two_processes": over(found, direct, "workerd_two"),
        "over_one_process": over(found, direct, "workerd_one"),
        "wagi_over_two_processes": over(found, f"wagi{suffix}", "workerd_two"),
        "p99_over_p50": median(each["p99_ms"] / each["p50_ms"] for each in found[direct]),
        "floor_over_ours": over(found, "floor", direct),
        "cpu_over_floor": over(found, direct, "floor", "cpu_us"),
    }


def write(found: Rounds, served: Alone, machine: dict[str, object]) -> None:
    figures, met = compared(found)
    details: dict[str, Any] = {
        **_rounded(figures),
        **_rounded(told(found)),
        "of_bar": _rounded(met),
        "compiled": both.parts(served),
    }
    if f"direct{UNCOMPILED}" in found:
        details["uncompiled"] = _rounded(compared(found, UNCOMPILED)[0]) | _rounded(told(found, UNCOMPILED))
    details |= {**medians(found), "workers": len(served.pids) - 1, "machine": machine}
    result.write("workerd", min(met.values()), BAR, details)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
