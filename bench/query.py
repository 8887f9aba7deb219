"""Is a call with one SELECT by key cheaper than workerd's with a Durable Object's SQLite?

A 256-byte POST with an item's key in its query; the guest SELECTs the item with a parameter and answers with its name
and price. Ours is a real node with a guest in C on the ABI `direct`, with a fresh instance each, on libsql; workerd is
one process with one Durable Object, on disk. 64 connections of wrk, which shares both cores with what it loads. The
ratio is workerd's CPU per request over ours. The details have requests a second, and the same for our uncompiled node.
"""

import asyncio
from functools import partial
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import both, cpu, rounds, workerd
from bench.parts.rounds import Loaded, Rounds
from bench.parts.wrk import Target, Wrk
from tests.guests.build import guest

BAR = 1.5
CONNECTIONS = 64
ROUNDS = 5
SECONDS = 1
BODY = bytes(range(256))
ITEMS = 1000
KEY = 421
ANSWER = b'[["item 421",210.5]]'

TABLE = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL);"
ROWS = f"""WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ITEMS})
  INSERT INTO items SELECT i, 'item ' || i, i * 0.5 FROM n;"""


async def main() -> None:
    found, details = await measured(guest("query"))
    ratio = rounds.over(found, "workerd", "ours", "cpu_us")
    p99_over_p50 = round(median(each["p99_ms"] / each["p50_ms"] for each in found["ours"]), 2)
    result.write("query", ratio, BAR, {**details, "p99_over_p50": p99_over_p50})


async def measured(module: bytes) -> tuple[Rounds, dict[str, Any]]:
    """Return what the rounds on a node with a module that answers as above, and on workerd, have measured."""
    workerd.install()
    machine = cpu.machine()
    async with (
        both.nodes({"query": (module, {"sql": "read"})}, f"{TABLE}\n{ROWS}") as nodes,
        workerd.serve(nodes[""].folder, "query", workerd.query(ITEMS)) as other,
    ):
        wrk = Wrk(nodes[""].folder, BODY, CONNECTIONS)
        path = f"/functions/query?id={KEY}"
        ours = {"ours" + suffix: [Target(node.port, path)] for suffix, node in nodes.items()}
        targets = {**ours, "workerd": [Target(other.port, f"/?id={KEY}")]}
        pids = {"ours" + suffix: node.pids for suffix, node in nodes.items()} | {"workerd": [other.pid]}
        await wrk.check([one for each in targets.values() for one in each], ANSWER)
        loaded = {
            name: Loaded(partial(wrk.run, each, SECONDS), pids[name], node=name in ours)
            for name, each in targets.items()
        }
        found = await rounds.take(loaded, ROUNDS)
        await wrk.check([one for each in targets.values() for one in each], ANSWER)
        for node in nodes.values():
            await node.check()
    return found, {**rounds.medians(found), **both.ratios(nodes, found, "workerd"), "machine": machine}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
