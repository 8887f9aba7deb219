"""How long do writers wait while a release is rehearsed on a copy of the node's data?

Eight clients each change one of half a million rows of 150 bytes, with 10 ms in between, without a pause. The release
fills a new column in every row, and has an index built. A round is a rehearsal, from the request for it to the node's
report, and then a process in the idle classes of processor and disk that copies as many bytes as a rehearsal writes.
The ratio is 1.2 divided by (the median of the p99 of the writes during the rehearsals over that of those beside the
copies).
"""

import asyncio
import contextlib
import time
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu, idle_copy
from bench.parts.load import percentile
from bench.parts.other_processes import Peak
from bench.parts.row_writers import FIRST, Writers, fill
from bench.parts.servers import Edge, Site, edge, folder, site
from edge_runtime.sql import database
from tests.guests.build import guest

BAR = 1
TIMES = 1.2
"""The most that the writes' p99 may be, as a multiple of that beside a copy."""
ROUNDS = 5
LEAST = 2.0
"""Seconds of a copy, which is made again and again meanwhile: a p99 needs that many writes."""
LIMIT = 600.0
CHANGE = (
    "ALTER TABLE items ADD COLUMN total REAL; UPDATE items SET total = amount * 1.2; "
    "CREATE INDEX items_customer ON items (customer)"
)


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


def written(pids: list[int]) -> int:
    """Return how many bytes these processes have had written to disk."""
    # What a process has written counts as its parent's once it has ended.
    return sum(map(_written, pids))


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
        copied, writers = Peak(node, written, 0.02), Writers(node)
        async with copied.watched():
            first = await rehearse(control, node, 2)
        p99: dict[str, list[float]] = {"rehearsal": [], "copy": []}
        lasted: dict[str, list[float]] = {"rehearsal": [], "copy": []}
        async with idle_copy.beside(path, where / "copy.db") as copy, writers.running():
            for number in range(3, 3 + ROUNDS):
                for name, work in (
                    ("rehearsal", lambda: rehearse(control, node, number)),  # noqa: B023
                    ("copy", lambda: copy.run(copied.most)),
                ):
                    since = time.monotonic()
                    await work()
                    while name == "copy" and time.monotonic() < since + LEAST:
                        await work()
                    until = time.monotonic()
                    lasted[name].append(until - since)
                    waits = sorted(took for ended, took in writers.took if since <= ended <= until)
                    p99[name].append(percentile(waits, 0.99))
    ratio = median(p99["rehearsal"]) / median(p99["copy"])
    details = {
        "p99_ms": {name: [round(seconds * 1000, 2) for seconds in found] for name, found in p99.items()},
        "seconds": {name: [round(seconds, 1) for seconds in found] for name, found in lasted.items()},
        "write_p50_ms": round(median(wait for _, wait in writers.took) * 1000, 2),
        "writes": len(writers.took),
        "written_mb": round(copied.most / 1e6, 1),
        "alone": {name: first[name] for name in ("seconds", "database", "changes")},
        "machine": machine,
    }
    result.write("rehearse", TIMES / ratio, BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
