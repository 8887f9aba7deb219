"""One PostgreSQL and one SeaweedFS for all worker processes of pytest-xdist.

A process of their own starts them when the first worker asks for them, and ends them when the process that started the
workers has ended, in whatever way. It imports the servers' modules only when a worker asks: runs of unit tests don't.
"""

import contextlib
import dataclasses
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

END_LIMIT = 60.0
"""Seconds in which the servers end."""


class SharedServices:
    """The process that has the servers, for the process that starts the workers."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="skerry-tests-")
        self.socket = f"{folder}/servers"
        with socket.socket(socket.AF_UNIX) as listener:
            # Before a worker can ask, which then waits.
            listener.bind(self.socket)
            listener.listen(64)
            # A pipe that this process alone has the other end of: it is closed when this process ends, killed or not.
            # A session of its own: Ctrl-C is for pytest, whose tests use the servers while they end.
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), folder],
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(),),
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )

    def end(self) -> None:
        """End the servers, and wait for their end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(END_LIMIT)


def ask(path: str) -> dict[str, str]:
    """Have the servers started, if they don't run yet; returns the fields of `ServerUrls`.

    Raises: RuntimeError, when they couldn't be started.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        with asking.makefile("rb") as answer:
            told: dict[str, str] = json.loads(answer.read() or b'{"error": "the process that starts them has ended"}')
    if "error" in told:
        raise RuntimeError(f"the servers that the tests share didn't start: {told['error']}")
    return told


def _serve(listener: socket.socket) -> None:
    """Start the servers when somebody asks, and tell all who ask where they are, until the pipe is closed."""
    if not _is_asked(listener):
        return
    from tests.support import services

    with contextlib.ExitStack() as stack:
        told: dict[str, Any]
        try:
            own = stack.enter_context(services.own_services())
            told = {field.name: getattr(own, field.name) for field in dataclasses.fields(services.ServerUrls)}
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        while _is_asked(listener):
            with contextlib.suppress(ConnectionError), listener.accept()[0] as asking:
                asking.sendall(json.dumps(told).encode())


def _is_asked(listener: socket.socket) -> bool:
    """Wait until somebody asks; False as soon as the process that started this one has ended or closed the pipe."""
    ready, _, _ = select.select([0, listener], [], [])
    return 0 not in ready


def main(descriptor: str, folder: str) -> None:
    """Serve on the socket `descriptor`, which is in `folder`; that is removed at the end."""
    try:
        with socket.socket(fileno=int(descriptor)) as listener:
            _serve(listener)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    main(*sys.argv[1:])
