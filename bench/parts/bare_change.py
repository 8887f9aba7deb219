"""The floor under a schema change: the same statements, with SQLite alone, on a database that nobody else uses.

`python -m bench.parts.bare_change FILE` takes a JSON list of statements on each line of stdin, runs each in a separate
transaction, and answers with a line on stdout. It shares the processor and the disk just as a node's own change does;
calls beside it wait only for those.
"""

import asyncio
import json
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from control.local.process import ending_with_us

MOST_BYTES = 1 << 20
"""The most bytes of a line."""


class BareChange:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, statements: Sequence[str]) -> None:
        """Run each statement in a separate transaction."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(statements).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line == b"done\n", line


@asynccontextmanager
async def beside(folder: Path, statements: Sequence[str]) -> AsyncIterator[BareChange]:
    """Keep a database that these statements created ready until the block ends."""
    command = ending_with_us([sys.executable, "-m", "bench.parts.bare_change", str(folder / "bare.db")])
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=MOST_BYTES)
    try:
        made = BareChange(process)
        await made.run(statements)
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main(path: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    for line in sys.stdin:
        for statement in json.loads(line):
            connection.executescript(f"BEGIN IMMEDIATE; {statement}; COMMIT;")
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
