"""A node on a listening socket that somebody else keeps open, as systemd does: it can be ended and started again."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.deadlines import deadline
from tests.support.environment import without_settings
from tests.support.forked_programs import may_be_forked
from tests.support.programs import DEADLINE

AS_SYSTEMD = may_be_forked(
    """
import os, sys
handed, python, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
os.dup2(handed, 3)
if handed != 3:
    os.close(handed)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
if python != sys.executable:
    os.execv(python, [python, "-m", "edge_runtime.cli.main", *words])
from edge_runtime.cli.__main__ import main
sys.argv = ["skerry-edge", *words]
main()
""",
    starts_others=True,
)


def log_of(state: Path) -> Path:
    """The file that has the log of the node of this state directory."""
    return state.parent / f"{state.name}.log"


async def start(
    handed: socket.socket, state: Path, *more: str | Path, python: str = sys.executable, **environment: str
) -> asyncio.subprocess.Process:
    """Start `skerry-edge run` with this socket as its file descriptor 3; `python` is that of the version that runs."""
    kept = without_settings()
    words = ["run", "--state", state, "--workers", "1", *more]
    with log_of(state).open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AS_SYSTEMD, str(handed.fileno()), python, *map(str, words)),
            pass_fds=[handed.fileno()],
            env={**kept, **environment},
            # What `-m` finds in the present folder would come before the version's own.
            cwd=state.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@asynccontextmanager
async def node_on(
    handed: socket.socket, state: Path, *more: str | Path, python: str = sys.executable, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a node on this socket until the block ends, which ends it as systemd does; it must end well."""
    process = await start(handed, state, *more, python=python, **environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        async with deadline(DEADLINE):
            await process.wait()
        assert process.returncode == 0, log_of(state).read_text()[-3000:]
