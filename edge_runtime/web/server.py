"""The local HTTP server: binds its address, limits its connections, and closes them when it stops."""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from email.utils import formatdate
from typing import Final

from control.protocol.counts import counted
from edge_runtime import clock
from edge_runtime.pauses import Pauses
from edge_runtime.settings import EdgeSettings, EdgeSettingsError
from edge_runtime.web.callers import Callers
from edge_runtime.web.connection import HttpConnection, RequestHandler, Shared
from edge_runtime.web.listener import AT_ONCE, SECURE_AT_ONCE, Listener
from edge_runtime.web.tls_files import TlsFiles
from edge_runtime.web.tls_stream import TlsStream
from edge_runtime.web.token_file import TokenFile

KEPT: Final = 64
"""File descriptors that are reserved for the front itself, in addition to those for its workers."""
KEPT_PER_WORKER: Final = 4
"""Descriptors for each worker: its socket, pidfd, its function's HTTP request, and a worker started as its
replacement."""
FEWEST: Final = 16
"""The least number of connections that a node must be able to have."""
SECURE_MOST: Final = 4096
"""The most connections over TLS: each has about 50 KB of buffers in OpenSSL."""
SWEEP: Final = 1.0
"""Seconds between two checks for connections past their deadline."""

log = logging.getLogger("skerry.front")


class EdgeServer:
    def __init__(
        self,
        app: RequestHandler,
        settings: EdgeSettings,
        callers: Callers | None = None,
        tls_files: TlsFiles | None = None,
        token_file: TokenFile | None = None,
    ) -> None:
        """Without `tls_files` it speaks plain HTTP."""
        self._token_file = token_file
        self._callers = callers
        self._tls = tls_files
        self.shared = Shared(app, settings)
        self._settings = settings
        self._socket: socket.socket | None = None
        self._stopping = asyncio.Event()
        self.look_now = asyncio.Event()
        """Set it to reload the callers, TLS and token files at once."""
        self.limit = 0
        """The most connections at once; known after `bind`."""
        self._listener: Listener | None = None
        self._made_room_at = 0.0

    def bind(self, handed: socket.socket | None = None) -> int:
        """Bind the address, or use the socket that was handed over; return the port. Raises: EdgeSettingsError;
        FileUnfit."""
        if self._callers is not None:
            self._callers.start()
        if self._tls is not None:
            self._tls.start()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kept = KEPT + KEPT_PER_WORKER * self._settings.workers
        self.limit = files - kept
        if self.limit < FEWEST:
            text = (
                f"this process may have {files} open files, and a node with "
                f"{counted(self._settings.workers, 'worker')} needs {kept + FEWEST}: raise the limit "
                "(LimitNOFILE of a systemd unit, ulimit -n), or take fewer workers"
            )
            raise EdgeSettingsError(text)
        if self._tls is not None:
            self.limit = min(self.limit, SECURE_MOST)
        self._socket = handed or self._bound()
        return int(self._socket.getsockname()[1])

    def _bound(self) -> socket.socket:
        """Return a socket bound to the address in the settings. Raises: EdgeSettingsError."""
        host, port = self._settings.address
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = infos[0]
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError as error:
            text = (
                f"the node can't listen on {self._settings.listen}: {error.strerror}; name another address by "
                "SKERRY_EDGE_LISTEN, or by --listen of `skerry dev`, which finds a free one without it"
            )
            raise EdgeSettingsError(text) from None
        return made

    async def run_until_stopped(self) -> None:
        """Serve until `stop`, then give connections `stop_limit` seconds to finish. `close` cuts off the rest."""
        assert self._socket is not None  # noqa: S101
        shared = self.shared
        shared.allocator.keep()
        at_once = AT_ONCE if self._tls is None else SECURE_AT_ONCE
        listener = self._listener = Listener(self._socket, self._connection, self._room, self.limit, at_once)
        shared.removed = listener.freed
        listener.open()
        async with asyncio.TaskGroup() as group:
            sweep = group.create_task(self._sweep())
            looking = group.create_task(self._look())
            try:
                await self._stopping.wait()
                listener.close()
                await listener.settled()
                shared.stop()
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(self._settings.stop_limit):
                        await shared.empty.wait()
            finally:
                listener.close()
                sweep.cancel()
                looking.cancel()

    def stop(self) -> None:
        """Make `run_until_stopped` finish."""
        self._stopping.set()

    def close(self) -> None:
        """Close the address and all connections."""
        for connection in list(self.shared.live):
            connection.abort()
        if self._socket is not None:
            self._socket.close()

    def _room(self) -> int:
        """Return how many more connections there may be; if none, close idle ones."""
        assert self._listener is not None  # noqa: S101
        left = self.limit - len(self.shared.live) - self._listener.coming
        now = clock.monotonic()
        if left <= 0 and now - self._made_room_at >= SWEEP:
            self._made_room_at = now
            ended = self.shared.end_idle(self.limit // 4, now)
            if ended:
                log.warning("there are %d connections, the most that there may be: idle ones are ended", self.limit)
            # Some of the closed ones have already left `live`; the others soon will.
            left = self.limit - len(self.shared.live) - self._listener.coming
        return left

    def _connection(self) -> asyncio.Protocol:
        if self._tls is None:
            return HttpConnection(self.shared)
        return TlsStream(HttpConnection(self.shared), self._tls)

    async def _look(self) -> None:
        """Reload changed files once a second, and all of them at once after `look_now`."""
        parts = [part for part in (self._callers, self._tls, self._token_file) if part is not None]
        while True:
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(SWEEP):
                    await self.look_now.wait()
            anew = self.look_now.is_set()
            self.look_now.clear()
            if anew:
                log.info("files that can change are read again")
            for part in parts:
                try:
                    await asyncio.to_thread(part.look, anew=anew)
                except Exception:
                    # Whatever the machine is short of, calls go on with what was read before.
                    log.exception("the files of callers, of TLS and of the token can't be looked at")

    async def _sweep(self) -> None:
        pauses, due = Pauses(), clock.monotonic()
        while True:
            self.shared.date = f"date: {formatdate(time.time(), usegmt=True)}\r\n".encode()
            self.shared.allocator.look(held=bool(self.shared.memory.held or self.shared.unread.bytes))
            now = clock.monotonic()
            if self._listener is not None:
                self._listener.look(now)
            pause = pauses.notice(due, now)
            if pause:
                # What clients sent or read in that time went unseen.
                for connection in self.shared.live:
                    connection.deadline += pause
            for connection in [c for c in self.shared.live if c.deadline < now]:
                connection.late(now)
            due = clock.monotonic() + SWEEP
            await clock.sleep(SWEEP)
