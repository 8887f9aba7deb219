"""Runs of seeds: `run` makes the world of one, with the program's modules in it, and `check` many after another."""

import asyncio
import gc
import logging
import os
import random as global_random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest import mock

from control.protocol import faults
from control.sync import fleet_cache
from edge_runtime import clock
from edge_runtime.sync import agent, attempt, control_client, control_trust, identity, sync_outcomes
from tests.support.simulation import processes
from tests.support.simulation.database import Mirror
from tests.support.simulation.disk import DiskFiles
from tests.support.simulation.ledger import Ledger, Violation
from tests.support.simulation.loop import NodeTime, VirtualLoop
from tests.support.simulation.node import Node, SimulatedArtifacts, WatchedClient
from tests.support.simulation.processes import CURRENT, Process
from tests.support.simulation.tables import Tables
from tests.support.simulation.world import World

NODES = 20
PART = 25
"""Seeds in one test."""
FLEET_PERIOD = 1.0
"""Seconds between two looks of a replica at what was announced; four times as many would cost a tenth of a run."""


@dataclass
class Result:
    """What a run was."""

    digest: str
    """Digest of the whole trace: two runs with the same one were the same."""
    trace: list[str]
    """The last that happened."""
    tables: Tables


class Failed(AssertionError):
    """A run in which a property didn't hold; its text says how to repeat it."""

    def __init__(self, seed: int, nodes: int, why: str, trace: Iterable[str]) -> None:
        again = f"SKERRY_TEST_SEED={seed} SKERRY_TEST_NODES={nodes} just test tests/simulation/test_one_seed.py"
        last = "\n  ".join(trace)
        super().__init__(f"seed {seed}: {why}\nthe last that happened:\n  {last}\nto repeat it: {again}")
        self.why = why


def run(seed: int, nodes: int = NODES, mirror: Mirror | None = None) -> Result:
    """Run a seed; raises `Failed` where a property doesn't hold."""
    loop = VirtualLoop()
    worlds: list[World] = []

    async def whole() -> None:
        worlds.append(World(seed, nodes, loop, mirror))
        mistakes.ledger = worlds[0].ledger
        await worlds[0].run()

    with _replaced(seed, worlds), _Mistakes() as mistakes:
        loop.set_exception_handler(mistakes.uncaught)
        try:
            loop.run_until_complete(whole())
        except Violation as violation:
            raise Failed(seed, nodes, str(violation), worlds[0].ledger.trace) from None
        finally:
            mistakes.ledger = None
            _end(loop)
    ledger = worlds[0].ledger
    return Result(ledger.digest, list(ledger.trace), worlds[0].server.tables)


def parts(first: int, end: int) -> list[range]:
    """The seeds from `first` to `end`, in parts of one test."""
    return [range(start, min(start + PART, end)) for start in range(first, end, PART)]


def check(seeds: Iterable[int], nodes: int = NODES) -> None:
    """Run these seeds; raises `Failed` for the first in which a property doesn't hold."""
    # A run leaves its objects in circles. They are looked for between runs, and not among all that was there before,
    # which stays left out: else that takes as long as the runs.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for seed in seeds:
            run(seed, nodes)
            gc.collect()
    finally:
        gc.enable()


def elsewhere(seeds: Iterable[int], hash_seed: int) -> list[str]:
    """The digests of these seeds' runs in another process, where sets have another order."""
    code = f"from tests.support.simulation.runs import run; print(*(run(seed).digest for seed in {[*seeds]}))"
    environ = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.split()


def again() -> Result:
    """Run the seed that the environment names, as a failure says."""
    return run(int(os.environ.get("SKERRY_TEST_SEED", "0")), int(os.environ.get("SKERRY_TEST_NODES", str(NODES))))


def _end(loop: VirtualLoop) -> None:
    """End what still runs, and the loop."""
    loop.forget_timers()
    tasks = asyncio.all_tasks(loop)
    while tasks:
        # One that is told to end in the moment in which its time is up goes on.
        for task in tasks:
            task.cancel()
        _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    loop.close()


class _Mistakes(logging.Handler):
    """A mistake that the program catches and logs is a violation too, and so is one that nobody catches."""

    ledger: Ledger | None = None
    """Where to say so; None when the run has ended."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._log = logging.getLogger("skerry")

    def __enter__(self) -> "_Mistakes":
        self._before = self._log.level, self._log.propagate
        self._log.setLevel(logging.ERROR)
        self._log.propagate = False
        self._log.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        self._log.removeHandler(self)
        level, self._log.propagate = self._before
        self._log.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        process = CURRENT.get()
        if record.exc_info and self.ledger is not None and (process is None or process.alive):
            self.ledger.wrong(f"the program made a mistake: {record.getMessage()}: {record.exc_info[1]!r}")

    def uncaught(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's handler of exceptions."""
        if self.ledger is not None:
            self.ledger.wrong(f"nobody caught a mistake: {context['message']}: {context.get('exception')!r}")


@contextmanager
def _replaced(seed: int, worlds: list[World]) -> Iterator[None]:
    """Have the program's modules see the run's world: its clock, its randomness, its disks, network and fault points.

    `worlds` has it once it is made.
    """
    chance, state = Random(f"skerry {seed}"), global_random.getstate()
    urandom, thread = os.urandom, threading.get_ident()

    def random_bytes(count: int) -> bytes:
        # The mirror's thread takes some too, for each connection that it opens.
        return chance.randbytes(count) if threading.get_ident() == thread else urandom(count)

    def process() -> Process:
        found = CURRENT.get()
        assert found is not None
        return found

    def node() -> Node:
        return worlds[0].by_name[process().name]

    def client(_url: str, _ca: Any, credential: str = "") -> WatchedClient:
        return WatchedClient(node(), worlds[0].network, process(), credential)

    replaced: list[tuple[Any, str, Callable[..., Any] | type | float]] = [
        (os, "urandom", random_bytes),
        (global_random, "_urandom", random_bytes),
        (faults, "reach", processes.reach),
        (fleet_cache, "PERIOD", FLEET_PERIOD),
        (clock, "monotonic", lambda: asyncio.get_running_loop().time()),
        (clock, "now", NodeTime.now),
        (agent, "ControlClient", client),
        (agent, "Artifacts", lambda _state: SimulatedArtifacts(node())),
        *((module, "datetime", NodeTime) for module in (agent, attempt, control_client, identity)),
        *((module, "files", DiskFiles) for module in (identity, sync_outcomes, control_trust)),
    ]
    global_random.seed(seed)
    patches = [mock.patch.object(module, name, value) for module, name, value in replaced]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
        global_random.setstate(state)
