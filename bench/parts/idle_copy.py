"""The floor under a rehearsal: a process in the idle classes of processor and disk that only copies a file.

`python -m bench.parts.idle_copy FILE TARGET` takes a number of bytes on each line of stdin, copies that many (the file
again from its start, if it has fewer) in pieces that are flushed and dropped from memory, removes the copy, and answers
with a line on stdout.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control.local.process import ending_with_us
from edge_runtime.sandbox import fence

PIECE = 4 * 1024 * 1024


class IdleCopy:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, size: int) -> None:
        """Copy this many bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{size}\n".encode())
        line = await self._process.stdout.readline()
        assert line == b"done\n", line


@asynccontextmanager
async def beside(file: Path, target: Path) -> AsyncIterator[IdleCopy]:
    """Keep the process ready until the block ends."""
    command = ending_with_us([sys.executable, "-m", "bench.parts.idle_copy", str(file), str(target)])
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        made = IdleCopy(process)
        await made.run(0)
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def copy(file: Path, target: Path, size: int) -> None:
    """Copy `size` bytes, and remove the copy."""
    reading = os.open(file, os.O_RDONLY)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        done = 0
        while done < size:
            piece = os.read(reading, min(PIECE, size - done))
            if not piece:
                os.lseek(reading, 0, os.SEEK_SET)
                continue
            os.write(writing, piece)
            os.fdatasync(writing)
            os.posix_fadvise(writing, done, len(piece), os.POSIX_FADV_DONTNEED)
            done += len(piece)
    finally:
        os.close(reading)
        os.close(writing)
        target.unlink()


def main(file: Path, target: Path) -> None:
    fence.use_idle_scheduling()
    fence.use_idle_disk()
    for line in sys.stdin:
        copy(file, target, int(line))
        print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
