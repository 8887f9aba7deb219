"""A node's front in a process of its own, as `skerry-edge run` starts it, to be killed."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

PROGRAM = """
import logging, sys
from pathlib import Path
from edge_runtime import fence, service
from edge_runtime.settings import Settings

fence.die_with_parent(int(sys.argv[2]))
logging.basicConfig(level=logging.INFO)
service.run(Settings(state=Path(sys.argv[1]), listen="127.0.0.1:0", workers=2))
"""
STARTED = b"serving on 127.0.0.1 port "


@dataclass
class FrontProcess:
    pid: int
    http: aiohttp.ClientSession

    async def call(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async with self.http.post(f"/functions/{path}", data=body) as answer:
            return answer.status, await answer.read()

    async def echo(self, body: bytes) -> bytes:
        status, answered = await self.call("echo", body)
        assert status == 200, answered
        return answered


@contextlib.asynccontextmanager
async def front_process(state: Path) -> AsyncIterator[FrontProcess]:
    """A front that serves what the state directory has; it is ended with SIGTERM, if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(state), str(os.getpid()), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[bytes] = []
    try:
        async with asyncio.timeout(30):
            while True:
                line = await process.stderr.readline()
                assert line, b"".join(lines).decode()
                lines.append(line)
                if STARTED in line:
                    port = int(line.split(STARTED)[1])
                    break
        drain = asyncio.ensure_future(process.stderr.read())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            yield FrontProcess(process.pid, http)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(20):
                await process.wait()
    await drain
