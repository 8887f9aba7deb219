"""Can a node serve many functions of 2 MB of code each, on two workers: 200 of them in 1 GB?

Each function is a separate module, compiled at the quick level, where it stays. The node starts with its release
compiled, without control, and each function is called in each worker. Then three things are measured: the PSS of all of
its processes, at most 130 MB plus 4.5 MB per function; the p90 of two clients' calls of evenly drawn functions,
compared with the p90 of their calls of one function; and the p90 during a release that changes one function, whose new
version is compiled meanwhile (it isn't kept between runs), compared with the p90 while LLVM alone compiles an equally
large module. The ratio is the smallest of the three, each divided by its bar (the p99s are reported), and 0 if a worker
died.

It uses 25 functions, or the given number (`just bench many 200`). The first run compiles for a minute on two cores, for
200 functions seven minutes. The results are kept in `.skerry/bench/many` (1.5 GB for 200) by content, even if the run
was interrupted, and later runs reuse them.
"""

import asyncio
import functools
import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import uvloop

from bench import result
from bench.parts import cpu, modules, pss
from bench.parts.given_releases import COMPILE_WAIT, Release
from bench.parts.load import percentile
from control.local.process import ending_with_us
from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.ipc.frames import LocalFunction

BAR = 1
MEMORY_ALONE, MEMORY_EACH = 130e6, 4.5e6
"""The bytes that a node may take, and those per function."""
DRAWN_OVER, RELEASE_OVER = 0.6, 0.6
"""The least permitted ratio of each floor's p90 to the measured one."""
FUNCTIONS = 25
SIZE = 2_000_000
WORKERS = 2
WARM_ROUNDS = 5
CALLS = 1000
"""Calls by each client in a round."""
ROUNDS = 3
CLIENTS = 2
KEPT = Path(__file__).parents[1] / ".skerry" / "bench" / "many"
FOLDERS = ("artifacts", "aot")


