"""`skerry` and `skerry-edge` in a shell that a test runs, forked as those are that the test starts itself.

On the shell's path are two files, copies of a small program in C (`shell_program.c`). It asks the test to start the
program, waits for it and passes signals on, so that the shell has a child that does what the program does.
"""

import contextlib
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.guests.build import native

MODULES: Final = {"skerry": "control.cli", "skerry-edge": "edge_runtime.cli"}
"""By the file's name, what follows ``python -m``."""
_SOURCE: Final = Path(__file__).with_name("shell_program.c")
_REQUEST_BYTES: Final = 1 << 17
_NUMBER: Final = struct.Struct("=i")


class ShellPrograms:
    """The two files in a folder, and who starts programs for them; `shell_programs` makes it."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self.folder = folder
        """What comes first in the shell's PATH."""
        self._listener = listener

    def run(self, shell: subprocess.Popen[bytes], seconds: float) -> int:
        """Start programs for the shell until it ends; return its status. Programs that are left are killed.

        Raises: TimeoutError, when it takes longer.
        """
        deadline = time.monotonic() + seconds
        asking: dict[int, socket.socket] = {}
        running: dict[int, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        waiting = select.poll()
        ended = os.pidfd_open(shell.pid)
        for descriptor in (ended, self._listener.fileno()):
            waiting.register(descriptor, select.POLLIN)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no end within {seconds:g} s")
                for ready, _ in waiting.poll(left * 1000):
                    if ready == ended:
                        return shell.wait()
                    if ready == self._listener.fileno():
                        asked, _ = self._listener.accept()
                        process = _started(asked)
                        pidfd = os.pidfd_open(process.pid)
                        running[pidfd] = process, asked
                        asking[asked.fileno()] = asked
                        waiting.register(pidfd, select.POLLIN)
                        waiting.register(asked, select.POLLIN)
                    elif ready in running:
                        process, asked = running.pop(ready)
                        waiting.unregister(ready)
                        os.close(ready)
                        status = process.wait()
                        if asked.fileno() in asking:
                            waiting.unregister(asked)
                            del asking[asked.fileno()]
                            with contextlib.suppress(BrokenPipeError):
                                asked.send(_NUMBER.pack(status))
                        asked.close()
                    elif ready in asking:
                        # The one in the shell has ended: it was killed.
                        waiting.unregister(asking.pop(ready))
                        next(process for process, asked in running.values() if asked.fileno() == ready).kill()
        finally:
            os.close(ended)
            for pidfd, (process, asked) in running.items():
                os.close(pidfd)
                process.kill()
                process.wait()
                asked.close()


def _started(asked: socket.socket) -> subprocess.Popen[bytes]:
    """Start the program that the other end asks for, and tell its process id."""
    request, streams, _, _ = socket.recv_fds(asked, _REQUEST_BYTES, 3)
    try:
        name, folder, mask, count, *rest = [os.fsdecode(word) for word in request.removesuffix(b"\0").split(b"\0")]
        words, variables = rest[: int(count)], rest[int(count) :]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULES[name], *words],
            cwd=folder,
            umask=int(mask),
            env=dict(variable.split("=", 1) for variable in variables),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
        )
    finally:
        for stream in streams:
            os.close(stream)
    asked.send(_NUMBER.pack(process.pid))
    return process


@contextlib.contextmanager
def shell_programs() -> Iterator[ShellPrograms]:
    """The two programs for a shell; they are there until the block ends."""
    # Not a test's own folder: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="skerry-shell-") as made:
        folder = Path(made)
        for name in MODULES:
            shutil.copy(native(_SOURCE, "-O2", "-Wall", "-Wextra", "-Werror"), folder / name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen(64)
            yield ShellPrograms(folder, listener)
