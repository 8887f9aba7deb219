"""Does a node leak? Full load for 10 minutes (or the number given), with a release every 5 s.

64 clients: most have a body echoed, some read a row, some change one; every answer is checked. Each release has another
of the echo's versions, in turn, so the workers constantly load and unload modules. Every 2 s the private memory of the
front, its zygote and each worker is measured, and their open descriptors are counted. The slopes are those of a
straight line through the second half. The ratio is the permitted growth over the growth of the front or the workers,
whichever is worse (10 at most), and 0 if there are more descriptors at the end than at the start, or a worker died.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any, NamedTuple

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import MOST_SECONDS, Client, Expected, request
from bench.parts.pss import own_memory
from bench.parts.servers import Edge, Site, edge, folder, site
from tests.guests.build import guest

BAR = 1
MINUTES = 10.0
CLIENTS = {"echo": 48, "read": 12, "change": 4}
RELEASE_EVERY = 5.0
SAMPLE_EVERY = 2.0
MAY_GROW = 0.5
"""MiB a minute, over minutes: less than one release, or a thousandth of the calls, would leave behind."""
SPARE = 8
"""Descriptors that may be open for a moment: connections to control, a child that is being started."""
MOST = 10.0
BODY = bytes(range(256))
SCHEMA = "CREATE TABLE counts (id INTEGER PRIMARY KEY, number INTEGER NOT NULL); INSERT INTO counts VALUES (1, 0)"
READ = b'{"sql":"SELECT id FROM counts WHERE id = ?","params":[1]}'
CHANGE = b'{"sql":"UPDATE counts SET number = number + 1 WHERE id = ?","params":[1]}'


class Sample(NamedTuple):
    minutes: float
    front: float
    """MiB of the front."""
    zygote: float
    workers: float
    """Mean MiB of the processes that lived all the time."""
    descriptors: int
    """Open descriptors of all processes, including the clients' connections."""


async def main(minutes: float) -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        echoes = [await control.push("echo", _distinct(guest("echo"), number), {}) for number in range(2)]
        await control.change("counts", SCHEMA)
        others = {
            "read": await control.push("read", guest("sql"), {"sql": "read"}),
            "change": await control.push("change", guest("sql"), {"sql": "write"}),
        }
        # Both once, so that their compiled code is there.
        for number, version in enumerate(echoes):
            await control.release({**others, "echo": version})
            status = await node.at_release(number + 1, best=True)
        exchanges = [
            (request(f"/functions/{name}", body), Expected(200, await _answer(node, name, body)))
            for name, body in (("echo", BODY), ("read", READ), ("change", CHANGE))
            for _ in range(CLIENTS[name])
        ]
        async with Client(node.process.port, exchanges) as client:
            samples, answers, releases = await _soak(control, node, client, echoes, status["workers"], minutes)
        after = await node.status()
    half = samples[len(samples) // 2 :]
    slopes = {name: _slope(half, name) for name in ("front", "zygote", "workers")}
    early, late = ([sample.descriptors for sample in part] for part in (samples[: len(samples) // 2], half))
    leaked = min(late) - min(early)
    deaths = after["workers"]["deaths"] - status["workers"]["deaths"]
    for name, slope in slopes.items():
        print(f"{name}: {slope:+.3f} MiB a minute, {getattr(half[-1], name):.1f} MiB at the end")
    print(f"descriptors: {min(early)} at the start, {min(late)} at the end; {releases} releases, {answers} answers")
    worst = max(slopes["front"], slopes["workers"])
    flat = min(MOST, MAY_GROW / worst) if worst > 0 else MOST
    details: dict[str, Any] = {
        "minutes": minutes,
        "answers": answers,
        "releases": releases,
        "mib_a_minute": {name: round(slope, 4) for name, slope in slopes.items()},
        "mib_at_start": [round(value, 1) for value in samples[0][1:4]],
        "mib_at_end": [round(value, 1) for value in samples[-1][1:4]],
        "descriptors": [min(early), min(late)],
        "worker_deaths": deaths,
        "machine": machine,
    }
    result.write("soak", 0.0 if leaked > SPARE or deaths else flat, BAR, details)


async def _soak(
    control: Site, node: Edge, client: Client, echoes: list[int], workers: dict[str, Any], minutes: float
) -> tuple[list[Sample], int, int]:
    """Load the node for this many minutes; return samples, answers and releases. Raises: WrongAnswer."""
    samples: list[Sample] = []
    answers = releases = 0
    started = time.monotonic()
    end = started + minutes * 60

    async def release() -> None:
        nonlocal releases
        while time.monotonic() < end - RELEASE_EVERY:
            version = echoes[releases % 2]
            await control.release({"echo": version})
            await node.at_release(len(echoes) + releases + 1)
            releases += 1
            await asyncio.sleep(RELEASE_EVERY)

    async def sample() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE_EVERY)
            # In a thread: reading the memory of a process takes milliseconds.
            taken = await asyncio.to_thread(_take, node.process.pid, workers["zygote"], workers["pids"])
            samples.append(Sample((time.monotonic() - started) / 60, *taken))
            if len(samples) % 15 == 0:
                print(f"{samples[-1].minutes:5.1f} min: front {taken[0]:.1f} MiB, a worker {taken[2]:.1f} MiB")

    async with asyncio.TaskGroup() as group:
        group.create_task(release())
        group.create_task(sample())
        while time.monotonic() < end:
            answers += (await client.run(min(MOST_SECONDS, max(0.1, end - time.monotonic())))).answers
    return samples, answers, releases


def _take(front: int, zygote: int, workers: Sequence[int]) -> tuple[float, float, float, int]:
    memory = [own_memory(pid) for pid in workers]
    descriptors = sum(_descriptors(pid) for pid in (front, zygote, *workers))
    return own_memory(front), own_memory(zygote), sum(memory) / len(memory), descriptors


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def _slope(samples: Sequence[Sample], name: str) -> float:
    """Return the slope in MiB a minute."""
    return linear_regression([s.minutes for s in samples], [getattr(s, name) for s in samples]).slope


async def _answer(node: Edge, name: str, body: bytes) -> bytes:
    async with node.http.post(f"/functions/{name}", data=body) as answer:
        content = await answer.read()
        if answer.status != 200:
            raise node.process.failure(f"{name} answers {answer.status} {content!r}")
        return content


def _distinct(wasm: bytes, number: int) -> bytes:
    """Return the module as a different artifact: with a custom section at its end."""
    name = b"soak"
    content = bytes([len(name)]) + name + bytes([number])
    return wasm + bytes([0, len(content)]) + content


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
