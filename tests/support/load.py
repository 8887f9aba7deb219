"""Clients of a cluster's node that never stop, and what each of their answers must be whatever is killed meanwhile."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import aiohttp
import orjson

from tests.support.cluster import SLOW, VERSION, WRITE, Cluster
from tests.support.deadlines import deadline

HUNG = 60.0
"""Seconds after which a call that has no answer is a failure of the node, not of the test's patience."""
LOST = "connection"
"""The kind of a failure without an answer: the connection ended, or there was nobody to connect to."""
KEPT_MAYBE = {LOST, "commit_unknown"}
"""Kinds of failure of a write after which it may be there; after all others it must not be."""


@dataclass
class Failed:
    """A call that failed cleanly: without an answer, or with a problem's code."""

    kind: str
    text: str


class Load:
    """`async with` it: clients call `version`, write, and read slowly.

    Each answer of `version` must say the same number three times: its own, the schema's, and the release's. It is
    never below one that was answered, or that control had heard of, before the call.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        versions: int,
        writers: int = 0,
        readers: int = 0,
        pause: float = 0.02,
        slow: int = 150,
    ) -> None:
        self.answered = 0
        self.highest = 1
        """The release that the node has shown to serve, or that control says it serves."""
        self.failures: list[Failed] = []
        self.wrong: list[str] = []
        """Answers that nobody may ever get."""
        self.written: set[str] = set()
        """Ids of acknowledged writes."""
        self.unsure: set[str] = set()
        """Ids of writes that may be there."""
        self.attempted = 0
        self._cluster = cluster
        self._pause = pause
        self._slow = slow
        self._stopping = False
        kinds = [self._version] * versions + [self._write] * writers + [self._read] * readers
        self._clients = kinds
        self._turns = [0] * len(kinds)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.ensure_future(self._client(number)) for number in range(len(self._clients))]
        self._tasks.append(asyncio.ensure_future(self._compare()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """No answer was wrong so far."""
        self._cluster.check(not self.wrong, "\n".join(self.wrong[:5]))
        for task in self._tasks:
            if task.done():
                task.result()

    def failed(self, since: int) -> Counter[str]:
        """Kinds of the failures from the `since`-th on."""
        return Counter(failure.kind for failure in self.failures[since:])

    async def progress(self, number: int) -> None:
        """Wait until a client has got an answer of this release."""

        async def there() -> bool:
            self.check()
            return self.highest >= number

        await self._cluster.until(f"a client got an answer of release {number}", there, lambda: self.failures[-3:])

    async def settled(self) -> None:
        """Wait until all calls that are under way now have ended."""
        turns = list(self._turns)

        async def there() -> bool:
            self.check()
            return all(now > then for now, then in zip(self._turns, turns, strict=True))

        await self._cluster.until("each client has got its answer", there)

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stopping:
            self._turns[number] += 1
            floor = self.highest
            try:
                async with deadline(HUNG):
                    await self._clients[number](floor, f"{number}-{self._turns[number]}")
            except TimeoutError:
                self.wrong.append(f"a client waited {HUNG:.0f} s for an answer while {self._cluster.doing}")
            await asyncio.sleep(chance.uniform(0.5, 1.5) * self._pause)

    async def _version(self, floor: int, _: str) -> None:
        found = await self._call(VERSION)
        if found is None:
            return
        headers, body = found
        answer = orjson.loads(body)
        rows = answer["schema"].get("rows")
        numbers = (answer["version"], rows and rows[0][0], int(headers["skerry-release"]))
        if len(set(numbers)) > 1:
            self._blame(f"an answer mixes releases: version, schema, release are {numbers}")
        self._at_least(floor, numbers[0])

    async def _read(self, floor: int, _: str) -> None:
        found = await self._call(f"{SLOW}?ms={self._slow}")
        if found is None:
            return
        headers, body = found
        answer = orjson.loads(body)
        numbers = (answer["first"], answer["second"], int(headers["skerry-release"]))
        if len(set(numbers)) > 1:
            self._blame(f"a slow reader saw two releases: first, second, release are {numbers}")
        self._at_least(floor, numbers[0])

    async def _write(self, floor: int, name: str) -> None:
        self.attempted += 1
        insert = orjson.dumps({"sql": "INSERT INTO written VALUES (?)", "params": [name]})
        # Until it is known: a connection that is lost leaves it so.
        self.unsure.add(name)
        found = await self._call(WRITE, insert)
        if found is None:
            if self.failures[-1].kind not in KEPT_MAYBE:
                self.unsure.discard(name)
            return
        headers, body = found
        if orjson.loads(body).get("changes") != 1:
            self._blame(f"a write was answered with {body!r}")
            return
        self.unsure.discard(name)
        self.written.add(name)
        self._at_least(floor, int(headers["skerry-release"]))

    async def _call(self, path: str, data: bytes | None = None) -> tuple[dict[str, str], bytes] | None:
        """A good answer; None after a clean failure, which is noted."""
        try:
            status, headers, body = await self._cluster.ask(f"/functions/{path}", data)
        except (aiohttp.ClientError, OSError) as error:
            self.failures.append(Failed(LOST, repr(error)))
            return None
        if status == 200:
            self.answered += 1
            return headers, body
        kind = headers.get("content-type", "")
        code = orjson.loads(body).get("code", "") if kind == "application/problem+json" else ""
        self.failures.append(Failed(code or f"{status} {kind}", f"{path}: {status} {body!r}"))
        return None

    def _at_least(self, floor: int, number: int) -> None:
        if number < floor:
            self._blame(f"an answer of release {number} came after release {floor} had been seen")
        self.highest = max(self.highest, number)

    def _blame(self, text: str) -> None:
        self.wrong.append(f"{text}, while {self._cluster.doing}")

    async def _compare(self) -> None:
        """What control says of the node must be true at the node."""
        while not self._stopping:
            node = await self._cluster.node()
            for function in node["functions"]:
                if function["name"] == VERSION:
                    if function["version"] != node["schema_version"]:
                        self._blame(f"control says that the node mixes releases: {node}")
                    self.highest = max(self.highest, function["version"])
            await asyncio.sleep(0.1)


async def check_writes(cluster: Cluster, load: Load) -> None:
    """Every acknowledged write is there, and none that was said to have changed nothing. The load has ended."""
    status, _, body = await cluster.ask(f"/functions/{WRITE}", b'{"sql": "SELECT id FROM written"}')
    cluster.check(status == 200, body.decode())
    there = {row[0] for row in orjson.loads(body)["rows"]}
    lost = load.written - there
    cluster.check(not lost, f"{len(lost)} of {len(load.written)} acknowledged writes are lost: {sorted(lost)[:9]}")
    extra = there - load.written - load.unsure
    cluster.check(not extra, f"writes that failed, and had changed nothing, are there: {sorted(extra)[:9]}")
