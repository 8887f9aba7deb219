"""How long do a function's calls take while its neighbours behave badly? 100 calls a second of a small function.

The calls come when they are due, whether earlier ones are answered or not (an open loop), and each counts from when it
was due. Meanwhile four other functions of the node have a client each, which asks again as soon as it has its answer,
or after Retry-After: one loops until its time limit, one floods the log, one reads in one transaction for nearly its
whole limit, and one takes large bodies. For comparison four processes outside Skerry are busy at the same priority. The
ratio is 2 divided by (the p99 of the calls beside the neighbours over that beside the busy processes): the median of
the rounds, which alternate.
"""

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.bad_clients import BODY_BYTES
from bench.parts.load import WrongAnswer, percentile, request
from bench.parts.servers import node_alone
from control.local.process import ending_with_us
from tests.guests.build import guest, wat

BAR = 1
TIMES = 2.0
"""The most that it may be, as a multiple of the p99 beside busy processes."""
RATE = 100
SECONDS = 5.0
SETTLES = 1.0
"""Seconds for which the neighbours are already active before each round."""
ROUNDS = 2
CONNECTIONS = 128
STUCK = 30.0
"""Seconds within which all calls must be answered."""
BUSY = 4
"""Processes outside Skerry: as many as there are bad neighbours."""
LIMIT_MS = 1000
BODY = bytes(range(256))
TABLE = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);"
FLOODS = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "Content-Type: text/plain\\n\\n.")
  (func (export "_start")
    (local $at i32)
    (memory.fill (i32.const 1000) (i32.const 0x0a) (i32.const 16000))
    (loop $lines
      (i32.store8 (i32.add (i32.const 1000) (local.get $at)) (i32.const 0x61))
      (br_if $lines (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 2))) (i32.const 16000))))
    (i32.store (i32.const 100) (i32.const 1000))
    (i32.store (i32.const 104) (i32.const 16000))
    (drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))
    (i32.store (i32.const 100) (i32.const 0))
    (i32.store (i32.const 104) (i32.const 27))
    (drop (call $write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 200)))))
"""
"""Writes 8,000 lines of one letter to its log, which is all that a call may write."""


class Calls:
    """Calls the small function on existing connections."""

    def __init__(self) -> None:
        self.took: list[float] = []
        """Seconds from when each call was due until it was answered."""
        self.free: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        """When the calls that wait for a connection were due."""

    async def run(self, seconds: float) -> list[float]:
        """Make calls at `RATE` for this long; return the seconds that each took, sorted."""
        self.took = []
        count, began = int(RATE * seconds), time.perf_counter()
        for number in range(count):
            due = began + number / RATE
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            self.waiting.append(due)
            self.send()
        async with asyncio.timeout(STUCK):
            while len(self.took) < count:
                await asyncio.sleep(0.01)
        return sorted(self.took)

    def send(self) -> None:
        while self.waiting and self.free:
            self.free.popleft().send(self.waiting.popleft())


class Connection(asyncio.Protocol):
    SENT = request("/functions/small", BODY, [("Content-Type", "application/octet-stream")])

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._transport: asyncio.Transport
        self._due = 0.0
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._calls.free.append(self)

    def send(self, due: float) -> None:
        self._due, self._got = due, b""
        self._transport.write(self.SENT)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, blank, body = self._got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200") or (blank and len(body) >= len(BODY) and body != BODY):
            raise WrongAnswer(self._got[:500])
        if body == BODY:
            self._calls.took.append(time.perf_counter() - self._due)
            self._calls.free.append(self)
            self._calls.send()


@contextlib.asynccontextmanager
async def bad(port: int, answers: list[Any]) -> AsyncIterator[None]:
    """Run the clients of the bad neighbours; their answers are appended to `answers`."""
    arguments = ("-m", "bench.parts.bad_clients", str(port))
    clients = await asyncio.create_subprocess_exec(*ending_with_us([sys.executable, *arguments]), stdout=PIPE)
    try:
        yield
        clients.terminate()
        told, _ = await clients.communicate()
        answers.append(json.loads(told))
    finally:
        if clients.returncode is None:
            clients.kill()
            await clients.wait()


@contextlib.asynccontextmanager
async def busy() -> AsyncIterator[None]:
    """Keep processes outside Skerry busy."""
    command = ending_with_us([sys.executable, "-c", "while True: pass"])
    processes = [await asyncio.create_subprocess_exec(*command) for _ in range(BUSY)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            await process.wait()


async def main() -> None:
    machine = cpu.machine()
    limited = {"time_limit_ms": LIMIT_MS}
    functions: dict[str, tuple[bytes, dict[str, Any]]] = {
        "small": (guest("echo"), {}),
        "loops": (guest("loop"), limited),
        "floods": (wat(FLOODS), {}),
        "reads": (guest("slow"), {"sql": "read", **limited}),
        "large": (guest("echo"), {"memory_pages": 1024, "response_limit": BODY_BYTES}),
    }
    calls, answers = Calls(), list[Any]()
    p99: dict[str, list[float]] = {"quiet": [], "bad": [], "busy": []}
    async with node_alone(functions, TABLE) as served:
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(lambda: Connection(calls), "127.0.0.1", served.port)
            for _ in range(CONNECTIONS)
        ]
        p99["quiet"].append(percentile(await calls.run(SECONDS), 0.99))
        for _ in range(ROUNDS):
            async with bad(served.port, answers):
                await calls.run(SETTLES)
                p99["bad"].append(percentile(await calls.run(SECONDS), 0.99))
            async with busy():
                await calls.run(SETTLES)
                p99["busy"].append(percentile(await calls.run(SECONDS), 0.99))
        for transport, _ in made:
            transport.abort()
        status = await served.node.status()
    ratio = median(bad / busy for bad, busy in zip(p99["bad"], p99["busy"], strict=True))
    details = {
        "p99_ms": {name: [round(seconds * 1000, 2) for seconds in found] for name, found in p99.items()},
        "answers_of_the_neighbours": answers,
        "outcomes": {function["name"]: function["calls"] for function in status["functions"]},
        "machine": machine,
    }
    result.write("neighbours", TIMES / ratio, BAR, details)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
