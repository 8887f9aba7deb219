"""Shows rollouts on a fleet of this machine, and ends: status 0 if each release went as it must (`just demo-fleet`).

Two replicas of control behind a balancer, three real edges, and 300 simulated nodes, which speak the protocol as nodes
do. A release that fails on one shop's rows is stopped by its rehearsal, a slow one by a gate at 5 %, and a good one
goes out while the replicas are killed. Everything listens on 127.0.0.1, and is gone afterwards, also after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from scripts.demos import Wrong, must, run, say
from tests.guests.build import EXAMPLES, wat
from tests.support.fleet import Fleet, FleetEdge, fleet
from tests.support.simulated_nodes import Nature

WAIT = 180.0
"""Seconds for a rollout to come to where it must."""
EDGES, SIMULATED = 3, 300
SHOP = "edge-2"
"""The shop whose rows the bad release doesn't fit."""
CALLS = 10.0
"""Calls of each function on each node, a second."""
QUICK, SLOW = 1_000, 40_000_000
"""Turns of the function's loop: the slow version takes longer than a quick one does on a busy machine."""
SLOW_SECONDS = 0.5
"""How long the slow version takes on simulated nodes."""
GATE = {"metric": "p99", "function": "price", "than_before": "2x", "at_least_calls": 50}
SCHEMA = "CREATE TABLE visits (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, count INTEGER NOT NULL);"
BAD = "CREATE UNIQUE INDEX visits_by_count ON visits (count);"
"""Fails where two people have come equally often."""
PRICE = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "Content-Type: text/plain\\n\\n{text}\\n")
  (func (export "_start") (local $left i32) (local $x i32)
    (local.set $left (i32.const {turns}))
    (loop $again
      (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (i32.store (i32.const 1024) (local.get $x))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const {size}))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))
