"""Processes that can be killed at any step: after its death nothing that a process still does has an effect.

Python can't end a coroutine without running its `finally` blocks, which SIGKILL doesn't. So a dead process is cut off
from all that would outlast it (its disk, the network, the database), and what it still does is done for nobody.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import timedelta
from random import Random
from typing import Any

from tests.support.simulation.loop import OFFSET

CURRENT: ContextVar["Process | None"] = ContextVar("process", default=None)
"""The process whose code runs."""


class Process:
    """One life of a program, from its start to its end."""

    def __init__(self, name: str, risk: "Risk", offset: timedelta = timedelta()) -> None:
        self.name = name
        self.alive = True
        self.died = asyncio.get_running_loop().create_future()
        """Done when it has been killed."""
        self._risk = risk
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In their order: a set's order is that of addresses, which no seed repeats."""
        self._context = contextvars.copy_context()
        self._context.run(CURRENT.set, self)
        self._context.run(OFFSET.set, offset)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` as a part of this process."""
        task = asyncio.get_running_loop().create_task(work, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def kill(self) -> None:
        """End it now, wherever it is."""
        if not self.alive:
            return
        self.alive = False
        self.died.set_result(None)
        for task in list(self._tasks):
            task.cancel()

    def step(self, point: str) -> None:
        """The process is about to have an effect, or has had one: this is where it may die.

        Raises CancelledError where it is dead.
        """
        if self.alive and self._risk.strikes(self, point):
            self.kill()
        if not self.alive:
            raise asyncio.CancelledError


class Risk:
    """Whether a process dies at a step."""

    def __init__(self, random: Random, told: Callable[[Process, str], None]) -> None:
        self.share = 0.0
        """Share of the steps, 0 to 1, at which the process that takes one is killed."""
        self._random = random
        self._told = told

    def strikes(self, process: Process, point: str) -> bool:
        """Draw for one step."""
        if self.share <= 0 or self._random.random() >= self.share:
            return False
        self._told(process, point)
        return True


def reach(point: str) -> None:
    """In the place of `control.protocol.faults.reach`: the program says that it has reached `point`."""
    process = CURRENT.get()
    if process is not None:
        process.step(point)
