"""Reads frames from a blocking socket, on the children's side."""

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from edge_runtime.ipc.frames import HEADER, HEADER_BYTES, ChildGone, Frame

_unpack = HEADER.unpack_from
_CHUNK: Final = 65_536
"""Bytes that are received at once."""
QUIET_MS: Final = 1000
"""Milliseconds without a frame after which a large frame's memory is released."""


class FrameReader:
    def __init__(self, sock: socket.socket, quiet: Callable[[], None] | None = None) -> None:
        """`quiet` is called when nothing has come for a second after a large frame."""
        self._sock = sock
        self._receive = sock.recv
        self._quiet = quiet
        self._large = False
        """A large frame has come since `quiet` was called."""
        self._pending = b""
        self._at = 0
        """Bytes of `_pending` that have been read."""
        self._kept: deque[Frame] = deque()
        """Frames that came while an answer was waited for."""

    def answer(self, request: int, kind: int) -> bytes:
        """Wait for the answer to a request from this side, and return its raw bytes.

        Other frames that come meanwhile are kept for `next`. Raises: ChildGone, when the other side closes.
        """
        while (frame := self._read()) is not None:
            if frame.kind == kind and frame.request == request:
                return frame.body
            self._kept.append(frame)
        raise ChildGone("the front closed the socket before it had answered")

    @property
    def had_large(self) -> bool:
        """Whether a large frame has come, and `quiet` hasn't been called since."""
        return self._large

    def quieten(self) -> None:
        """Call `quiet`, as when nothing has come for a second after a large frame."""
        self._large = False
        if self._quiet is not None:
            self._quiet()

    @property
    def keeps_frames(self) -> bool:
        """Whether frames are kept that came while an answer was waited for; they come before all received bytes."""
        return bool(self._kept)

    def take_received(self) -> bytes:
        """Return the bytes that have been received and not read yet, for another reader."""
        received, self._pending, self._at = self._pending[self._at :], b"", 0
        return received

    def put_back(self, received: bytes) -> None:
        """Read these bytes, which another reader received and didn't read, before everything else."""
        self._pending, self._at = received, 0

    def next(self) -> Frame | None:
        """Return the next frame, or None if the other side has closed.

        Raises: ChildGone, when it closed in the middle of a frame.
        """
        return self._kept.popleft() if self._kept else self._read()

    def _read(self) -> Frame | None:
        while True:
            pending, at = self._pending, self._at
            have = len(pending) - at
            if have >= HEADER_BYTES:
                length, request, kind, head = _unpack(pending, at)
                start = at + HEADER_BYTES
                split, end = start + head, start + length
                if end <= len(pending):
                    self._at = end
                    return Frame(request, kind, pending[start:split], pending[split:end])
                if end - len(pending) > 65_536:
                    rest = memoryview(bytearray(length))
                    rest[: have - HEADER_BYTES] = pending[start:]
                    self._fill(rest[have - HEADER_BYTES :])
                    self._pending, self._at, self._large = b"", 0, True
                    return Frame(request, kind, bytes(rest[:head]), bytes(rest[head:]))
            if self._large and self._quiet is not None and not self._comes():
                self.quieten()
            got = self._receive(_CHUNK)
            if not got:
                if have:
                    raise ChildGone("the front closed the socket in the middle of a frame")
                return None
            self._pending, self._at = (pending[at:] + got if have else got), 0

    def _comes(self) -> bool:
        """Wait at most `QUIET_MS` for something to arrive; return whether it did."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(QUIET_MS))

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise ChildGone("the front closed the socket in the middle of a frame")
            view = view[got:]
