"""A joined node in processes of its own, under an environment that the test gives, with a control in the test's."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from tests.guests.version import version
from tests.support.agents import Control
from tests.support.deadlines import deadline
from tests.support.forked_programs import may_be_forked
from tests.support.ports import free_port

LIMIT = 60.0
"""Seconds for anything that must come to be."""

PROGRAM = may_be_forked(
    """
import logging, sys
from datetime import timedelta
from pathlib import Path
from edge_runtime.sandbox import fence
from edge_runtime.sync import identity
from edge_runtime import front
from edge_runtime.sync.agent import Agent
from edge_runtime.settings import EdgeSettings

fence.die_with_parent(int(sys.argv[3]))
logging.basicConfig(level=logging.INFO)
state, rotate = Path(sys.argv[1]), timedelta(days=int(sys.argv[4]))
front.run(
    EdgeSettings(state=state, listen=sys.argv[2], workers=2, compile_wait=1),
    lambda runtime, compiler: Agent(state, identity.read(state), runtime, compiler, rotate_after=rotate),
)
""",
    starts_others=True,
)
"""A node that renews its credential at once where its fourth argument is 0."""

TABLES = """
CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);
CREATE TABLE written (id TEXT PRIMARY KEY)
"""


class NodeProcess:
    """The node `edge-1`. Release N has version N of the function `version` and schema change N; the first makes
    `TABLES`."""

    def __init__(self, control: Control, folder: Path, environment: Mapping[str, str]) -> None:
        self.control = control
        self.state = folder / "edge"
        self.log = folder.with_name("node.log")
        self.functions: dict[str, int] = {}
        """Version of each function in the next release."""
        self.released = 0
        """Number of the last release."""
        self.http: aiohttp.ClientSession
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._listen = f"127.0.0.1:{free_port()}"

    @property
    def ended(self) -> int | None:
        """The status with which the program ended; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def join(self) -> None:
        """Join control by the command `skerry-edge join`, with a token made for it."""
        token = await self.control.join_token()
        more = ["--state", str(self.state), "--control", self.control.url, "--token", token, "--name", "edge-1"]
        command = [sys.executable, "-m", "edge_runtime.cli.main", "join", *more]
        process = await asyncio.create_subprocess_exec(
            *command, env=self._environment, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0

    async def start(self, *, rotate_days: int = 30) -> bool:
        """Start the program and wait until it answers; False where it ended before."""
        command = [sys.executable, "-c", PROGRAM, str(self.state), self._listen, str(os.getpid()), str(rotate_days)]
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=self._environment, stdout=output, stderr=output
            )
        self.http = aiohttp.ClientSession(f"http://{self._listen}", timeout=aiohttp.ClientTimeout(30))
        async with deadline(LIMIT):
            while self._process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.http.get("/_skerry/status") as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.01)
        await self.http.close()
        return False

    async def end(self, *, kill: bool = False) -> None:
        """End the program, in order or at once; harmless where it has ended."""
        assert self._process is not None
        await self.http.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill() if kill else self._process.terminate()
        try:
            async with deadline(LIMIT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            raise

    async def release(self) -> int:
        """Make the next release; return its number."""
        number = self.released + 1
        change = TABLES if number == 1 else f"UPDATE generation SET number = {number}"
        await self.control.call("POST", "schema-changes", {"name": f"number {number}", "sql": change})
        self.functions["version"] = await self.control.push("version", version(number), {"sql": "read"})
        await self.control.release(functions=self.functions)
        self.released = number
        return number

    async def at_release(self, number: int) -> None:
        """Wait until control knows that the node is at it."""
        await self.control.until(lambda node: node["at_target"] and node["schema_version"] == number)