@dataclass
class Node:
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession

    async def release(self, given: Release) -> None:
        """Move the node to another release, and wait until it is there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(given) + b"\n")
        async with asyncio.timeout(COMPILE_WAIT):
            line = await self.process.stdout.readline()
        assert line == b"applied\n", line

    async def call(self, at: int, *numbers: int) -> float:
        """Call function `at`, which must give the answer of one of these modules; return the seconds it took."""
        started = time.perf_counter()
        async with self.http.post(f"/functions/f{at}") as answer:
            body = await answer.read()
        took = time.perf_counter() - started
        assert answer.status == 200, body
        assert body in [modules.answer(number) for number in numbers], body
        return took

    async def workers(self) -> dict[str, Any]:
        async with self.http.get("/_skerry/status") as answer:
            workers: dict[str, Any] = (await answer.json())["workers"]
        return workers


async def main(functions: int) -> None:
    machine = cpu.machine()
    KEPT.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="run-", dir=KEPT))
    try:
        numbers = list(range(functions))
        _link(KEPT, state)
        started = time.monotonic()
        try:
            async with _node(state) as node:
                await node.release(_release(1, numbers, state))
        finally:
            _link(state, KEPT)
        compiling = time.monotonic() - started
        async with _node(state) as node:
            details = await _measure(node, numbers, state)
    finally:
        shutil.rmtree(state)
    over = {
        "memory": (MEMORY_ALONE + MEMORY_EACH * functions) / (details["mb"]["total"] * 1e6),
        "drawn": details["one_p90_ms"] / details["p90_ms"] / DRAWN_OVER,
        "release": details["compiling_p90_ms"] / details["release_p90_ms"] / RELEASE_OVER,
    }
    details |= {"of_bar": {name: round(each, 3) for name, each in over.items()}, "functions": functions}
    details |= {"first_release_s": round(compiling, 1), "machine": machine}
    print(details)
    result.write("many", 0.0 if details["deaths"] else min(over.values()), BAR, details)


async def _measure(node: Node, numbers: list[int], state: Path) -> dict[str, Any]:
    changed = [len(numbers), *numbers[1:]]
    # Before anything is measured: these make new modules.
    given = _release(2, changed, state)
    wasm = modules.make(len(numbers) + 1, SIZE)
    for _ in range(WARM_ROUNDS):
        for number in numbers:
            # Concurrently, so that each worker gets one.
            await asyncio.gather(*[node.call(number, number) for _ in range(WORKERS)])
    times, one = [], []
    for _ in range(ROUNDS):
        times += await _drawn(node, numbers, CALLS)
        one += await _drawn(node, numbers[:1], CALLS)
    samples = []
    for _ in range(5):
        await asyncio.sleep(1)
        samples.append(await asyncio.to_thread(pss.node, node.process.pid))

    compiling = asyncio.create_task(_compile(state, wasm))
    beside_compiling: list[float] = []
    while not compiling.done():
        beside_compiling += await _drawn(node, numbers[1:], 50)
    await compiling

    started = time.monotonic()
    applying = asyncio.create_task(node.release(given))
    beside: list[float] = []
    while not applying.done():
        beside += await _drawn(node, numbers[1:], 50)
    took = time.monotonic() - started
    await applying
    # Loaded functions stay loaded: each of the others is called once more, in the first calls after the change.
    beside += [await node.call(number, number) for number in numbers[1:]]
    await node.call(0, len(numbers))
    return {
        "mb": {part: round(median(sample[part] for sample in samples) / 1e6, 1) for part in samples[0]},
        "p50_ms": _percentile(times, 0.5),
        "p99_ms": _percentile(times, 0.99),
        "worst_ms": _percentile(times, 1.0),
        "p90_ms": _percentile(times, 0.9),
        "one_p90_ms": _percentile(one, 0.9),
        "compiling_p90_ms": _percentile(beside_compiling, 0.9),
        "release_s": round(took, 2),
        "release_calls": len(beside),
        "release_p90_ms": _percentile(beside, 0.9),
        "release_p99_ms": _percentile(beside, 0.99),
        "release_worst_ms": _percentile(beside, 1.0),
        "deaths": (await node.workers())["deaths"],
    }


async def _compile(state: Path, wasm: bytes) -> None:
    """Have LLVM alone compile this module, as the node does for a release."""
    work = state / "bare"
    work.mkdir()
    path = work / "module.wasm"
    path.write_bytes(wasm)
    program = (
        "import pathlib; from edge_runtime.aot_cache import QUICK; "
        "from edge_runtime.guests.function_code import compile_artifact; "
        f"work = pathlib.Path({str(work)!r}); compile_artifact((work / 'module.wasm').read_bytes(), work, QUICK)"
    )
    child = await asyncio.create_subprocess_exec(*ending_with_us([sys.executable, "-c", program]))
    assert await child.wait() == 0
    shutil.rmtree(work)


async def _drawn(node: Node, numbers: Sequence[int], calls: int) -> list[float]:
    """Call evenly drawn functions, this many per client, one at a time; return the seconds of each call."""

    async def client(seed: int) -> list[float]:
        drawn = random.Random(seed).choices(numbers, k=calls)
        return [await node.call(number, number) for number in drawn]

    found = await asyncio.gather(*[client(seed) for seed in range(CLIENTS)])
    return [seconds for several in found for seconds in several]


def _percentile(times: Sequence[float], part: float) -> float:
    return round(percentile(sorted(times), part) * 1000, 2)


@asynccontextmanager
async def _node(state: Path) -> AsyncIterator[Node]:
    arguments = ["-m", "bench.parts.given_releases", str(state), str(WORKERS), str(os.getpid())]
    log = state / "log"
    pipe = asyncio.subprocess.PIPE
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=stderr, limit=1 << 20
        )
    try:
        async with asyncio.timeout(60):
            while not (found := re.search(r"serving on 127\.0\.0\.1 port (\d+)", log.read_text())):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{found[1]}") as http:
            made = Node(process, http)
            while (await made.workers())["fit"] < WORKERS:
                await asyncio.sleep(0.05)
            yield made
    except BaseException:
        print(log.read_text()[-2000:], file=sys.stderr)
        raise
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _release(generation: int, numbers: Sequence[int], state: Path) -> Release:
    """Put the modules' artifacts on the node's disk."""
    manifest: dict[str, Any] = {"abi": "direct"}
    wanted = msgspec.convert(manifest, Manifest)
    digest = manifest_digest(wanted)
    functions = []
    for at, number in enumerate(numbers):
        sha256 = _artifact(number, state)
        functions.append(LocalFunction(f"f{at}", number + 1, sha256, wanted, digest))
    planned = [wire.PlannedFunction(f.name, f.version, f.sha256, 0, "", manifest, digest) for f in functions]
    plan = wire.Plan(
        sync_id=str(uuid4()),
        lease=60.0,
        generation=generation,
        release_id=str(uuid4()),
        release_number=generation,
        schema_floor=0,
        schema_changes=[],
        functions=planned,
    )
    return Release(plan, functions)


@functools.cache
def _artifact(number: int, state: Path) -> str:
    """Make a module, which takes a third of a second, and return its SHA-256."""
    wasm = modules.make(number, SIZE)
    sha256 = hashlib.sha256(wasm).hexdigest()
    path = state / "artifacts" / f"{sha256}.wasm"
    if not path.exists():
        path.write_bytes(wasm)
    return sha256


def _link(source: Path, target: Path) -> None:
    """Link the artifacts and AOT files of `source` into `target`."""
    for name in FOLDERS:
        (target / name).mkdir(mode=0o700, exist_ok=True)
        if (source / name).is_dir():
            for path in (source / name).iterdir():
                if path.is_file() and not (target / name / path.name).exists():
                    os.link(path, target / name / path.name)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else FUNCTIONS))
