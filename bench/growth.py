"""What does a fleet of 50,000 nodes cost control?

Five measurements, each with a floor from the same run; the ratio is the smallest of floor over measured, divided by its
bar.

- A replica's start, until it is ready; making a release for all; a pass of the monitor in which nothing changed: beside
  the same before there is a node, in the same database. Such a thing may cost more with nodes, and not in proportion
  to them. The median of several.
- Recording that all are offline, and that all are overdue: beside one bare transaction that changes the same columns of
  the same rows back, and writes as many warnings into a table like theirs, by one statement for each table.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import asyncpg
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import folder
from control.clock import SystemClock
from control.local import embedded, pki
from tests.support import many_nodes, replica
from tests.support.replica import SetClock

BAR = 1
NODES = 50_000
WANTED = {"start": 0.5, "release": 0.35, "quiet_pass": 0.22, "offline": 0.4, "overdue": 0.1}
"""The least permitted ratio of each floor to the measured time."""
ROUNDS = 4
RECORDED = {
    "offline": (
        100.0,
        "SELECT EXISTS (SELECT FROM node_presence WHERE NOT offline)",
        (
            "UPDATE node_presence SET offline = false",
            "UPDATE nodes SET state = 'online', state_since = $1::timestamptz",
        ),
    ),
    "overdue": (
        300.0,
        "SELECT EXISTS (SELECT FROM node_presence WHERE NOT overdue)",
        (
            "UPDATE node_presence SET overdue = false",
            "INSERT INTO floor SELECT w.* FROM warnings AS w",
        ),
    ),
}
"""For each: the seconds by which the clock advances, whether any nodes are left for which it isn't recorded, and what
undoes it."""
LOOK = 0.1
"""Seconds between two checks whether all is recorded."""
STUCK = 300.0
"""Seconds within which it must be."""


async def main() -> None:
    machine = cpu.machine()
    async with folder() as where, embedded.services(where / "home") as services:
        site = await replica.prepare(services.metadata_url, services.artifacts_url, pki.ensure(where / "pki"), where)
        connection = await asyncpg.connect(services.metadata_url)
        try:
            clock = SetClock(SystemClock().now())
            await connection.execute("CREATE TABLE floor (LIKE warnings INCLUDING ALL)")
            without = await _few(site, clock)
            await many_nodes.add(connection, clock.now(), NODES)
            taken = await _few(site, clock)
            for name in RECORDED:
                taken[name], without[name] = await _recorded(site, clock, connection, name)
        finally:
            await connection.close()
    ratios = {name: without[name] / seconds for name, seconds in taken.items()}
    details: dict[str, Any] = {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "ms": {name: round(seconds * 1000, 1) for name, seconds in taken.items()},
        "floor_ms": {name: round(seconds * 1000, 1) for name, seconds in without.items()},
        "nodes": NODES,
        "machine": machine,
    }
    result.write("growth", min(ratio / WANTED[name] for name, ratio in ratios.items()), BAR, details)


async def _few(site: replica.Site, clock: SetClock) -> dict[str, float]:
    """Measure a replica's work for any number of nodes; return the median seconds of each."""
    found: dict[str, list[float]] = {"start": [], "release": [], "quiet_pass": []}
    # One more for one-time work.
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        async with site.running(clock=clock) as started:
            while (await started.call("GET", "/readyz", token="")).status != 200:
                await asyncio.sleep(0.005)
            found["start"].append(time.perf_counter() - began)

            async def release(started: replica.Replica = started) -> None:
                answer = await started.call("POST", "/v1/releases", {"functions": {}, "now": True})
                assert answer.status == 201, answer

            passes = started.services.monitor()
            found["release"].append(await _timed(release))
            found["quiet_pass"].append(await _timed(lambda passes=passes: passes.look(clock.now())))  # type: ignore[misc]
    return {name: median(seconds[1:]) for name, seconds in found.items()}


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _recorded(site: replica.Site, clock: SetClock, connection: Any, name: str) -> tuple[float, float]:
    """Return the seconds until all nodes are recorded in this state, and those of the bare transaction that undoes
    it."""
    later, left, back = RECORDED[name]
    async with site.running(clock=clock) as started:
        while (await started.call("GET", "/readyz", token="")).status != 200:
            await asyncio.sleep(0.005)
        clock.advance(later)
        began = time.perf_counter()
        # The replica's own monitor records it; another one would get in its way.
        async with asyncio.timeout(STUCK):
            while await connection.fetchval(left):
                await asyncio.sleep(LOOK)
        taken = time.perf_counter() - began
    began = time.perf_counter()
    async with connection.transaction():
        for statement in back:
            await connection.execute(statement, *([clock.now()] if "$1" in statement else []))
    return taken, time.perf_counter() - began


if __name__ == "__main__":
    uvloop.run(main())
