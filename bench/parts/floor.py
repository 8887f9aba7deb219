"""The floor under a call: floor.c beside this file, a front and a worker in C that do next to nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from control.cli.up.installation import OTHER_PORTS
from control.local.process import choose_port, ending_with_us
from tests.guests.build import native

from .servers import running

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
    port = choose_port(None, OTHER_PORTS)
    log = folder / "floor.log"
    program = await asyncio.to_thread(native, SOURCE, *_FLAGS)
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(*ending_with_us([program, str(port)]), stdout=file, stderr=file)
    async with running(child, port, log) as front:
        worker = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text()
        yield Floor(port, [front.pid, int(worker)])
