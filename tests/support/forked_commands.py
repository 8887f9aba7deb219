"""`skerry` and `skerry-edge` as processes of their own, forked from one that has imported them already.

Of the 0.3 s that a short command takes, a fresh Python spends 0.25 importing; a fork takes 0.01. What is different for
the command is that nothing is imported under its own environment, which only `control.faults` looks at then: a command
with fault points is to be started by exec.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from tests.support.environment import without_settings

MAINS = {"control.cli": "control.cli.__main__", "edge_runtime.cli.main": "edge_runtime.cli.__main__"}
"""By what follows ``python -m``: the module whose `main` runs the program."""
_REQUEST_BYTES = 1 << 20


async def run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, limit: float
) -> tuple[int, bytes, bytes]:
    """Run a program of `MAINS` in a process of its own, with nothing on its stdin; return status, stdout, stderr.

    The status of a process that a signal ended is the signal's negative number. Raises: TimeoutError, when it takes
    longer than `limit` seconds, after which it is killed.
    """
    (out, its_out), (err, its_err), (told, its_told) = os.pipe(), os.pipe(), os.pipe()
    given = os.open(os.devnull, os.O_RDONLY), its_out, its_err, its_told
    try:
        request = json.dumps([module, list(arguments), dict(environment), str(folder)]).encode()
        socket.send_fds(_template(), [request], given)
    finally:
        for descriptor in given:
            os.close(descriptor)
    pid = 0
    async with _reader(out) as outs, _reader(err) as errs, _reader(told) as tells:
        try:
            async with asyncio.timeout(limit):
                pid = int(await tells.readline())
                output, errors = await asyncio.gather(outs.read(), errs.read())
                status = int(await tells.readline())
                pid = 0
        finally:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return status, output, errors


@contextlib.asynccontextmanager
async def _reader(descriptor: int):
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        yield reader
    finally:
        transport.close()


@functools.cache
def _template() -> socket.socket:
    """Start the process that is forked; return the socket that it takes requests from. It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
            env=without_settings(),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(descriptor: int) -> None:
    """Fork a command for each request, until the test process closes its end. It returns in no command."""
    from control.cli.main import skerry
    from edge_runtime.cli.main import main as skerry_edge

    requests = socket.socket(fileno=descriptor)
    for group in (skerry, skerry_edge):
        for name in group.list_commands(click.Context(group)):
            group.get_command(click.Context(group), name)
    gc.collect()
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not request:
            return
        if os.fork() == 0:
            break
        for given in descriptors:
            os.close(given)
    requests.close()
    *streams, told = descriptors
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        os.write(told, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(told)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    module, arguments, environment, folder = json.loads(request)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    importlib.import_module(MAINS[module]).main()
    sys.exit(0)
