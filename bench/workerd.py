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
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu, workerd
from bench.parts.servers import edge, folder, site
from bench.parts.wrk import Load, Target, Wrk
from tests.guests.build import guest

BAR = 1.0
OVER_TWO, OVER_ONE, P99_OVER_P50, WAGI_SHARE = 1.0, 1.5, 2.0, 0.7
CONNECTIONS = 64
ROUNDS = 6
SECONDS = 2
BODY = bytes(range(256))
ABIS = {"direct": "direct_echo", "wagi": "echo"}

Pids = Callable[[], Sequence[int]]


async def main() -> None:
    workerd.install()
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        loaded: dict[str, tuple[list[Target], list[int]]] = {}
        async with site(where, cores) as control:
            node = await stack.enter_async_context(edge(control, cores))
            versions = {name: await control.push(name, guest(source), {}) for name, source in ABIS.items()}
            await control.call("POST", "/v1/releases", {"functions": versions})
            status = await node.at_release(1, best=True)
        # Control and its services have ended: the node serves without, and the cores are its own.
        pids = [node.process.pid, *status["workers"]["pids"]]
        for name in ABIS:
            loaded[name] = [Target(node.process.port, f"/functions/{name}")] * 2, pids
        scripts = {"fresh": workerd.fresh(), "fresh_too": workerd.fresh(), "reused": workerd.reused()}
        others = {
            name: await stack.enter_async_context(workerd.serve(where, name, script))
            for name, script in scripts.items()
        }
        for name, used in (
            ("workerd_two", ("fresh", "fresh_too")),
            ("workerd_one", ("fresh", "fresh")),
            ("workerd_reused", ("reused", "reused")),
        ):
            running = [others[each] for each in used]
            loaded[name] = [Target(each.port, "/") for each in running], list({each.pid for each in running})

        wrk = Wrk(where, BODY, CONNECTIONS)
        for targets, _ in loaded.values():
            await wrk.check(targets, BODY)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loaded}
        for number in range(ROUNDS + 1):
            for name, (targets, measured) in loaded.items():
                before = [cpu.seconds([pid]) for pid in measured]
                done = await wrk.run(targets, SECONDS)
                used_cpu = [cpu.seconds([pid]) - was for pid, was in zip(measured, before, strict=True)]
                if number:  # the first warms up
                    rounds[name].append(figures(done, used_cpu, workers=name in ABIS))
        for targets, _ in loaded.values():
            await wrk.check(targets, BODY)
        after = await node.status()
    assert sorted(after["workers"]["pids"]) == sorted(status["workers"]["pids"]), "a worker died meanwhile"
    write(rounds, len(pids) - 1, machine)


def figures(done: Load, used: Sequence[float], *, workers: bool) -> dict[str, float]:
    """Of one round. Where there are workers, the first of `used` is the front."""
    each = 1e6 / done.answers
    found = {"rate": done.rate, "cpu_us": sum(used) * each}
    if workers:
        found |= {"front_us": used[0] * each, "workers_us": sum(used[1:]) * each}
    return found | {"p50_ms": done.p50 * 1000, "p99_ms": done.p99 * 1000}


def over(rounds: dict[str, list[dict[str, float]]], one: str, other: str, key: str = "rate") -> float:
    """A figure of one over that of the other: the median of the rounds."""
    return median(a[key] / b[key] for a, b in zip(rounds[one], rounds[other], strict=True))


def medians(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(median(found[key] for found in several), 2) for key in several[0]}
        for name, several in rounds.items()
    }


def write(rounds: dict[str, list[dict[str, float]]], workers: int, machine: dict[str, object]) -> None:
    best = max(ABIS, key=lambda name: median(found["rate"] for found in rounds[name]))
    tail = median(found["p99_ms"] / found["p50_ms"] for found in rounds[best])
    shares = {
        "over_two_processes": over(rounds, best, "workerd_two"),
        "over_one_process": over(rounds, best, "workerd_one"),
        "p99_over_p50": tail,
        "wagi_over_fastest": over(rounds, "wagi", best),
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
        "wagi_over_two_processes": round(over(rounds, "wagi", "workerd_two"), 3),
        "wagi_over_one_process": round(over(rounds, "wagi", "workerd_one"), 3),
        "reused_cpu_over_ours": round(over(rounds, "workerd_reused", best, "cpu_us"), 3),
        "of_bar": {name: round(value, 3) for name, value in met.items()},
        **medians(rounds),
        "workers": workers,
        "machine": machine,
    }
    result.write("workerd", min(met.values()), BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
