"""What does a backup cost those who write?

Eight clients each change a row a call, without a pause, at synchronous FULL: on a node whose group is backed up, in
files that go to a real store each `INTERVAL` seconds, and on one without a backup. Rounds alternate; before each, both
nodes are quiet, and the store has everything, so no round pays for another. The ratio is the smaller of two, each over
its own bar: the commits a second with a backup over those without (0.9), and the p99 of a write without over that with
a backup (1 / 1.2), as medians.
"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import orjson
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import Client, Expected, request
from bench.parts.rounds import Load, Loaded, medians, over, take
from bench.parts.servers import Edge, edge, folder, site
from tests.guests.build import guest

BAR = 1
COMMITS = 0.9
"""The least commits a second with a backup, as a part of those without."""
TIMES = 1.2
"""The most that the p99 of a write with a backup may be, as a multiple of that without."""
ROUNDS = 16
"""Short ones, as the machine gets faster and slower within half a minute."""
INTERVAL = 5.0
"""Seconds between two uploads, half of the usual."""
SECONDS = INTERVAL
"""Of a round, which has one upload."""
WRITERS = 8
LIMIT = 120.0
"""Seconds for the store to have everything."""
SCHEMA = "CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT NOT NULL)"
ROWS = 10_000
FILL = f"""
INSERT INTO orders (id, note) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
SELECT i, hex(randomblob(60)) FROM n
"""
SQL = f"UPDATE orders SET note = hex(randomblob(60)) WHERE id = (SELECT abs(random()) % {ROWS} + 1)"
ANSWER = b'{"columns":[],"rows":[],"changes":1,"last_id":null}\n'
PLAIN, BACKED_UP = "plain", "backed up"
GROUPS = {PLAIN: "default", BACKED_UP: "shops"}


async def fill(node: Edge) -> None:
    """Write the rows."""
    async with node.http.post("/functions/sql", data=orjson.dumps({"sql": FILL})) as answer:
        body = await answer.read()
        if answer.status != 200 or b'"changes":%d,' % ROWS not in body:
            raise node.process.failure(f"the rows can't be written: {answer.status} {body.decode()}")


async def settled(node: Edge) -> dict[str, Any]:
    """Wait until the store has everything of a node that is backed up; return what its status says of it."""
    until = time.monotonic() + LIMIT
    while True:
        found = (await node.status())["backup"]
        if found is not None and found["error"]:
            raise node.process.failure(f"the backup: {found['error']}")
        if found is not None and found["reached"] and not found["lag_seconds"]:
            return dict(found)
        if time.monotonic() > until:
            raise node.process.failure(f"the store hasn't got everything: {found}")
        await asyncio.sleep(0.05)


async def main(count: int = ROUNDS) -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        control = await stack.enter_async_context(site(where, cores))
        await control.call("POST", "/v1/groups", {"name": GROUPS[BACKED_UP]})
        await control.call("PUT", f"/v1/groups/{GROUPS[BACKED_UP]}/backup", {"interval": INTERVAL})
        await control.change("orders", SCHEMA)
        version = await control.push("sql", guest("sql"), {"sql": "write"})
        nodes: dict[str, Edge] = {}
        for name, group in GROUPS.items():
            node = await stack.enter_async_context(edge(control, cores, group=group))
            await control.release({"sql": version}, group=group)
            await node.at_release(1, best=True)
            await fill(node)
            nodes[name] = node
        before = await settled(nodes[BACKED_UP])
        loaded: dict[str, Loaded] = {}
        written = request("/functions/sql", orjson.dumps({"sql": SQL}))
        for name, node in nodes.items():
            client = Client(node.process.port, [(written, Expected(200, ANSWER))] * WRITERS)
            await stack.enter_async_context(client)

            async def run(client: Client = client) -> Load:
                await settled(nodes[BACKED_UP])
                return await client.run(SECONDS)

            workers = (await node.status())["workers"]["pids"]
            loaded[name] = Loaded(run, [node.process.pid, *workers], node=True)
        rounds = await take(loaded, count)
        after = await settled(nodes[BACKED_UP])
    commits, p99 = over(rounds, BACKED_UP, PLAIN), over(rounds, BACKED_UP, PLAIN, "p99_ms")
    details = {
        "commits": round(commits, 3),
        "p99": round(p99, 3),
        "medians": medians(rounds),
        "rounds": rounds,
        "uploads": after["uploads"] - before["uploads"],
        "failures": after["failures"],
        "machine": machine,
    }
    result.write("backup", min(commits / COMMITS, TIMES / p99), BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
