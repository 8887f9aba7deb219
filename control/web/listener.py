"""Accepts connections a few at a time, so that many new ones don't delay those already being served."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from control.clock import Clock

AT_ONCE = 4
"""Connections accepted in one pass of the loop; each costs a TLS handshake. Others wait in the kernel's queue."""
RETRY = 0.5
"""Seconds until connections are accepted again, when the process has no descriptor or memory left."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger("skerry.server")


class ListeningSockets:
    """Listening sockets of one host and port."""

    def __init__(
        self,
        protocol: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext] | None,
        handshake_seconds: float,
        close_seconds: float,
        clock: Clock,
    ) -> None:
        """Give each connection a `protocol`, over TLS if there is a `context`, which is called for each connection."""
        self.sockets: list[socket.socket] = []
        self._protocol = protocol
        self._clock = clock
        self._context = context
        self._handshake = handshake_seconds if context else None
        self._close = close_seconds if context else None
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, backlog: int) -> None:
        """Listen on all addresses of `host`. Raises: OSError, when one can't be used."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                made = socket.socket(family, kind, protocol)
                self.sockets.append(made)
                made.setblocking(False)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(address)
                made.listen(backlog)
        except OSError:
            self.close()
            raise
        for made in self.sockets:
            self._loop.add_reader(made, self._take, made)

    def close(self) -> None:
        """Stop listening; accepted connections continue."""
        for made in self.sockets:
            self._loop.remove_reader(made)
            made.close()

    def _take(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                taken, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("no connection can be accepted for now: %s", error.strerror)
                self._loop.remove_reader(listening)
                self._clock.call_later(RETRY, self._resume, listening)
                return
            taken.setblocking(False)
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(taken))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() != -1:
            self._loop.add_reader(listening, self._take, listening)

    async def _open(self, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                taken,
                ssl=self._context and self._context(),
                ssl_handshake_timeout=self._handshake,
                ssl_shutdown_timeout=self._close,
            )
        except (OSError, TimeoutError) as error:
            # The client doesn't use TLS, doesn't trust the certificate, or has disconnected.
            log.debug("a connection wasn't opened: %s", error)
