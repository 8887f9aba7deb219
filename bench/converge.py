"""How long from `release create` to the new function answering at the edge? 30 releases of distinct modules.

Each is the example `hello` (28 KB of C, which reads its greeting from the node's database) with a different number in
its text, so that each is a different artifact: fetched, verified, compiled (the level that a function starts on; the
best one follows in the background), probed and flipped to. The time runs from before the request that `skerry release
create` sends until an answer of the new function has come; the edge is asked every 2 ms by a client that uses the
socket directly. Each release comes 0.1 s after the node reported the one before and its floor was measured: LLVM's
compilation of that module alone, and the bare commits, files and requests that a release needs
(`bench/parts/bare_release.py`). The ratio is the floor over the release, the lower quartile of each: a release passes
through seven processes, each of which waits for a processor when others are busy, and the floor is two.
"""

import asyncio
import time
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import orjson
import uvloop

from bench import result
from bench.parts import bare_release, cpu
from bench.parts.plain_client import PlainClient
from bench.parts.servers import LIMIT, Edge, Site, edge, folder, site

BAR = 0.55
RELEASES = 30
EVERY = 0.002
"""Seconds between two requests to the edge."""
REST = 0.1
"""Seconds between two releases: an immediate one would run into the leftover work of the one before."""
UPLOADS = 2
"""Versions uploaded at the same time; control checks each in a separate process."""
HELLO = Path(__file__).parents[1] / "examples" / "hello"
NAMED = b'{"message":%s'
CALL = b"GET /functions/hello?name=Ada HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    manifest = orjson.loads((HELLO / "manifest.json").read_bytes())
    async with (
        folder() as where,
        site(where, cores) as control,
        edge(control, cores) as node,
        bare_release.floor(control, cores) as floor,
    ):
        await control.change("greetings", (HELLO / "schema.sql").read_text())
        # One more for one-time work.
        versions = await _push(control, RELEASES + 1, manifest)
        taken, floors = [], []
        with closing(PlainClient(node.process.port, LIMIT)) as client:
            for number, version in enumerate(versions):
                taken.append(await _converge(control, node, client, number, version))
                await node.at_release(number + 1)
                await asyncio.sleep(REST)
                floors.append(await floor.take(_module(number)))
    del taken[0], floors[0]
    times = sorted(taken)
    details = {
        "p50_ms": _ms(median(times)),
        "p99_ms": _ms(times[int(0.99 * RELEASES)]),
        "fastest_ms": _ms(times[0]),
        "floor_p50_ms": _ms(median(map(sum, floors))),
        "compiling_alone_p50_ms": _ms(median(compiling for compiling, _ in floors)),
        "releases": RELEASES,
        "machine": machine,
    }
    ratio = quantiles(map(sum, floors))[0] / quantiles(taken)[0]
    result.write("converge", ratio, BAR, details)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


async def _push(control: Site, count: int, manifest: dict[str, Any]) -> list[int]:
    """Upload `count` versions of the function; version N answers with the key of number N - 1."""
    slots = asyncio.Semaphore(UPLOADS)

    async def one(number: int) -> int:
        async with slots:
            return await control.push("hello", _module(number), manifest)

    return await asyncio.gather(*[one(number) for number in range(count)])


def _module(number: int) -> bytes:
    wasm = (HELLO / "hello.wasm").read_bytes()
    assert wasm.count(NAMED) == 1
    return wasm.replace(NAMED, b'{"%s":%%s' % _key(number))


def _key(number: int) -> bytes:
    return b"mess%03d" % number


async def _converge(control: Site, node: Edge, client: PlainClient, number: int, version: int) -> float:
    """Release only this version; return the seconds until the edge answers with it."""
    started = time.perf_counter()
    await control.release({"hello": version})
    while True:
        status, body = client.call(CALL)
        took = time.perf_counter() - started
        if status == 200 and _key(number).decode() in orjson.loads(body):
            return took
        if status != 200 and number:
            raise node.process.failure(f"the node failed a call: {status} {body.decode()}")
        if took > LIMIT:
            raise node.process.failure(f"release {number + 1} isn't there after {LIMIT:.0f} s: {body.decode()}")
        await asyncio.sleep(EVERY)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
