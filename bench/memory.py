"""How much memory does a node take? The PSS of all of its processes together, with no other part of Skerry running.

`idle`: a node that has joined and has no function: 100 MB. `called`: one with the examples `hello` and `visits` under
five names each, after 50,000 calls, 10,000 of which write: 150 MB. Control has exited when the memory is measured. The
ratio is the limit over the measured value, for the worse of the two. Other processes of the same interpreter make the
figures too small: run it on its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import orjson
import uvloop

from bench import result
from bench.parts import cpu, pss
from bench.parts.load import Client, Expected, request
from bench.parts.servers import Alone, Edge, edge, folder, node_alone, site

BAR = 1
IDLE_LIMIT = 100e6
CALLED_LIMIT = 150e6
NAMES = 5
READS = 40_000
WRITES = 10_000
SETTLE = 5.0
"""Seconds to wait after a start or a load for its background work to finish."""
SAMPLES = 5
EXAMPLES = Path(__file__).parents[1] / "examples"


async def main() -> None:
    machine = cpu.machine()
    async with _idle() as joined:
        idle = await _memory(joined)
    hello, visits = _example("hello"), _example("visits")
    functions = {f"hello-{at}": hello[:2] for at in range(NAMES)} | {f"visits-{at}": visits[:2] for at in range(NAMES)}
    async with node_alone(functions, hello[2] + visits[2]) as node:
        await _write(node)
        reads = await _read(node)
        called = await _memory(node.node)
        await node.check()
    details = {"idle_mb": _mb(idle), "called_mb": _mb(called), "calls": reads + WRITES, "machine": machine}
    print(f"idle {details['idle_mb']}, called {details['called_mb']}")
    result.write("memory", min(IDLE_LIMIT / idle["total"], CALLED_LIMIT / called["total"]), BAR, details)


@asynccontextmanager
async def _idle() -> AsyncIterator[Edge]:
    """Run a node that joined, and whose control exited before there was a release, until the block ends."""
    cores = cpu.all_cores()
    async with folder() as where, AsyncExitStack() as running:
        async with site(where, cores) as control:
            node = await running.enter_async_context(edge(control, cores))
            while not (await node.status())["at_target"]:
                await asyncio.sleep(0.02)
        yield node


def _example(name: str) -> tuple[bytes, dict[str, Any], str]:
    """Return the module, manifest and schema of the example."""
    folder = EXAMPLES / name
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    return (folder / f"{name}.wasm").read_bytes(), manifest, (folder / "schema.sql").read_text()


async def _write(node: Alone) -> None:
    """Call each name of `visits` from one client, one call at a time, and check the visitor's count."""

    async def visit(http: aiohttp.ClientSession, at: int) -> None:
        for number in range(WRITES // NAMES):
            async with http.post(f"/functions/visits-{at}/v{at}") as answer:
                body = await answer.read()
            assert body == b'{"name":"v%d","count":%d}\n' % (at, number + 1), body

    async with aiohttp.ClientSession(f"http://127.0.0.1:{node.port}") as http, asyncio.TaskGroup() as group:
        for at in range(NAMES):
            group.create_task(visit(http, at))


async def _read(node: Alone) -> int:
    """Make calls that change nothing, from four clients per name; return how many."""
    greeting = Expected(200, b'{"message":"Hello, Ada!","language":"en"}\n')
    exchanges = []
    for at in range(NAMES):
        count = Expected(200, b'{"name":"v%d","count":%d}\n' % (at, WRITES // NAMES))
        exchanges += [(_get(f"/functions/hello-{at}?name=Ada"), greeting)] * 4
        exchanges += [(_get(f"/functions/visits-{at}/v{at}"), count)] * 4
    reads = 0
    async with Client(node.port, exchanges) as client:
        while reads < READS:
            reads += (await client.run(2.0)).answers
    return reads


def _get(path: str) -> bytes:
    return request(path, b"").replace(b"POST", b"GET", 1)


async def _memory(node: Edge) -> dict[str, int]:
    """Return the memory of a settled node: for each part, the median of several samples."""
    await asyncio.sleep(SETTLE)
    samples = []
    for _ in range(SAMPLES):
        await asyncio.sleep(1)
        samples.append(await asyncio.to_thread(pss.node, node.process.pid))
    return {part: int(median(sample[part] for sample in samples)) for part in samples[0]}


def _mb(sizes: dict[str, int]) -> dict[str, float]:
    return {part: round(size / 1e6, 1) for part, size in sizes.items()}


if __name__ == "__main__":
    uvloop.run(main())
