"""Runs one of our programs beside the calls, for what it writes: as its own process, so that the system gives it what
the calls leave."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from edge_runtime.ipc.child_output import ChildOutput
from edge_runtime.ipc.zygote_client import child_environment

ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the longest answer."""
GONE_PAUSE: Final = 0.02
"""Seconds between two checks whether the program is gone, once it has closed its output."""


class OneshotProgram:
    """One run of a program; `run` it once."""

    def __init__(self, module: str, lock: int, arguments: Sequence[str] = (), given: bytes = b"") -> None:
        """`lock`: descriptor of the state directory's lock, which the program holds until it has exited. `given` is its
        stdin."""
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._lock = lock
        self._given = given
        self._answer = bytearray()
        self.status = 0
        """Its exit status, as `subprocess` has it, after `run`."""

    async def run(self) -> bytes:
        """Return what the program wrote to stdout, once all of its processes have exited. If this is cancelled, it is
        killed. Raises: OSError, when it can't be started."""
        process, output, reading = self._start()
        try:
            await self._read(process, reading)
        finally:
            if process.poll() is None:
                process.kill()
            await asyncio.shield(asyncio.ensure_future(self._end(process, output, reading)))
        return bytes(self._answer)

    def _start(self) -> tuple["subprocess.Popen[bytes]", ChildOutput, int]:
        """Raises: OSError."""
        with contextlib.ExitStack() as unless_started:
            # Not a pipe: writing it could have to wait.
            given = os.memfd_create("given", os.MFD_CLOEXEC)
            with os.fdopen(given, "w+b") as file:
                file.write(self._given)
                file.seek(0)
                reading, writing = os.pipe()
                unless_started.callback(os.close, reading)
                with contextlib.closing(os.fdopen(writing, "wb")):
                    output = ChildOutput()
                    unless_started.callback(output.close)
                    try:
                        process = subprocess.Popen(  # noqa: S603
                            self._command,
                            pass_fds=(self._lock,),
                            env=child_environment(),
                            stdin=file,
                            stdout=writing,
                            stderr=output.write,
                            # Ctrl-C is only for the front. A separate session would also get a separate share of the
                            # processors, whatever its priority.
                            process_group=0,
                        )
                    finally:
                        output.started()
            unless_started.pop_all()
        os.set_blocking(reading, False)
        return process, output, reading

    async def _read(self, process: "subprocess.Popen[bytes]", reading: int) -> None:
        """Read the answer until every process of the program has exited: all of them have its output open."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                piece = os.read(reading, 1 << 16)
                if len(self._answer) > ANSWER_BYTES:
                    process.kill()
                elif piece:
                    self._answer.extend(piece)
                if not piece:
                    loop.remove_reader(reading)
                    if not ended.done():
                        ended.set_result(None)

        loop.add_reader(reading, readable)
        try:
            await asyncio.shield(ended)
        except BaseException:
            process.kill()
            # The caller may remove its files: no process may still write to them.
            await asyncio.shield(ended)
            raise
        finally:
            loop.remove_reader(reading)

    async def _end(self, process: "subprocess.Popen[bytes]", output: ChildOutput, reading: int) -> None:
        """Wait until the program is gone."""
        while process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(GONE_PAUSE)
        self.status = process.returncode
        output.close()
        os.close(reading)
