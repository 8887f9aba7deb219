"""Is a call with one SELECT by key faster than workerd's with a Durable Object's SQLite?

A 256-byte POST with an item's key in its query; the guest SELECTs the item with a parameter and answers with its name
and price. Ours is a real node with a guest in C by the ABI `direct`, in a fresh instance each, on libsql; workerd is
one process with one Durable Object, on its disk. 64 connections of wrk, which shares both cores with what it loads.
The ratio is our requests a second over workerd's.
"""

import asyncio
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu, workerd
from bench.parts.servers import edge, folder, site
from bench.parts.wrk import Target, Wrk
from bench.workerd import figures, medians, over
from tests.guests.build import guest

BAR = 1.5
CONNECTIONS = 64
ROUNDS = 8
SECONDS = 2
BODY = bytes(range(256))
ITEMS = 1000
KEY = 421
ANSWER = b'[["item 421",210.5]]'

TABLE = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL);"
ROWS = f"""WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ITEMS})
  INSERT INTO items SELECT i, 'item ' || i, i * 0.5 FROM n;"""


async def main() -> None:
    workerd.install()
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        async with site(where, cores) as control:
            node = await stack.enter_async_context(edge(control, cores))
            await control.call("POST", "/v1/schema-changes", {"name": "items", "sql": f"{TABLE}\n{ROWS}"})
            version = await control.push("query", guest("query"), {"sql": "read"})
            await control.call("POST", "/v1/releases", {"functions": {"query": version}})
            status = await node.at_release(1, best=True)
        # Control and its services have ended: the node serves without, and the cores are its own.
        other = await stack.enter_async_context(workerd.serve(where, "query", workerd.query(ITEMS)))
        loaded = {
            "ours": (Target(node.process.port, f"/functions/query?id={KEY}"), _pids(node.process.pid, status)),
            "workerd": (Target(other.port, f"/?id={KEY}"), [other.pid]),
        }
        wrk = Wrk(where, BODY, CONNECTIONS)
        for target, _ in loaded.values():
            await wrk.check([target], ANSWER)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loaded}
        for number in range(ROUNDS + 1):
            for name, (target, pids) in loaded.items():
                before = [cpu.seconds([pid]) for pid in pids]
                done = await wrk.run([target], SECONDS)
                used = [cpu.seconds([pid]) - was for pid, was in zip(pids, before, strict=True)]
                if number:  # the first warms up
                    rounds[name].append(figures(done, used, workers=name == "ours"))
        for target, _ in loaded.values():
            await wrk.check([target], ANSWER)
        after = await node.status()
    assert sorted(after["workers"]["pids"]) == sorted(status["workers"]["pids"]), "a worker died meanwhile"
    details: dict[str, Any] = {
        **medians(rounds),
        "ratios": [round(a["rate"] / b["rate"], 3) for a, b in zip(rounds["ours"], rounds["workerd"], strict=True)],
        "p99_over_p50": round(median(found["p99_ms"] / found["p50_ms"] for found in rounds["ours"]), 2),
        "machine": machine,
    }
    result.write("query", over(rounds, "ours", "workerd"), BAR, details)


def _pids(front: int, status: Any) -> list[int]:
    return [front, *status["workers"]["pids"]]


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
