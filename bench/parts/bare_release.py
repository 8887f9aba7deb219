"""The floor under a release: only its necessary steps, one after another.

LLVM's compilation of the module alone, in a process that has compiled before; as many commits to PostgreSQL as a
release makes until it serves, as many files written to disk, and as many requests over kept-alive TLS connections to
control's own server class with an echo in place of control.
"""

import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from bench.parts.servers import Site, bare_control
from edge_runtime.aot_cache import QUICK
from edge_runtime.guests.function_code import compile_artifact

COMMITS = 3
"""For the release, the node's sync, and the node's transaction."""
FILES = 3
"""The artifact, its code and the release's digest, each synced with its folder."""
REQUESTS = 4
"""The release, the poll's answer, the artifact and the first call."""
SMALL = b"x" * 512


@dataclass
class Floor:
    """Performs those steps, with everything they need ready."""

    folder: Path
    database: Any
    http: aiohttp.ClientSession

    async def take(self, wasm: bytes) -> tuple[float, float]:
        """Return the seconds of the module's compilation, and those of everything else."""
        work = self.folder / "work"
        work.mkdir()
        began = time.perf_counter()
        compile_artifact(wasm, work, QUICK)
        compiled = time.perf_counter()
        for number in range(FILES):
            self._put(work / str(number), wasm if number == 0 else SMALL)
        for _ in range(COMMITS):
            await self.database.execute("UPDATE floor SET n = n + 1")
        for number in range(REQUESTS):
            async with self.http.post("/", data=wasm if number == 0 else SMALL) as answer:
                assert answer.status == 200
                await answer.read()
        ended = time.perf_counter()
        shutil.rmtree(work)
        return compiled - began, ended - compiled

    def _put(self, path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@asynccontextmanager
async def floor(site: Site, cores: set[int]) -> AsyncIterator[Floor]:
    """Keep a floor ready beside this control until the block ends."""
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(bare_control(site, cores))
        connector = aiohttp.TCPConnector(ssl=site.tls)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(f"https://127.0.0.1:{bare.port}", connector=connector)
        )
        database = await asyncpg.connect(site.services.metadata_url)
        stack.push_async_callback(database.close)
        await database.execute("CREATE TABLE floor (n integer NOT NULL); INSERT INTO floor VALUES (0)")
        yield Floor(site.folder, database, http)