"""
"""A function that answers a price after some work."""


@dataclass
class Shown:
    """A line of the table at the end."""

    release: int
    what: str
    ended: str
    started: str
    why: str


class Demo:
    """One run of the demo."""

    def __init__(self, made: Fleet, nodes: int) -> None:
        self._fleet = made
        self._nodes = nodes
        self._table: list[Shown] = []

    async def run(self) -> None:
        """Do all steps. Raises: Wrong."""
        made = self._fleet
        with step("first release") as told:
            await made.change("visits", SCHEMA)
            visits = (EXAMPLES / "visits" / "visits.wasm").read_bytes()
            versions = {
                "visits": await made.push("visits", visits, sql="write"),
                "price": await self._push("1.00", QUICK),
            }
            first = await made.release(versions, now=True)
            await made.at_release(first, nodes=self._nodes, limit=WAIT)
            told.append(f"{self._nodes} nodes run release {first}")
        async with calling(made):
            await self._bad()
            await self._slow()
            await self._good()
        self._show()

    async def _bad(self) -> None:
        """A schema change that one shop's rows don't fit."""
        made = self._fleet
        with step("a bad release") as told:
            edge = made.edges[SHOP]
            for name in ("ada", "grace"):
                await call(made.session, edge, f"visits/{name}", "POST")
            change = await made.change("visits_by_count", BAD)
            number = await made.release(schema=change, rollout={"steps": ["5%", "100%"]})
            shown = await self._until(number, "paused")
            failed = await made.items(f"/v1/rollouts/default/{number}/rehearsal?outcome=failed")
            must([node["name"] for node in failed] == [SHOP], f"the rehearsal failed on {failed}")
            must(shown["step"] == 0 and shown["started"] == 0, f"nodes were started: {shown}")
            must(failed[0]["row"] == "visits id=2", f"the row isn't named: {failed}")
            why = f"{SHOP}, row {failed[0]['row']}: {failed[0]['code']}"
            told.append(f"release {number}: {shown['reason']}; {why}")
            self._line(shown, "a change that one shop's rows don't fit", why)
            await made.call("POST", f"/v1/rollouts/default/{number}/abort", {"reason": "two shoppers with one count"})
            # The shop corrects its rows: the next release brings the change, too.
            await call(made.session, edge, "visits/ada", "POST")

    async def _slow(self) -> None:
        """A version that takes much longer, on the nodes of the first step."""
        made = self._fleet
        with step("a slow release") as told:
            version = await self._push("2.00", SLOW)
            made.simulated.nature.seconds["price", version] = SLOW_SECONDS
            policy = {"steps": ["5%", "100%"], "bake": "5s", "gate": [GATE]}
            number = await made.release({"price": version}, rollout=policy)
            shown = await self._until(number, "paused")
            most = -(-self._nodes * 5 // 100)
            must(shown["step"] == 1 and 0 < shown["started"] <= most, f"it isn't at its first step: {shown}")
            gate = shown["plan"][0]["gates"][0] if shown["plan"][0]["gates"] else shown["plan"][1]["gates"][0]
            must(gate["outcome"] == "failed", f"the gate said {gate}")
            why = f"{gate['gate']}: {gate['measured'] * 1000:.1f} ms, {gate['allowed'] * 1000:.1f} ms is allowed"
            told.append(f"release {number}: {shown['reason']}; {why}")
            self._line(shown, f"price@{version}, much slower", why)
            await made.call("POST", f"/v1/rollouts/default/{number}/rollback", {"reason": "too slow"})
            await self._everywhere("price", version - 1)

    async def _good(self) -> None:
        """A good version, while both replicas are killed at each step."""
        made = self._fleet
        with step("a good release") as told:
            version = await self._push("3.00", QUICK)
            policy = {"steps": ["1", "5%", "25%", "100%"], "bake": "3s"}
            number = await made.release({"price": version}, rollout=policy)
            kills, seen = 0, -1

            async def done() -> bool:
                nonlocal kills, seen
                shown = await made.call("GET", f"/v1/rollouts/default/{number}")
                must(shown["state"] in ("running", "done"), f"it is {shown['state']}: {shown['reason']}")
                if shown["state"] == "running" and shown["step"] > seen:
                    seen = shown["step"]
                    for replica in made.replicas:
                        replica.kill()
                        kills += 1
                return bool(shown["state"] == "done")

            await made.until("the good release is done", done, limit=WAIT, pause=0.5)
            await self._everywhere("price", version)
            shown = await made.call("GET", f"/v1/rollouts/default/{number}")
            why = f"control was killed {kills} times meanwhile"
            told.append(f"release {number} runs on {self._nodes} nodes; {why}")
            self._line(shown, f"price@{version}", why)

    async def _push(self, text: str, turns: int) -> int:
        size = len(f"Content-Type: text/plain\n\n{text}\n")
        return await self._fleet.push("price", wat(PRICE.format(text=text, turns=turns, size=size)))

    async def _until(self, number: int, state: str) -> Any:
        """Return the rollout of a release as soon as it has this state. Raises: Wrong, when it ends in another one."""
        shown: Any = None

        async def there() -> bool:
            nonlocal shown
            shown = await self._fleet.call("GET", f"/v1/rollouts/default/{number}")
            must(shown["state"] in ("running", state), f"release {number} is {shown['state']}: {shown['reason']}")
            return bool(shown["state"] == state)

        await self._fleet.until(f"release {number} is {state}", there, lambda: shown, limit=WAIT, pause=0.5)
        return shown

    async def _everywhere(self, function: str, version: int) -> None:
        """Wait until all nodes run this version of the function, and no other one."""
        found: list[Any] = []

        async def there() -> bool:
            found[:] = await self._fleet.items("/v1/nodes?group=default&standing=at_target")
            return len(found) == self._nodes

        await self._fleet.until("all nodes are at their target", there, lambda: len(found), limit=WAIT, pause=0.5)
        other = []
        for node in self._fleet.simulated.nodes.values():
            runs = {each.name: each.version for each in node.inventory.functions}
            if runs.get(function) != version:
                other.append((node.name, runs))
        must(not other, f"these nodes don't run {function}@{version}: {other[:5]}")

    def _line(self, shown: Any, what: str, why: str) -> None:
        started = f"{shown['started']} of {shown['nodes']}"
        at = "in its rehearsal" if not shown["step"] else f"at step {shown['step']} of {shown['steps']}"
        ended = shown["state"] if shown["state"] == "done" else f"stopped {at}"
        self._table.append(Shown(shown["number"], what, ended, started, why))

    def _show(self) -> None:
        rows = [("RELEASE", "WHAT", "HOW IT ENDED", "STARTED", "WHY")]
        rows += [(str(line.release), line.what, line.ended, line.started, line.why) for line in self._table]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        say("")
        for row in rows:
            say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def step(name: str) -> Iterator[list[str]]:
    """Run a step and print its line: its time, its name, and the texts that it appends to the list."""
    began, told = time.monotonic(), list[str]()
    yield told
    say(f"{time.monotonic() - began:7.2f} s  {name:<16} {' '.join(told)}")


async def call(session: aiohttp.ClientSession, edge: FleetEdge, path: str, method: str = "GET") -> None:
    """Call a function of an edge. Raises: Wrong, when it isn't answered with 200."""
    async with session.request(method, f"{edge.url}/functions/{path}") as answer:
        must(answer.status == 200, f"{path} on {edge.name}: {answer.status} {await answer.text()}")


@asynccontextmanager
async def calling(made: Fleet) -> AsyncIterator[None]:
    """Have a function of each edge called until the block ends, however its calls end, as its shop's customers do."""

    async def customers(edge: FleetEdge) -> None:
        while True:
            with contextlib.suppress(Wrong):
                await call(made.session, edge, "price")
            await asyncio.sleep(1 / CALLS)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(customers(edge)) for edge in made.edges.values()]
        yield
        for task in tasks:
            task.cancel()


async def main(simulated: int) -> None:
    """Run the demo with so many simulated nodes. Raises: Wrong."""
    began = time.monotonic()
    async with fleet(edges=EDGES, nature=Nature(calls=CALLS)) as made:
        say(f"{time.monotonic() - began:7.2f} s  two replicas of control, {EDGES} edges")
        with step("nodes join") as told:
            await made.add_simulated([f"shop-{number:03}" for number in range(1, simulated + 1)])
            told.append(f"{simulated} simulated nodes")
        await Demo(made, EDGES + simulated).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="just demo-fleet", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=SIMULATED, help="simulated nodes (default: %(default)s)")
    given = parser.parse_args()
    sys.exit(run(partial(main, given.nodes), "all releases went as they must"))
