"""Commands of `skerry` in a terminal, which redraw what they show."""

import asyncio
import contextlib
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.deadlines import deadline

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LIMIT = 60.0
"""Seconds in which a text must come."""


@dataclass
class Terminal:
    """A `skerry` in a terminal of its own."""

    process: asyncio.subprocess.Process
    shown: str = ""
    """All that it has drawn and wasn't looked for yet."""
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, *texts: str) -> None:
        """Wait until it draws all of these, after what was waited for before."""
        for text in texts:
            async with deadline(LIMIT):
                while text not in self.shown:
                    self.more.clear()
                    await self.more.wait()

    def forget(self) -> None:
        self.shown = ""


@asynccontextmanager
async def in_terminal(environment: dict[str, str], *arguments: str) -> AsyncIterator[Terminal]:
    """Run a command of `skerry` until the block ends."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **environment, "COLUMNS": "160", "LINES": "50", "TERM": "xterm"},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    terminal, loop = Terminal(process), asyncio.get_running_loop()

    def read() -> None:
        try:
            found = os.read(ours, 65536)
        except OSError:
            # Its last end is closed.
            found = b""
        if not found:
            loop.remove_reader(ours)
        terminal.shown += ESCAPES.sub("", found.decode(errors="replace"))
        terminal.more.set()

    loop.add_reader(ours, read)
    try:
        yield terminal
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        loop.remove_reader(ours)
        os.close(ours)
