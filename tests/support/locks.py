"""A session beside control's that locks rows of the metadata database, or a process that is frozen within one."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg

ROOT = Path(__file__).parents[2]

FROZEN = """
import asyncio, sys
from control.storage import database

async def main():
    url, idle, statement, *arguments = sys.argv[1:]
    database.IDLE_TIMEOUT = float(idle)
    db = await database.connect(url, connections=1)

    async def work(conn):
        await conn.execute(statement, *arguments)
        print("holding", flush=True)
        await asyncio.sleep(600)

    await db.transaction(work)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def locked(url: str, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Run `statement` in a transaction that stays open until the block ends, and is then undone."""
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement, *arguments)
        yield
        await transaction.rollback()
    finally:
        connection.terminate()


@contextlib.asynccontextmanager
async def frozen(url: str, statement: str, *arguments: str, idle: float) -> AsyncIterator[None]:
    """A process that has run `statement` by control's own code, and was stopped (SIGSTOP) before its COMMIT.

    `idle` is what it told the server of how long its transactions may stand still, in seconds.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FROZEN, url, str(idle), statement, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding\n"
        os.kill(process.pid, signal.SIGSTOP)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
