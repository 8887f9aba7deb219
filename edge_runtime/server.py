"""The local HTTP server: its address, its connections, and its end."""

import asyncio
import contextlib
import socket
import time
from email.utils import formatdate
from typing import Final

from .connection import App, Connection, Shared
from .settings import Settings, SettingsError

BACKLOG: Final = 2048
SWEEP: Final = 1.0
"""Seconds between two looks at which connections are late."""


class Server:
    def __init__(self, app: App, settings: Settings) -> None:
        self.shared = Shared(app, settings)
        self._settings = settings
        self._socket: socket.socket | None = None
        self._stopping = asyncio.Event()

    def bind(self) -> int:
        """Take the address; the port that it has. Error: SettingsError."""
        host, port = self._settings.address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
        except OSError as error:
            text = (
                f"the node can't listen on {self._settings.listen}: {error.strerror}; SKERRY_EDGE_LISTEN names another"
            )
            raise SettingsError(text) from None
        self._socket.set_inheritable(False)
        return int(self._socket.getsockname()[1])

    async def run_until_stopped(self) -> None:
        """Serve until `stop`; then what runs may end, for `stop_limit` seconds. `close` cuts what is left."""
        assert self._socket is not None  # noqa: S101
        shared = self.shared
        listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(shared), sock=self._socket, backlog=BACKLOG
        )
        async with asyncio.TaskGroup() as group:
            sweep = group.create_task(self._sweep())
            try:
                await self._stopping.wait()
                listening.close()
                shared.stop()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(shared.empty.wait(), self._settings.stop_limit)
            finally:
                listening.close()
                sweep.cancel()

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        """Let the address and the connections go."""
        for connection in list(self.shared.live):
            connection.abort()
        if self._socket is not None:
            self._socket.close()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.shared.date = f"date: {formatdate(time.time(), usegmt=True)}\r\n".encode()
            now = loop.time()
            for connection in [c for c in self.shared.live if c.deadline < now]:
                connection.late(now)
            await asyncio.sleep(SWEEP)
