"""A node's front in a process of its own, as `skerry-edge run` starts it: to be killed, or kept short of something."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.deadlines import deadline
from tests.support.forked_programs import may_be_forked
from tests.support.moved_clock import ClockOfProcess

PROGRAM = may_be_forked(
    """
import json, resource, sys
from pathlib import Path
from edge_runtime.sandbox import fence
from edge_runtime import logs, front
from edge_runtime.settings import EdgeSettings

fence.die_with_parent(int(sys.argv[2]))
given = json.loads(sys.argv[3])
for name, limit in given["limits"].items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
logs.set_up("text")
files = ("callers", "secrets", "tls_cert", "tls_key", "tls_client_ca")
settings = {name: Path(value) if name in files else value for name, value in given["settings"].items()}
settings = EdgeSettings(state=Path(sys.argv[1]), **settings)
if given["clock"] is None:
    front.run(settings)
else:
    from tests.support import moved_clock

    with moved_clock.moved_clock() as moved:
        kept = []
        front.run(settings, begin=lambda _: kept.append(moved_clock.obey(moved, given["clock"])))
""",
    starts_others=True,
)
STARTED = b"serving on 127.0.0.1 port "


@dataclass
class FrontProcess:
    """A front in a process of its own; `front_process` starts and ends it."""

    pid: int
    port: int
    http: aiohttp.ClientSession
    stderr: asyncio.StreamReader
    lines: list[bytes] = field(default_factory=list)
    """What it has logged, as far as that was read."""
    returned: int | None = None
    """Its exit status, where it has ended."""

    async def call(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Call a function with POST; return status and body."""
        async with self.http.post(f"/functions/{path}", data=body) as answer:
            return answer.status, await answer.read()

    async def echo(self, body: bytes) -> bytes:
        """Call the function `echo`; return its answer, which must be a success."""
        status, answered = await self.call("echo", body)
        assert status == 200, answered
        return answered

    async def status(self) -> Any:
        """Return the node's status."""
        async with self.http.get("/_skerry/status") as answer:
            return await answer.json()

    async def healthy(self, limit: float = 30.0) -> bool:
        """Whether /_skerry/healthz says so within `limit` seconds, on a connection that is there already if one is."""
        async with deadline(limit), self.http.get("/_skerry/healthz") as answer:
            return await answer.read() == b"ok\n"

    def memory(self) -> float:
        """MiB of memory that are the front's alone."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        private = [line for line in text.splitlines() if line.startswith(("Private_Clean:", "Private_Dirty:"))]
        return sum(int(line.split()[1]) for line in private) / 1024

    async def read_log(self) -> None:
        """Read its log until it ends."""
        while line := await self.stderr.readline():
            self.lines.append(line)

    def logged(self, text: bytes) -> bool:
        """Whether a line of the log that was read has this text."""
        return any(text in line for line in self.lines)


@contextlib.asynccontextmanager
async def front_process(
    state: Path,
    *,
    reads_log: bool = True,
    limits: dict[str, int] | None = None,
    clock: ClockOfProcess | None = None,
    **settings: Any,
) -> AsyncIterator[FrontProcess]:
    """A front that serves what the state directory has; it is ended with SIGTERM, if it is still there.

    Where `reads_log` is False, its log is read only as far as the line that says where it serves. `limits` are bounds
    of the process by their names in `resource`, as RLIMIT_NOFILE. `clock` moves its clock; without one that is the
    system's.
    """
    settings = {"listen": "127.0.0.1:0", "workers": 2, **settings}
    passed = () if clock is None else (clock.theirs.fileno(),)
    given = json.dumps({"settings": settings, "limits": limits or {}, "clock": next(iter(passed), None)})
    # A reader with a small buffer soon stops to read.
    room = 1 << 20 if reads_log else 4096
    command = (sys.executable, "-c", PROGRAM, str(state), str(os.getpid()), given)
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, limit=room, pass_fds=passed
    )
    if clock is not None:
        clock.theirs.close()
    assert process.stderr is not None
    lines: list[bytes] = []
    drain: asyncio.Task[None] | None = None
    made: FrontProcess | None = None
    try:
        async with deadline(60):
            while True:
                line = await process.stderr.readline()
                assert line, b"".join(lines).decode()
                lines.append(line)
                if STARTED in line:
                    port = int(line.split(STARTED)[1])
                    break
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            made = FrontProcess(process.pid, port, http, process.stderr, lines)
            if reads_log:
                drain = asyncio.create_task(made.read_log())
            yield made
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            if drain is None:
                drain = asyncio.create_task(_drain(process.stderr))
            try:
                async with deadline(60):
                    await process.wait()
            except TimeoutError:
                process.kill()
                raise
        if made is not None:
            made.returned = process.returncode
        if drain is not None:
            await drain


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass
