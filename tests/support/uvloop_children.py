"""Programs that `skerry serve` starts in its loop, uvloop: by `subprocess`, as other loops do it, where it was forked
itself. uvloop starts them by exec whatever `subprocess` does, and a check of an upload then takes 0.25 s of a
processor, nearly all of it for imports, instead of 0.05.
"""

import asyncio
import os
from asyncio.unix_events import _UnixSubprocessTransport  # type: ignore[attr-defined]
from collections.abc import Callable
from typing import Any

import uvloop


def use_subprocess() -> None:
    """Have the loops of this process start programs by `subprocess.Popen`."""
    uvloop.Loop.subprocess_exec = _subprocess_exec


async def _subprocess_exec(
    loop: asyncio.AbstractEventLoop,
    made: Callable[[], asyncio.SubprocessProtocol],
    *command: str,
    stdin: int | None,
    stdout: int | None,
    stderr: int | None,
    **more: Any,
) -> tuple[asyncio.SubprocessTransport, asyncio.SubprocessProtocol]:
    """What `asyncio.create_subprocess_exec` asks a loop for."""
    protocol, connected = made(), loop.create_future()
    transport = _UnixSubprocessTransport(
        loop, protocol, command, False, stdin, stdout, stderr, bufsize=0, waiter=connected, **more
    )
    process = transport.get_extra_info("subprocess")
    ended = os.pidfd_open(process.pid)

    def tell() -> None:
        loop.remove_reader(ended)
        os.close(ended)
        transport._process_exited(process.wait())

    loop.add_reader(ended, tell)
    await connected
    return transport, protocol
