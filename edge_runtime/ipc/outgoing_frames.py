"""What goes to a worker's socket: frames, now or as the worker reads them. Nothing here waits."""

import asyncio
import itertools
import socket
from collections import deque
from typing import Final

from edge_runtime.ipc import frames

_SMALL: Final = 65_536
"""Bytes of a body from which on it isn't copied."""
_AT_ONCE: Final = 16
"""Pieces of what waits to be sent that one system call is given."""


class OutgoingFrames:
    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._fileno = sock.fileno()
        self._waiting: deque[memoryview] = deque()
        self._held: list[bytes] | None = None
        """Frames that go out together, while those that came together are handled."""
        self._closed = False

    def send(self, request: int, kind: int, head: bytes, body: bytes | list[bytes | bytearray]) -> None:
        """Send a frame. Nothing is sent to a worker that has ended, or is about to."""
        if self._closed:
            return
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        frame = frames.HEADER.pack(len(head) + size, request, kind, len(head)) + head
        held, waiting = self._held, self._waiting
        if size < _SMALL:
            frame += body if isinstance(body, bytes) else b"".join(body)
            if held is not None:
                held.append(frame)
                return
            # As `_write`: this is the way of each call.
            if not waiting:
                try:
                    sent = self._sock.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return
                if sent == len(frame):
                    return
                frame = frame[sent:]
            waiting.append(memoryview(frame))
        else:
            if held:
                self._write(b"".join(held))
                held.clear()
            pieces = (body,) if isinstance(body, bytes) else body
            waiting += (memoryview(frame), *[memoryview(piece) for piece in pieces])
        self._loop.add_writer(self._fileno, self._writable)

    def hold(self) -> None:
        """Keep what is sent from now on, to be sent in one system call, which wakes the worker once."""
        self._held = []

    def let_go(self) -> None:
        """Send what is held."""
        held, self._held = self._held, None
        if held and not self._closed:
            self._write(b"".join(held))

    def close(self) -> None:
        """Send nothing more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._fileno)
            self._waiting.clear()

    def _write(self, frame: bytes) -> None:
        if not self._waiting:
            try:
                sent = self._sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._waiting.append(memoryview(frame))
        self._loop.add_writer(self._fileno, self._writable)

    def _writable(self) -> None:
        # One write, and no more even if the worker makes room meanwhile: others wait for the loop.
        waiting = self._waiting
        try:
            sent = self._sock.sendmsg(list(itertools.islice(waiting, _AT_ONCE)))
        except BlockingIOError:
            return
        except OSError:
            waiting.clear()
            sent = 0
        while waiting and sent >= len(waiting[0]):
            sent -= len(waiting.popleft())
        if waiting:
            waiting[0] = waiting[0][sent:]
        else:
            self._loop.remove_writer(self._fileno)
