"""The floor under a call: floor.c beside this file, a front and a worker in C that do next to nothing."""

import asyncio
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from control.cli.support.local import OTHER_PORTS
from control.local.process import choose_port, ending_with_us

from .servers import running

SOURCE = Path(__file__).with_name("floor.c")
KEPT = Path(__file__).parents[2] / ".skerry" / "bench" / "floor"
_COMMAND = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


@dataclass(frozen=True)
class Floor:
    port: int
    pids: list[int]
    """The front's, and the worker's."""


def build() -> Path:
    """Return the program, from what was kept where it was built of the same source before."""
    recipe = [SOURCE.read_bytes(), " ".join(_COMMAND).encode(), importlib.metadata.version("ziglang").encode()]
    built = KEPT / hashlib.sha256(b"\0".join(recipe)).hexdigest()
    if not built.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        cache = {"ZIG_GLOBAL_CACHE_DIR": str(KEPT / "zig"), "ZIG_LOCAL_CACHE_DIR": str(KEPT / "zig-local")}
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            made = Path(folder) / "floor"
            command = [sys.executable, "-m", "ziglang", *_COMMAND, "-o", str(made), str(SOURCE)]
            subprocess.run(command, env={**os.environ, **cache}, cwd=folder, check=True)
            made.rename(built)
    return built


@asynccontextmanager
async def serve(folder: Path) -> AsyncIterator[Floor]:
    """Run both processes until the block ends."""
    port = choose_port(None, OTHER_PORTS)
    log = folder / "floor.log"
    program = await asyncio.to_thread(build)
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(*ending_with_us([program, str(port)]), stdout=file, stderr=file)
    async with running(child, port, log) as front:
        worker = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text()
        yield Floor(port, [front.pid, int(worker)])
