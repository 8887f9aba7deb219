"""The floor under a call: floor.c beside this file, a front and a worker in C that do next to nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guests.build import native

from . import cpu
from .servers import free_port, program

SOURCE = Path(__file__).with_name("floor.c")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")


@dataclass(frozen=True)
class Floor:
    port: int
    pids: list[int]
    """The front's, and the worker's."""


@asynccontextmanager
async def serve(folder: Path) -> AsyncIterator[Floor]:
    """Run both processes until the block ends."""
    port = free_port()
    built = await asyncio.to_thread(native, SOURCE, *_FLAGS)
    async with program(folder, "floor", [built, str(port)], port, cpu.all_cores()) as front:
        worker = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text()
        yield Floor(port, [front.pid, int(worker)])
