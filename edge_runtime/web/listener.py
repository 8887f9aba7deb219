"""Accepts connections up to a limit, so that file descriptors remain for everything else that the front does.

The event loop's own server isn't enough: if the system refuses it a connection (too many open files, no memory for a
socket), it closes, and the node can't be reached any more.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from edge_runtime import clock

log = logging.getLogger("skerry.front")

BACKLOG: Final = 2048
"""Connections that the kernel keeps until they are accepted."""
AT_ONCE: Final = 64
"""Connections that are accepted before other work gets the event loop."""
SECURE_AT_ONCE: Final = 4
"""The same if each costs a TLS handshake."""
PAUSE: Final = 0.1
"""Seconds until the next attempt, after the system has refused a connection."""
QUIET: Final = 10.0
"""Seconds without trouble after which the log says that it is over."""
GONE: Final = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors of accept that concern one connection: the next one may be fine."""


class Listener:
    """Accepts connections while it is open, all in the event loop's thread."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        room: Callable[[], int],
        limit: int,
        at_once: int = AT_ONCE,
    ) -> None:
        """`room` returns how many more connections there may be. After it has returned 0, call `freed` when there is
        room again. `limit` is for the log, `at_once` as `AT_ONCE`."""
        self._at_once = at_once
        self._socket = sock
        self._protocol = protocol
        self._room = room
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = False
        self._open = False
        self._timer: clock.SetTimer | None = None
        self._trouble = ""
        """Why connections wait, as last logged; empty while none waits."""
        self._trouble_at = 0.0
        """When connections last had to wait."""

    @property
    def coming(self) -> int:
        """Accepted connections that don't have their protocol yet."""
        return len(self._tasks)

    def open(self) -> None:
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._open = True
        self._resume()

    def close(self) -> None:
        """Stop accepting connections. The system then refuses clients, unless another process has the socket too: then
        they wait for that one."""
        self._open = False
        self._pause()
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close()

    async def settled(self) -> None:
        """Wait until each accepted connection has its protocol."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def freed(self) -> None:
        """Accept connections again: there may be room."""
        if self._open and not self._listening and self._timer is None:
            self._resume()

    def look(self, now: float) -> None:
        """Log when trouble is over. Call it once a second."""
        if self._trouble and now - self._trouble_at > QUIET:
            log.info("no connection waits to be accepted any more")
            self._trouble = ""
        self.freed()

    def _resume(self) -> None:
        self._timer = None
        self._listening = True
        self._loop.add_reader(self._socket, self._accept)

    def _pause(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._socket)

    def _accept(self) -> None:
        """Accept the connections that wait."""
        for _ in range(self._at_once):
            if self._room() <= 0:
                self._pause()
                self._say(f"there are {self._limit} connections, as many as there may be")
                return
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                self._pause()
                self._say(f"the system refuses them: {error}")
                self._timer = clock.call_later(PAUSE, self._resume)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._begin(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _begin(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, sock)
        except OSError as error:
            # The client has already disconnected.
            log.debug("a connection ended before it began: %s", error)
            sock.close()
            self.freed()

    def _say(self, why: str) -> None:
        """Log why connections wait, once each time that it begins."""
        self._trouble_at = clock.monotonic()
        if why != self._trouble:
            self._trouble = why
            log.warning("connections wait to be accepted: %s", why)
