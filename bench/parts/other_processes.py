"""The most of something that the processes of a node have had, other than its front, zygote and workers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from bench.parts import pss
from bench.parts.servers import Edge


class Peak:
    def __init__(self, node: Edge, measure: Callable[[list[int]], int], every: float) -> None:
        """`measure` is given the ids of the processes; `every`: seconds between two measurements."""
        self.most = 0
        self._node = node
        self._measure = measure
        self._every = every

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        workers = (await self._node.status())["workers"]
        known = {self._node.process.pid, workers["zygote"], *workers["pids"], *workers["spares"]}
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._watch(known))
            yield
            task.cancel()

    async def _watch(self, known: set[int]) -> None:
        while True:
            others = [pid for pid in pss.descendants(self._node.process.pid) if pid not in known]
            self.most = max(self.most, self._measure(others))
            await asyncio.sleep(self._every)
