"""What does a fleet of 200,000 nodes cost control? Each limit over what was measured, the worst of them.

- a replica's start, until it is ready: 5 s;
- making a release for all of them: 1 s;
- a pass of the monitor in which nothing changed: 0.2 s;
- recording that all of them are offline: 15 s, so that it is there 90 s after the last heartbeat;
- recording that all of them are overdue: 60 s.
"""

import asyncio
import time
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
LIMITS = {"start": 5.0, "release": 1.0, "quiet_pass": 0.2, "offline": 15.0, "overdue": 60.0}
"""Seconds."""
LEFT = {
    "offline": "SELECT EXISTS (SELECT FROM node_presence WHERE NOT offline)",
    "overdue": "SELECT EXISTS (SELECT FROM node_presence WHERE NOT overdue)",
}
"""Whether there are nodes yet of which it isn't recorded."""
LOOK = 0.25
"""Seconds between two looks whether all is recorded."""
STUCK = 300.0
"""Seconds within which it must be."""


async def main() -> None:
    machine = cpu.machine()
    async with folder() as where, embedded.services(where / "home") as services:
        site = await replica.prepare(services.metadata_url, services.artifacts_url, pki.ensure(where / "pki"), where)
        connection = await asyncpg.connect(services.metadata_url)
        try:
            clock = SetClock(SystemClock().now())
            await many_nodes.add(connection, clock.now())
            taken = await _measure(site, clock, connection)
        finally:
            await connection.close()
    ratio = min(LIMITS[name] / seconds for name, seconds in taken.items())
    details: dict[str, Any] = {f"{name}_ms": round(seconds * 1000) for name, seconds in taken.items()}
    result.write("growth", ratio, BAR, {**details, "nodes": many_nodes.NODES, "machine": machine})


async def _measure(site: replica.Site, clock: SetClock, connection: Any) -> dict[str, float]:
    taken = {}
    began = time.monotonic()
    async with site.running(clock=clock) as started:
        while (await started.call("GET", "/readyz", token="")).status != 200:
            await asyncio.sleep(0.01)
        taken["start"] = time.monotonic() - began
        began = time.monotonic()
        answer = await started.call("POST", "/v1/releases", {"functions": {}})
        assert answer.status == 201, answer
        taken["release"] = time.monotonic() - began
        passes = started.services.monitor()
        began = time.monotonic()
        await passes.look(clock.now())
        taken["quiet_pass"] = time.monotonic() - began
        for name, seconds in (("offline", 100.0), ("overdue", 300.0)):
            clock.advance(seconds)
            began = time.monotonic()
            # The replica's own monitor records it, beside which another one would be in its way.
            async with asyncio.timeout(STUCK):
                while await connection.fetchval(LEFT[name]):
                    await asyncio.sleep(LOOK)
            taken[name] = time.monotonic() - began
    return taken


if __name__ == "__main__":
    uvloop.run(main())
