"""How long do writers wait while a release is rehearsed on a copy of the node's data? 200 writes a second of one row.

The writes come when they are due, whether earlier ones are answered or not (an open loop), and each counts from when it
was due. The node has half a million rows of 150 bytes; the release fills a new column in every row and has an index
built. A round is a rehearsal, from the request for it to the node's report, and then a process in the idle classes of
processor and disk that copies as many bytes as a rehearsal writes. The ratio is 1.2 divided by (the median of the p99
of the writes during the rehearsals over that of those beside the copies).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import uvloop

from bench import result
from bench.migrate import FIRST, ROWS, fill
from bench.parts import cpu, idle_copy, pss
from bench.parts.load import percentile
from bench.parts.servers import Edge, Site, edge, folder, site
from edge_runtime.sql import database
from tests.guests.build import guest

BAR = 1
TIMES = 1.2
"""The most that the writes' p99 may be, as a multiple of that beside a copy."""
RATE = 200
CLIENTS = 16
ROUNDS = 5
LEAST = 2.0
"""Seconds of a copy, which is made again and again meanwhile: a p99 needs that many writes."""
LIMIT = 600.0
CHANGE = (
    "ALTER TABLE items ADD COLUMN total REAL; UPDATE items SET total = amount * 1.2; "
    "CREATE INDEX items_customer ON items (customer)"
)


class Writers:
    """Clients that each change a row when their turn is due, until the block ends."""

    def __init__(self, node: Edge) -> None:
        self.took: list[tuple[float, float]] = []
        """For each write when it was due (monotonic clock), and the seconds until it was answered."""
        self._node = node

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write(began + n / RATE, random.Random(n))) for n in range(CLIENTS)]
            yield
            for task in tasks:
                task.cancel()

    def p99(self, since: float, until: float) -> float:
        return percentile(sorted(took for due, took in self.took if since <= due <= until), 0.99)

    async def _write(self, due: float, chance: random.Random) -> None:
        while True:
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            sql = f"UPDATE items SET amount = amount + 1 WHERE id = {chance.randint(1, ROWS)}"
            async with self._node.http.post("/functions/sql", data=orjson.dumps({"sql": sql})) as answer:
                body = await answer.read()
            if answer.status != 200 or b'"changes":1' not in body:
                raise self._node.process.failure(f"a write: {answer.status} {body.decode()}")
            self.took.append((due, time.monotonic() - due))
            due += CLIENTS / RATE


async def rehearse(control: Site, node: Edge, number: int) -> dict[str, Any]:
    """Have the node rehearse a release, the group's `number`th; return what it reported."""
    await control.call("POST", "/v1/releases", {"rehearsal_only": True, "allow_stall": True, "allow_loss": True})
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        (found,) = (await control.call("GET", f"/v1/rollouts/default/{number}/rehearsal"))["items"]
        if found["told_at"] is not None:
            if found["outcome"] != "passed":
                raise node.process.failure(f"the rehearsal: {found}")
            await control.call("POST", f"/v1/rollouts/default/{number}/abort", {})
            return dict(found)
        await asyncio.sleep(0.05)
    raise node.process.failure("the node doesn't report its rehearsal")


class Written:
    """How many bytes the node's processes other than its known ones have written, the most at any time."""

    def __init__(self, node: Edge) -> None:
        self.most = 0
        self._node = node

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        workers = (await self._node.status())["workers"]
        known = {self._node.process.pid, workers["zygote"], *workers["pids"], *workers["spares"]}
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._watch(known))
            yield
            task.cancel()

    async def _watch(self, known: set[int]) -> None:
        while True:
            # What a process has written counts as its parent's once it has ended.
            processes = [pid for pid in pss.descendants(self._node.process.pid) if pid not in known]
            self.most = max(self.most, sum(map(_written, processes)))
            await asyncio.sleep(0.02)


def _written(pid: int) -> int:
    """Return the bytes that a process has had written to disk; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    return 0


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.change("first", FIRST)
        await control.release({"sql": await control.push("sql", guest("sql"), {"sql": "write"})})
        await node.at_release(1, best=True)
        path = where / "edge" / database.FILE
        await asyncio.to_thread(fill, path)
        await control.change("more", CHANGE)
        written, writers = Written(node), Writers(node)
        async with written.watched():
            first = await rehearse(control, node, 2)
        p99: dict[str, list[float]] = {"rehearsal": [], "copy": []}
        took: dict[str, list[float]] = {"rehearsal": [], "copy": []}
        async with idle_copy.beside(path, where / "copy.db") as copy, writers.running():
            for number in range(3, 3 + ROUNDS):
                for name, work in (
                    ("rehearsal", lambda: rehearse(control, node, number)),  # noqa: B023
                    ("copy", lambda: copy.run(written.most)),
                ):
                    since = time.monotonic()
                    await work()
                    while name == "copy" and time.monotonic() < since + LEAST:
                        await work()
                    until = time.monotonic()
                    took[name].append(until - since)
                    p99[name].append(writers.p99(since, until))
    ratio = median(p99["rehearsal"]) / median(p99["copy"])
    details = {
        "p99_ms": {name: [round(seconds * 1000, 2) for seconds in found] for name, found in p99.items()},
        "seconds": {name: [round(seconds, 1) for seconds in found] for name, found in took.items()},
        "write_p50_ms": round(median(took for _, took in writers.took) * 1000, 2),
        "writes": len(writers.took),
        "written_mb": round(written.most / 1e6, 1),
        "alone": {name: first[name] for name in ("seconds", "database", "changes")},
        "machine": machine,
    }
    result.write("rehearse", TIMES / ratio, BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
