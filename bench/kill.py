"""What does a worker's death cost? A random worker is killed every 50 ms for 10 s, under load from 64 clients.

Each call has a unique name. Half of the clients have it echoed, the others have it written to the node's database. The
ratio is 1 if all of this holds, else 0: no call hangs; calls fail only with the answer that their process ended, at
most one per kill, namely the one that had begun; none gets another's answer; the database has each answered call once,
none whose client heard that nothing was changed, and no other that can't be explained.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import orjson
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import Edge, edge, folder, site
from tests.guests.build import guest

BAR = 1
CLIENTS = 64
SECONDS = 10.0
EVERY = 0.05
HANGS = 15.0
"""Seconds after which a call counts as hanging: more than it may wait for a worker and run."""
ENDED = "worker_crashed"
UNKNOWN = "commit_unknown"


class Callers:
    """What the clients saw: answers and failures, by kind."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.going = True
        self.answered = 0
        self.hung = 0
        self.wrong: list[str] = []
        """Answers that no call may ever get."""
        self.failed: Counter[str] = Counter()
        self.written: set[str] = set()
        self.unwritten: set[str] = set()
        """Writes whose clients heard that nothing was changed."""
        self.unknown: set[str] = set()

    async def run(self, number: int) -> None:
        """Run one client, which makes calls one at a time."""
        turn = 0
        while self.going:
            turn += 1
            name = f"{number}-{turn}"
            try:
                async with asyncio.timeout(HANGS):
                    await (self._echo(name) if number % 2 else self._write(name))
            except TimeoutError:
                self.hung += 1

    async def _echo(self, name: str) -> None:
        async with self._http.post("/functions/echo", data=name.encode()) as answer:
            body = await answer.read()
        if answer.status != 200:
            self._failure(answer.status, body)
        elif body == name.encode():
            self.answered += 1
        else:
            self.wrong.append(f"{name} got {body[:100]!r}")

    async def _write(self, name: str) -> None:
        statement = {"sql": "INSERT INTO done VALUES (?) RETURNING name", "params": [name]}
        async with self._http.post("/functions/write", data=orjson.dumps(statement)) as answer:
            body = await answer.read()
        if answer.status != 200:
            code = self._failure(answer.status, body)
            (self.unknown if code == UNKNOWN else self.unwritten).add(name)
        elif orjson.loads(body).get("rows") == [[name]]:
            self.answered += 1
            self.written.add(name)
        else:
            self.wrong.append(f"{name} got {body[:100]!r}")

    def _failure(self, status: int, body: bytes) -> str:
        code = str(orjson.loads(body)["code"])
        self.failed[code] += 1
        if (status, code) not in ((502, ENDED), (502, UNKNOWN)):
            self.wrong.append(f"{status} {body[:200]!r}")
        return code


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with contextlib.AsyncExitStack() as stack:
        where = await stack.enter_async_context(folder())
        async with site(where, cores) as control:
            node = await stack.enter_async_context(edge(control, cores))
            await control.change("done", "CREATE TABLE done (name TEXT)")
            versions = {
                "echo": await control.push("echo", guest("echo"), {}),
                "write": await control.push("write", guest("sql"), {"sql": "write"}),
            }
            await control.release(versions)
            before = await node.at_release(1, best=True)
        # Control has exited: the cores belong to the node and its clients.
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{node.process.port}", connector=connector)
        )
        callers = Callers(http)
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(callers.run(number))
            kills = await _kill(before["workers"]["zygote"])
            callers.going = False
        after = await _settled(node, before["workers"]["wanted"])
        there = await _rows(http)
    failures = sum(callers.failed.values())
    unexplained = set(there) - callers.written - callers.unknown
    held = {
        "none hangs": callers.hung == 0,
        "no wrong answer": not callers.wrong,
        "only what had begun failed": failures <= kills,
        "none ran twice": len(there) == len(set(there)),
        "what was answered is there": callers.written <= set(there),
        "what failed isn't": not unexplained,
    }
    for what, holds in held.items():
        print(f"{what}: {'yes' if holds else 'NO'}")
    details = {
        "kills": kills,
        "deaths": after["workers"]["deaths"] - before["workers"]["deaths"],
        "answered": callers.answered,
        "failed": dict(callers.failed),
        "hung": callers.hung,
        "wrong": callers.wrong[:10],
        "unexplained": sorted(unexplained)[:10],
        "held": held,
        "machine": machine,
    }
    result.write("kill", float(all(held.values()) and kills > 0 < callers.answered), BAR, details)


async def _kill(zygote: int) -> int:
    """Kill a random worker repeatedly; return how many were killed."""
    chance = random.Random(7)
    kills = 0
    children = Path(f"/proc/{zygote}/task/{zygote}/children")
    end = time.monotonic() + SECONDS
    while (began := time.monotonic()) < end:
        workers = [int(pid) for pid in children.read_text().split()]
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
        await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - began)))
    return kills


async def _settled(node: Edge, wanted: int) -> dict[str, dict[str, int]]:
    """Wait until all workers are up again; return the node's status."""
    async with asyncio.timeout(HANGS):
        while True:
            status: dict[str, dict[str, int]] = await node.status()
            if status["workers"]["fit"] == wanted:
                return status
            await asyncio.sleep(0.02)


async def _rows(http: aiohttp.ClientSession) -> list[str]:
    """Return every name in the database, read in pieces, since an SQL answer has a limit."""
    found: list[str] = []
    while True:
        statement = {"sql": "SELECT name FROM done ORDER BY rowid LIMIT 5000 OFFSET ?", "params": [len(found)]}
        async with http.post("/functions/write", data=orjson.dumps(statement)) as answer:
            rows = orjson.loads(await answer.read())["rows"]
        if not rows:
            return found
        found += [name for (name,) in rows]


if __name__ == "__main__":
    uvloop.run(main())
