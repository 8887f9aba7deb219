"""Is a call of ours, in a fresh instance in a fenced worker, faster than workerd's with a fresh instance?

A 256-byte POST that is echoed, 64 connections of wrk, which shares both cores with what it loads. Ours is a real node
(`skerry-edge run`, joined, its release made by control) with a guest in C, by the ABI `direct` and by WAGI. workerd
runs a WASM echo with a fresh instance a request, in one process (which has one thread for JavaScript) and in two, and
with one instance for all requests.

The ratio is the smallest of four, each over what it must be at least: our requests a second over those of two
processes (1.0) and of one (1.5), twice our p50 over our p99 (1), and WAGI's requests a second over the faster ABI's
(0.7). The details have each, and workerd's CPU time of a request with the reused instance over ours.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu, rounds, workerd
from bench.parts.rounds import Loaded, Rounds, medians, over
from bench.parts.servers import node_alone
from bench.parts.wrk import Target, Wrk
from tests.guests.build import guest

BAR = 1.0
OVER_TWO, OVER_ONE, P99_OVER_P50, WAGI_SHARE = 1.0, 1.5, 2.0, 0.7
CONNECTIONS = 64
ROUNDS = 6
SECONDS = 2
BODY = bytes(range(256))
ABIS = {"direct": "direct_echo", "wagi": "echo"}


async def main() -> None:
    workerd.install()
    machine = cpu.machine()
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            node_alone({name: (guest(source), {}) for name, source in ABIS.items()})
        )
        scripts = {"fresh": workerd.fresh(), "fresh_too": workerd.fresh(), "reused": workerd.reused()}
        others = {
            name: await stack.enter_async_context(workerd.serve(served.folder, name, script))
            for name, script in scripts.items()
        }
        wrk = Wrk(served.folder, BODY, CONNECTIONS)
        asked = {name: [Target(served.port, f"/functions/{name}")] * 2 for name in ABIS}
        pids = dict.fromkeys(ABIS, served.pids)
        for name, used in (
            ("workerd_two", ("fresh", "fresh_too")),
            ("workerd_one", ("fresh", "fresh")),
            ("workerd_reused", ("reused", "reused")),
        ):
            running = [others[each] for each in used]
            asked[name] = [Target(each.port, "/") for each in running]
            pids[name] = list({each.pid for each in running})
        for targets in asked.values():
            await wrk.check(targets, BODY)
        loaded = {
            name: Loaded(partial(wrk.run, targets, SECONDS), pids[name], node=name in ABIS)
            for name, targets in asked.items()
        }
        found = await rounds.take(loaded, ROUNDS)
        for targets in asked.values():
            await wrk.check(targets, BODY)
        await served.check()
    write(found, len(served.pids) - 1, machine)


def write(found: Rounds, workers: int, machine: dict[str, object]) -> None:
    best = max(ABIS, key=lambda name: median(each["rate"] for each in found[name]))
    tail = median(each["p99_ms"] / each["p50_ms"] for each in found[best])
    shares = {
        "over_two_processes": over(found, best, "workerd_two"),
        "over_one_process": over(found, best, "workerd_one"),
        "p99_over_p50": tail,
        "wagi_over_fastest": over(found, "wagi", best),
    }
    met = {
        "over_two_processes": shares["over_two_processes"] / OVER_TWO,
        "over_one_process": shares["over_one_process"] / OVER_ONE,
        "p99_over_p50": P99_OVER_P50 / tail,
        "wagi_over_fastest": shares["wagi_over_fastest"] / WAGI_SHARE,
    }
    details: dict[str, Any] = {
        "abi": best,
        **{name: round(value, 3) for name, value in shares.items()},
        "wagi_over_two_processes": round(over(found, "wagi", "workerd_two"), 3),
        "wagi_over_one_process": round(over(found, "wagi", "workerd_one"), 3),
        "reused_cpu_over_ours": round(over(found, "workerd_reused", best, "cpu_us"), 3),
        "of_bar": {name: round(value, 3) for name, value in met.items()},
        **medians(found),
        "workers": workers,
        "machine": machine,
    }
    result.write("workerd", min(met.values()), BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
