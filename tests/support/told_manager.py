"""A service manager as systemd is one for a program that is started with these variables: what it is told."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.deadlines import deadline
from tests.support.programs import DEADLINE


class ToldManager:
    """What the program says; `environment` is what it is started with."""

    def __init__(self, heard: socket.socket, path: Path) -> None:
        self._heard = heard
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}

    async def word(self) -> str:
        """Wait for the next word."""
        async with deadline(DEADLINE):
            return (await asyncio.get_running_loop().sock_recv(self._heard, 100)).decode()

    async def is_told_of_the_start(self) -> None:
        """Check that the start is said to go on, then that it is over, and that the program works from then on."""
        said = [await self.word()]
        while said[-1] != "READY=1":
            said.append(await self.word())
        assert {word.partition("=")[0] for word in said[:-1]} == {"EXTEND_TIMEOUT_USEC"}

    async def is_told_of_work(self) -> None:
        """Check that the program is said to work, more than once."""
        assert [await self.word() for _ in range(3)] == ["WATCHDOG=1"] * 3


@asynccontextmanager
async def told_manager(folder: Path) -> AsyncIterator[ToldManager]:
    """A manager that listens until the block ends."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(str(path))
        yield ToldManager(heard, path)
