"""An operator who asks control for the nodes and makes releases, all the time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from control.cli.support import client
from control.cli.support.client import ConnectionSettings
from tests.support.programs import until


class OperatorsCalls:
    """The calls of `operating`, by the client of `skerry`, which tries again as commands do."""

    def __init__(self, to: ConnectionSettings, releases: Sequence[dict[str, Any]]) -> None:
        """`releases`: what the releases have that are made in turn."""
        self._to = to
        self._releases = releases
        self._task: asyncio.Task[None] | None = None
        self.made = 0
        self.released = 0
        """Number of the release that was made last; 0 before the first."""

    async def run(self) -> None:
        """Call until cancelled. Raises: Failure, when a call fails."""
        async with client.Client(self._to) as control:
            while True:
                await control.items("/v1/nodes")
                if self.made % 20 == 0:
                    release = self._releases[self.made // 20 % len(self._releases)]
                    made = await control.post("/v1/releases", {"group": "default", **release})
                    self.released = made["number"]
                self.made += 1
                await asyncio.sleep(0.02)

    async def go_on(self, calls: int = 25) -> None:
        """Wait until so many more calls were answered. Raises: Failure, when one has failed."""
        wanted = self.made + calls
        task = self._task
        assert task is not None

        async def further() -> bool:
            if task.done():
                task.result()
            return self.made >= wanted

        await until(further, f"{calls} more calls of an operator were answered")

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Call until the block ends. Raises: Failure, when a call has failed."""
        task = self._task = asyncio.create_task(self.run())
        try:
            yield
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])
