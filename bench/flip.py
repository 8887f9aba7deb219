"""How long does a call wait while the node's release changes?

A call that reads one row is made every 2 ms. Meanwhile two readers of 4 s each run without a pause, each in one
transaction, and each release rewrites a table of 20 MB and creates an index on it. Every call must be answered, with
the schema number of its own release. Before each release, as the floor, SQLite alone makes the same change to a
separate table, alongside the same calls and readers. The ratio is the longest time of a small call during that over the
longest from the request for a release until the node is at it, by medians of the rounds.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from statistics import median

import orjson
import uvloop

from bench import result
from bench.parts import bare_change, cpu
from bench.parts.servers import Edge, Site, edge, folder, site
from tests.guests.build import guest
from tests.guests.version import version

BAR = 0.4
RELEASES = 3
READERS = 2
READ_MS = 4_000
RELEASE_LIMIT = 240.0
EVERY = 0.002
ROWS = 100_000
BATCH = 50_000
FIRST = """
CREATE TABLE generation (number INTEGER);
INSERT INTO generation VALUES (1);
CREATE TABLE large (id INTEGER PRIMARY KEY, text TEXT);
"""
FILL = (
    f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {BATCH}) "
    "INSERT INTO large (text) SELECT hex(randomblob(90)) FROM n"
)
CHANGE = """
UPDATE generation SET number = {0};
UPDATE large SET text = substr(text, 2) || '{0}';
CREATE INDEX large_{0} ON large (text);
DROP INDEX IF EXISTS large_{1};
"""


class Calls:
    """Makes small calls, one at a time, until the block ends."""

    def __init__(self, node: Edge) -> None:
        self.took: list[tuple[float, float]] = []
        """For each call the time it ended (monotonic clock), and the seconds that it took."""
        self.newest = 0
        """The release that the last answer came from."""
        self._node = node

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._small()), *[group.create_task(self._read(n)) for n in range(READERS)]]
            yield
            for task in tasks:
                task.cancel()

    def longest(self, since: float) -> float:
        return max(took for ended, took in self.took if ended >= since)

    async def _small(self) -> None:
        while True:
            started = time.monotonic()
            release, body = await self._call("version")
            ended = time.monotonic()
            self.took.append((ended, ended - started))
            answer = orjson.loads(body)
            numbers = {release, answer["version"], answer["schema"]["rows"][0][0]}
            assert numbers == {release}, f"an answer mixes releases {numbers}"
            self.newest = release
            await asyncio.sleep(EVERY)

    async def _read(self, number: int) -> None:
        await asyncio.sleep(number * READ_MS / 1000 / READERS)
        while True:
            release, body = await self._call(f"slow?ms={READ_MS}")
            answer = orjson.loads(body)
            assert {answer["first"], answer["second"]} == {release}, f"a reader of release {release} saw {answer}"

    async def _call(self, path: str) -> tuple[int, bytes]:
        async with self._node.http.get(f"/functions/{path}") as answer:
            body = await answer.read()
            if answer.status != 200:
                raise self._node.process.failure(f"{path}: {answer.status} {body.decode()}")
            return int(answer.headers["skerry-release"]), body


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.change("first", FIRST)
        versions = {
            "version": await control.push("version", version(1), {"sql": "read"}),
            "slow": await control.push("slow", guest("slow"), {"sql": "read", "time_limit_ms": 2 * READ_MS}),
            "sql": await control.push("sql", guest("sql"), {"sql": "write"}),
        }
        await control.release(versions)
        await node.at_release(1, best=True)
        for _ in range(ROWS // BATCH):
            async with node.http.post("/functions/sql", data=orjson.dumps({"sql": FILL})) as answer:
                assert answer.status == 200, await answer.text()
        for number in range(2, RELEASES + 2):
            await control.change(f"change-{number}", CHANGE.format(number, number - 1))
            await control.push("version", version(number), {"sql": "read"})
        calls = Calls(node)
        waits, floor, releases = [], [], []
        async with bare_change.beside(where, [FIRST, *[FILL] * (ROWS // BATCH)]) as bare, calls.running():
            await asyncio.sleep(READ_MS / 1000)
            for number in range(2, RELEASES + 2):
                started = time.monotonic()
                await bare.run([CHANGE.format(number, number - 1)])
                floor.append(calls.longest(started))
                started = time.monotonic()
                await _release(control, node, calls, versions, number)
                await node.at_release(number)
                releases.append(time.monotonic() - started)
                waits.append(calls.longest(started))
    details = {
        "longest_ms": [round(wait * 1000, 1) for wait in waits],
        "floor_ms": [round(wait * 1000, 1) for wait in floor],
        "call_p50_ms": round(median(took for _, took in calls.took) * 1000, 2),
        "release_p50_s": round(median(releases), 2),
        "machine": machine,
    }
    result.write("flip", median(floor) / median(waits), BAR, details)


async def _release(control: Site, node: Edge, calls: Calls, versions: dict[str, int], number: int) -> None:
    """Release this version of the function and its schema change, and wait until it has answered a call."""
    await control.release({**versions, "version": number}, schema=number)
    deadline = time.monotonic() + RELEASE_LIMIT
    while calls.newest < number:
        if time.monotonic() > deadline:
            status = await node.status()
            raise node.process.failure(f"release {number} isn't there after {RELEASE_LIMIT:.0f} s: {status}")
        await asyncio.sleep(EVERY)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
