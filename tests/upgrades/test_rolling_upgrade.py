"""An installation goes to this version and back while it is used: no call, no poll and no command fails."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from control.cli.support.client import ConnectionSettings
from tests.support.balancer import balancing
from tests.support.callers_load import CallsMade, answered, calling
from tests.support.deadlines import deadline
from tests.support.handed_node import log_of, node_on
from tests.support.operators_load import OperatorsCalls
from tests.support.previous import Previous
from tests.support.programs import DEADLINE, ControlProgram, control_program, until
from tests.support.replica import Replica, Site
from tests.upgrades.versions import NEW, Releases, join, migrated


@dataclass
class LoadedNode:
    """A node that is called all the time, on a socket that outlives its processes."""

    name: str
    state: Path
    handed: socket.socket
    calls: CallsMade = field(default_factory=CallsMade)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _process: asyncio.subprocess.Process | None = None

    async def run(self, python: str) -> None:
        """Run it in a version, in the place of the process that runs it now."""
        await self.end()
        self._process = await self._stack.enter_async_context(node_on(self.handed, self.state, python=python))

    async def end(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            async with deadline(DEADLINE):
                await self._process.wait()
        await self._stack.aclose()
        self._process = None

    @asynccontextmanager
    async def called(self) -> AsyncIterator[None]:
        """Call it until the block ends."""
        async with calling(self.handed.getsockname()[1], "/functions/version", keeping=2, others=1) as self.calls:
            yield


async def test_no_call_poll_or_command_fails_on_the_way_and_back(before: Previous, site: Site, tmp_path: Path) -> None:
    releases = Releases()
    async with AsyncExitStack() as stack:
        replicas: list[tuple[ControlProgram, Replica]] = [
            await stack.enter_async_context(control_program(site, tmp_path / name, python=before.python))
            for name in ("one", "other")
        ]
        to = replicas[0][1]
        ports = [int(replica.url.rpartition(":")[2]) for _, replica in replicas]
        url = f"https://127.0.0.1:{await stack.enter_async_context(balancing(ports))}"
        await releases.make(to)
        nodes = []
        for number in range(2):
            node = LoadedNode(f"edge-{number}", tmp_path / f"edge-{number}", socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(node.handed)
            await join(before.python, to, node.state, node.name, url)
            await node.run(before.python)
            stack.push_async_callback(node.end)
            nodes.append(node)
            await releases.reached(to, node.name)
        operator = OperatorsCalls(ConnectionSettings(url, to.admin, to.ca), [{"functions": {"version": 1}}])
        await stack.enter_async_context(operator.going_on())
        for node in nodes:
            await stack.enter_async_context(node.called())

        async def all_go_on() -> None:
            await operator.go_on()
            for node in nodes:
                await answered(node.calls, 20)
                assert node.calls.failed == []

        async def of_version(node: LoadedNode, python: str) -> None:
            """Control says that a node is of a version."""

            async def there() -> bool:
                told = (await to.node(node.name))["version"] or ""
                return told.endswith(before.commit[:12]) == (python != NEW)

            await until(there, f"{node.name} has told its version")

        await all_go_on()
        await migrated(NEW, site.settings.metadata_url)
        for python in (NEW, before.python):
            for program, _ in replicas if python == NEW else reversed(replicas):
                await program.stop()
                await all_go_on()
                program.python = python
                await program.again()
                await all_go_on()
            for node in nodes:
                await node.run(python)
                await all_go_on()
                await of_version(node, python)
        for node in nodes:
            told = log_of(node.state).read_text()
            assert [line for line in told.splitlines() if "next attempt in" in line] == []
            print(f"{node.name}: {node.calls.answered} calls, the longest took {node.calls.longest:.2f} s")
            assert node.calls.longest < DEADLINE
