"""What does it cost when a worker dies, and what does another worker cost?

There is one worker. It is killed with SIGKILL, and a request follows at once; the spare worker takes its place and
answers, at the median within 6 ms. `call_p50_ms` is the time of the same call with nothing killed. The client uses the
socket directly, so that both are the node's time; a spare worker has 0.1 s to settle (`kill` is about workers that die
in succession). `bare`: the spare worker is killed too, so that the next one must first be forked, fenced, and load the
release. `javascript`: as the first, with calls of a function in JavaScript. Memory: the PSS of the zygote and of all of
its children together, which counts shared pages once, with 2 workers and with 10, after calls; an eighth of the
difference is the cost of one more worker: 4 MB. The functions are echo, one with SQL, so that each worker has the
database open, and one in JavaScript. The ratio is the limit over the measured value, for the worst of the three.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvloop

from bench import result
from bench.parts import cpu, load, pss, scripts
from bench.parts.plain_client import PlainClient
from bench.parts.servers import LIMIT, Edge, edge, folder, site, started
from tests.guests.build import guest

BAR = 1
ANSWER_LIMIT = 0.006
"""Median seconds from the kill to the answer: four times as long as on a quiet machine."""
MEMORY_LIMIT = 4_000_000
KILLS = 50
FEW, MANY = 2, 10
CALLS = 40
"""Calls to each worker before its memory is measured."""
REST = 0.1
"""Seconds before each kill."""
READINGS = 20
BODY = bytes(range(256))
ECHO = load.request("/functions/echo", BODY)
SCRIPT = "export default { fetch: async (request) => new Response(await request.arrayBuffer()) };"
JAVASCRIPT = load.request("/functions/script", BODY)
SELECT = b'{"sql":"SELECT count(*) FROM sqlite_schema"}'


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where:
        async with site(where, cores) as control, edge(control, cores) as joined:
            versions = {
                "echo": await control.push("echo", guest("echo"), {}),
                "sql": await control.push("sql", guest("sql"), {"sql": "read"}),
                "script": await control.push("script", await scripts.module(SCRIPT), {}),
            }
            await control.release(versions)
            await joined.at_release(1, best=True)
        # Control has exited: the node serves without it.
        async with _node(where, 1, cores) as node:
            with closing(PlainClient(node.process.port, LIMIT)) as client:
                calls, times = [], []
                for _ in range(KILLS):
                    calls.append(await _undisturbed(client))
                    times.append(await _respawn(node, client))
                bare = [await _respawn(node, client, bare=True) for _ in range(KILLS // 2)]
                scripted = [await _respawn(node, client, JAVASCRIPT) for _ in range(KILLS)]
        memory = {}
        for workers in (FEW, MANY):
            async with _node(where, workers, cores) as node:
                memory[workers] = await _memory(node, workers)
    another = (memory[MANY] - memory[FEW]) / (MANY - FEW)
    details = {
        "answer_p50_ms": round(median(times) * 1000, 2),
        "answer_p90_ms": round(sorted(times)[int(0.9 * KILLS)] * 1000, 2),
        "answer_worst_ms": round(max(times) * 1000, 2),
        "call_p50_ms": round(median(calls) * 1000, 2),
        "bare_p50_ms": round(median(bare) * 1000, 2),
        "javascript_p50_ms": round(median(scripted) * 1000, 2),
        "worker_pss_mb": round(another / 1e6, 2),
        "machine": machine,
    }
    answered = max(median(times), median(scripted))
    result.write("respawn", min(ANSWER_LIMIT / answered, MEMORY_LIMIT / another), BAR, details)


@asynccontextmanager
async def _node(where: Path, workers: int, cores: set[int]) -> AsyncIterator[Edge]:
    """Start the joined node with this many workers."""
    async with started(where, f"edge-{workers}", cores, SKERRY_EDGE_WORKERS=str(workers)) as node:
        deadline = time.monotonic() + LIMIT
        while (await _workers(node))["fit"] < workers:
            assert time.monotonic() < deadline, "the workers are not there"
            await asyncio.sleep(0.02)
        yield node


async def _workers(node: Edge) -> Any:
    return (await node.status())["workers"]


async def _call(http: aiohttp.ClientSession, name: str, body: bytes) -> bytes:
    async with http.post(f"/functions/{name}", data=body) as answer:
        read = await answer.read()
        assert answer.status == 200, read
        return read


def _answer(client: PlainClient, request: bytes = ECHO) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    assert client.call(request) == (200, BODY)
    return time.perf_counter() - started


async def _undisturbed(client: PlainClient) -> float:
    """Wait as long as `_respawn` does, then return what `_answer` does."""
    await asyncio.sleep(REST)
    return _answer(client)


async def _respawn(node: Edge, client: PlainClient, request: bytes = ECHO, *, bare: bool = False) -> float:
    """Return the seconds from the kill to the next worker's answer."""
    # It has proven itself, so the next one is started without a delay.
    _answer(client, request)
    there = await _workers(node)
    while not (there["pids"] and there["spares"]):
        await asyncio.sleep(0.005)
        there = await _workers(node)
    await asyncio.sleep(REST)
    (pid,), (spare,) = there["pids"], there["spares"]
    started = time.perf_counter()
    if bare:
        os.kill(spare, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    _answer(client, request)
    took = time.perf_counter() - started
    assert (await _workers(node))["pids"] != [pid]
    return took


async def _memory(node: Edge, workers: int) -> int:
    """Return the bytes of the zygote and its children together: the lowest of several readings."""
    for _ in range(CALLS):
        bodies = {"echo": BODY, "sql": SELECT, "script": BODY}
        calls = [_call(node.http, name, body) for name, body in bodies.items() for _ in range(workers)]
        await asyncio.gather(*calls)
    there = await _workers(node)
    assert len(there["pids"]) == workers
    readings = []
    for _ in range(READINGS):
        await asyncio.sleep(0.1)
        readings.append(sum(pss.tree(there["zygote"]).values()))
    return min(readings)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
