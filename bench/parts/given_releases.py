"""`python -m bench.parts.given_releases STATE WORKERS PID`: a node without control, until process PID exits.

It serves what is in the state directory. Each line of stdin is a release in JSON, which it applies; it answers with a
line on stdout. Functions wait for quickly compiled code, and get no better one.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from control.protocol import wire
from edge_runtime import front, logs
from edge_runtime.aot_cache import QUICK
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.sandbox import fence
from edge_runtime.settings import EdgeSettings
from edge_runtime.sync.node_agent import AgentFacts
from edge_runtime.telemetry.poll_report import PollReport

COMPILE_WAIT = 3600.0


class Release(msgspec.Struct):
    """A release given as a line of stdin."""

    plan: wire.Plan
    functions: list[LocalFunction]


class Given:
    """Replaces the node's agent: it passes the releases that it reads to the node."""

    def __init__(self, runtime: ReleaseManager, compiler: Compiler) -> None:
        self._runtime = runtime
        self._compiler = compiler
        self.numbers = PollReport()
        self.watched = None
        compiler.best = QUICK

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            given = msgspec.json.decode(line, type=Release)
            await self._runtime.apply(given.plan, await self._compiler.functions(given.functions))
            print("applied", flush=True)

    def status(self) -> dict[str, Any]:
        return {}

    def facts(self) -> AgentFacts:
        return AgentFacts()


if __name__ == "__main__":
    fence.die_with_parent(int(sys.argv[3]))
    logs.set_up("text")
    settings = EdgeSettings(
        state=Path(sys.argv[1]), workers=int(sys.argv[2]), listen="127.0.0.1:0", compile_wait=COMPILE_WAIT
    )
    front.run(settings, Given)
