"""The front's side of a rehearsal: starts the program that tries a release on a copy of the node's data, and makes sure
that the copy is gone afterwards."""

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.child_output import ChildOutput
from edge_runtime.ipc.rehearsal_messages import RehearsalTask
from edge_runtime.ipc.zygote_client import ZygoteClient, child_environment
from edge_runtime.state import REHEARSAL

log = logging.getLogger("skerry.rehearsal")

ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the longest answer."""
GONE_PAUSE: Final = 0.02
"""Seconds between two checks whether the program is gone, once it has closed its output."""

_decode_result: Final = msgspec.json.Decoder(wire.RehearsalResult).decode


class RehearsalProcess:
    """One rehearsal; `run` it once."""

    PROGRAM: ClassVar[str] = "edge_runtime.oneshot.rehearse"
    """The module that the program runs."""

    def __init__(self, processes: ZygoteClient) -> None:
        self._processes = processes
        self._answer = bytearray()

    async def run(self, task: RehearsalTask) -> wire.RehearsalResult:
        """Rehearse the release, and return what came of it. If this is cancelled, the program is killed; its folder is
        removed in any case.

        Raises: SyncFailed, when the program can't be started, or ends without a result.
        """
        try:
            process, output, reading = self._start(task)
        except OSError as error:
            raise SyncFailed("rehearsal_impossible", f"The rehearsal can't be started: {error}.") from None
        try:
            await self._read(process, reading)
        finally:
            if process.poll() is None:
                process.kill()
            ending = asyncio.ensure_future(self._end(process, output, reading, Path(task.state) / REHEARSAL))
            await asyncio.shield(ending)
        *_, last = [b"", *bytes(self._answer).splitlines()]
        with contextlib.suppress(msgspec.MsgspecError):
            return _decode_result(last)
        text = f"The program that rehearsed release {task.plan.release_number} ended with status {process.returncode}."
        raise SyncFailed("rehearsal_died", text)

    def _start(self, task: RehearsalTask) -> tuple["subprocess.Popen[bytes]", ChildOutput, int]:
        """Raises: OSError."""
        with contextlib.ExitStack() as unless_started:
            # Not a pipe: writing it could have to wait.
            given = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
            with os.fdopen(given, "w+b") as file:
                file.write(msgspec.json.encode(task))
                file.seek(0)
                reading, writing = os.pipe()
                unless_started.callback(os.close, reading)
                with contextlib.closing(os.fdopen(writing, "wb")):
                    output = ChildOutput()
                    unless_started.callback(output.close)
                    try:
                        process = subprocess.Popen(  # noqa: S603
                            [sys.executable, "-P", "-m", self.PROGRAM],
                            pass_fds=(self._processes.lock,),
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
        """Read the answer until every process of the rehearsal has exited: all of them have its output open."""
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
            # The folder must not be removed while a process still writes to it.
            await asyncio.shield(ended)
            raise
        finally:
            loop.remove_reader(reading)

    async def _end(self, process: "subprocess.Popen[bytes]", output: ChildOutput, reading: int, place: Path) -> None:
        """Wait until the program is gone, and remove its folder."""
        while process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(GONE_PAUSE)
        output.close()
        os.close(reading)
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
