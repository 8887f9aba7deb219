"""What comes from a worker's socket, as frames: small ones out of one buffer, a large one in pieces that aren't copied.

A body of megabytes in one block would be asked of the system, page by page, and given back with each call, which holds
the loop up for longer than the rest of the call takes.
"""

import socket
from typing import Final, NamedTuple

from edge_runtime.dispatch.outcomes import AnswerBody
from edge_runtime.ipc import frames

BUFFER: Final = 256 * 1024
"""Bytes of the buffer, and of each piece of a larger frame."""
FRAME_LIMIT: Final = 128 * 1024 * 1024
"""Bytes, more than any answer has. A worker that announces a longer frame was taken over."""


class IncomingFrame(NamedTuple):
    request: int
    kind: int
    head: bytes
    body: AnswerBody
    """In pieces if it is large and a guest's answer."""


class FrameTooLong(Exception):
    """A frame was announced that no honest worker sends."""


class IncomingFrames:
    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._have = 0
        """Bytes in the buffer that belong to no whole frame yet."""
        self._pieces: list[memoryview] = []
        """What has come of a frame that is larger than the buffer, its header included. The last may have room."""
        self._room = memoryview(b"")
        """The part of the last piece that is still empty."""
        self._missing = 0
        """Bytes of that frame that have yet to come."""

    def receive(self, sock: socket.socket) -> list[IncomingFrame] | None:
        """Read once, and return the frames that are whole now; None if the other side has closed.

        Raises: BlockingIOError, when nothing has come; FrameTooLong; other OSErrors of the socket.
        """
        if self._missing:
            got = sock.recv_into(self._room)
            return self._more(got) if got else None
        got = sock.recv_into(self._view[self._have :])
        if not got:
            return None
        self._have += got
        return self._whole()

    def _whole(self) -> list[IncomingFrame]:
        """Take the whole frames out of the buffer, and keep the rest."""
        data, view, have, at = self._buffer, self._view, self._have, 0
        found: list[IncomingFrame] = []
        while have - at >= frames.HEADER_BYTES:
            length, request, kind, head = frames.HEADER.unpack_from(data, at)
            start = at + frames.HEADER_BYTES
            end = start + length
            if end > have:
                if length > FRAME_LIMIT:
                    raise FrameTooLong
                if end - at > BUFFER:
                    return [*found, *self._begin(view[at:have], end - at)]
                break
            split = start + head
            at = end
            found.append(IncomingFrame(request, kind, bytes(view[start:split]), bytes(view[split:end])))
        if at:
            data[: have - at] = data[at:have]
        self._have = have - at
        return found

    def _begin(self, start: memoryview, size: int) -> list[IncomingFrame]:
        """Note that `start` has come of a frame that is larger than the buffer."""
        piece = memoryview(bytearray(BUFFER))
        piece[: len(start)] = start
        self._pieces, self._room, self._missing, self._have = [piece], piece, size, 0
        return self._more(len(start))

    def _more(self, got: int) -> list[IncomingFrame]:
        """Note that so much more of the large frame has come, in the room for it."""
        self._missing -= got
        self._room = self._room[got:]
        if self._missing:
            if not self._room:
                self._room = memoryview(bytearray(min(BUFFER, self._missing)))
                self._pieces.append(self._room)
            return []
        (first, *rest), self._pieces, self._room = self._pieces, [], memoryview(b"")
        _, request, kind, head = frames.HEADER.unpack_from(first)
        split = frames.HEADER_BYTES + head
        pieces = [first[split:], *rest]
        # An answer goes on in its pieces; other large frames are rare.
        body = pieces if kind >= frames.FIRST_STATUS else b"".join(pieces)
        return [IncomingFrame(request, kind, bytes(first[frames.HEADER_BYTES : split]), body)]
