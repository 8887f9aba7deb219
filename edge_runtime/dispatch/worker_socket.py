"""A worker's socket on the front's side: frames out, frames in, and what a worker may say in them.

A guest may have taken over its worker, so a frame is only a claim. Its kind, its lengths and its fields are checked
here and nowhere else; `worker_link` checks when a frame may come, and `progress_page.read` what the shared page says. A
worker that says anything else is killed.

Small frames come out of one buffer, a large one in pieces that aren't copied: a block for a body of megabytes would be
allocated by the system, page by page, and freed again with each call, which blocks the event loop for longer than the
rest of the call takes.
"""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from control.protocol.manifest import Manifest
from edge_runtime.dispatch.outcomes import Answer, AnswerBody, Outcome, Refusal, whole
from edge_runtime.errors import known, status_of
from edge_runtime.ipc import answer_head, call_times, frames
from edge_runtime.ipc.call_times import CallTimes

_SMALL: Final = 65_536
"""Bytes from which a body isn't copied."""
_PIECES_AT_ONCE: Final = 16
"""Waiting pieces that are passed to one system call."""
BUFFER: Final = 256 * 1024
"""Bytes of the buffer, and of each piece of a larger frame."""
STATUSES: Final = 600
"""HTTP statuses are below this number."""
LONGEST: Final = 128 << 20
"""Bytes that no frame reaches: more than an answer or a function's HTTP request can have."""
AT_ONCE: Final = 512
"""A number of frames that can't arrive together: all jobs that a worker may have send fewer."""
MEANWHILE: Final = frozenset(
    (frames.LOG, frames.HTTP, frames.DENIED, frames.NEWLY_LOADED, frames.DAMAGED, frames.TIMES)
)
"""Kinds of frames about a running call; all but HTTP come once per call."""
BODILESS: Final = (204, 205, 304)
"""Statuses of answers without a body."""
_MOST: Final = {
    frames.READY: 0,
    frames.FAILED: 256 << 10,
    frames.FAULT: 256 << 10,
    frames.STALE: 0,
    frames.HELD: 0,
    frames.LOADED: 16 << 20,
    frames.TICKED: 64 << 20,
    frames.DONE: 0,
    frames.LOG: 1 << 20,
    frames.HTTP: LONGEST,
    frames.DENIED: 1 << 10,
    frames.TIMES: call_times.LONGEST,
    frames.DAMAGED: 0,
    frames.NEWLY_LOADED: 0,
}
"""Most bytes of a frame that isn't a guest's answer, by kind. It has no head."""
_ORDERS: Final = {
    frames.RELEASE: (frames.LOADED,),
    frames.FORGET: (frames.DONE,),
    frames.PRELOAD: (frames.DONE, frames.DAMAGED),
    frames.TICKS: (frames.TICKED,),
}
"""The kinds of frames that answer orders, by the orders' kinds."""

_T = TypeVar("_T")

DeniedKind = Literal["sql", "sql_statement", "sql_closed", "http_host"]
"""What a worker may deny a call: these are a metric's labels, and no others may appear."""

_decode_fault: Final = msgspec.json.Decoder(frames.Fault).decode
_decode_denied: Final = msgspec.json.Decoder(dict[DeniedKind, Annotated[int, Meta(ge=1, le=2**32)]]).decode
_decode_loaded: Final = msgspec.json.Decoder(frames.Loaded).decode


class FrameUnfit(ValueError):
    """A frame that no honest worker sends."""


class IncomingFrame(NamedTuple):
    request: int
    kind: int
    head: bytes
    body: AnswerBody
    """In pieces if it is a large answer of a guest."""


class IncomingFrames:
    """The whole frames that come from a worker's socket. Nothing here waits."""

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._have = 0
        """Bytes in the buffer that don't form a whole frame yet."""
        self._pieces: list[memoryview] = []
        """The part received of a frame that is larger than the buffer, including its header. The last piece may have
        room."""
        self._room = memoryview(b"")
        """The part of the last piece that is still empty."""
        self._missing = 0
        """Bytes of that frame that have yet to come."""
        self.unfit: FrameUnfit | None = None
        """What follows the last received frames, if no honest worker sends it; nothing more is read then."""

    def receive(self, sock: socket.socket) -> list[IncomingFrame] | None:
        """Read once, and return the frames that are whole now; None if the other side has closed. They count even if
        what follows them is `unfit`: they may end other functions' calls.

        Raises: BlockingIOError, if nothing has come; other OSErrors of the socket.
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
        """Remove the whole frames from the buffer, and keep the rest."""
        data, view, have, at = self._buffer, self._view, self._have, 0
        found: list[IncomingFrame] = []
        while have - at >= frames.HEADER_BYTES:
            length, request, kind, head = frames.HEADER.unpack_from(data, at)
            if not may_come(length, kind, head):
                self.unfit = FrameUnfit(
                    f"it announced {length} bytes of kind {kind} about request {request}, {head} of them a head"
                )
                break
            start = at + frames.HEADER_BYTES
            end = start + length
            if end > have:
                if end - at > BUFFER:
                    return [*found, *self._begin(view[at:have], end - at)]
                break
            split = start + head
            at = end
            found.append(IncomingFrame(request, kind, bytes(view[start:split]), bytes(view[split:end])))
            if len(found) > AT_ONCE:
                self.unfit = FrameUnfit(f"it sent more than {AT_ONCE} frames at once")
                break
        if at:
            data[: have - at] = data[at:have]
        self._have = have - at
        return found

    def _begin(self, start: memoryview, size: int) -> list[IncomingFrame]:
        """Begin to receive a frame that is larger than the buffer; `start` has come."""
        piece = memoryview(bytearray(BUFFER))
        piece[: len(start)] = start
        self._pieces, self._room, self._missing, self._have = [piece], piece, size, 0
        return self._more(len(start))

    def _more(self, got: int) -> list[IncomingFrame]:
        """Note that this much more of the large frame has arrived in its room."""
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
        # An answer is passed on in its pieces; other large frames are rare.
        body = pieces if kind >= frames.FIRST_STATUS else b"".join(pieces)
        return [IncomingFrame(request, kind, bytes(first[frames.HEADER_BYTES : split]), body)]


class OutgoingFrames:
    """The frames that go to a worker's socket, at once or as the worker reads. Nothing here waits."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._fileno = sock.fileno()
        self._waiting: deque[memoryview] = deque()
        self._held: list[bytes] | None = None
        """Frames to be sent together, while frames that came together are handled."""
        self._closed = False

    def send(self, request: int, kind: int, head: bytes, body: bytes | list[bytes | bytearray]) -> None:
        """Send a frame. Nothing is sent to a worker that has exited or is about to."""
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
            # Like `_write`, but inlined: every call passes here.
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
        """Hold back frames from now on, to send them in one system call, which wakes the worker once."""
        self._held = []

    def let_go(self) -> None:
        """Send the frames that were held back."""
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
        # One write, and no more even if the worker makes room meanwhile: others wait for the event loop.
        waiting = self._waiting
        try:
            sent = self._sock.sendmsg(list(itertools.islice(waiting, _PIECES_AT_ONCE)))
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


def may_come(length: int, kind: int, head: int) -> bool:
    """Return, by a frame's header, whether an honest worker may send it, before more of it is read."""
    if frames.FIRST_STATUS <= kind < STATUSES:
        return head <= length <= LONGEST
    return not head and length <= _MOST.get(kind, -1)


def check_order(order: int, kind: int, body: bytes) -> None:
    """Check the answer to an order of this kind. Raises: FrameUnfit."""
    if kind not in _ORDERS.get(order, ()):
        raise FrameUnfit(f"it answered an order of kind {order} by a frame of kind {kind}")
    if kind == frames.LOADED:
        loaded(body)


def outcome(
    kind: int, head: bytes, body: AnswerBody, release: int, manifest: Manifest, method: str
) -> tuple[Outcome, frames.Fault | None]:
    """Return the outcome that a worker's last frame about a call means, and the fault if it is one.

    `release` is the number of the call's release, `manifest` its function's, `method` its request's. Raises:
    FrameUnfit.
    """
    if frames.FIRST_STATUS <= kind < STATUSES:
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        try:
            told = (
                answer_head.content_length_cached(head)
                if len(head) <= answer_head.CACHED_BYTES
                else answer_head.content_length(head)
            )
        except ValueError as error:
            raise FrameUnfit(str(error)) from None
        if size > manifest.response_limit or (size and kind in BODILESS):
            raise FrameUnfit(f"it answered a body of {size} bytes with the status {kind}")
        # If there is a body, whoever sends it writes its length.
        if told != answer_head.NO_LENGTH and (size or method != "HEAD" or kind in BODILESS):
            raise FrameUnfit(f"it answered {method} with a Content-Length of its own and a body of {size} bytes")
        return Answer(kind, head, body, release), None
    if kind != frames.FAULT:
        raise FrameUnfit(f"it ended a call by a frame of kind {kind}")
    fault = _decoded(_decode_fault, whole(body))
    code = known(fault.code)
    fault = frames.Fault(code, fault.message, status_of(code))
    return Refusal(fault.status, code, fault.message, int(fault.status == 503), release=release), fault


def denials(body: bytes) -> dict[DeniedKind, int]:
    """Return how often a call was denied something that its manifest doesn't grant, by kind. Raises: FrameUnfit."""
    return _decoded(_decode_denied, body)


def times(body: bytes) -> CallTimes:
    """Return where a call's time went. Raises: FrameUnfit."""
    return _decoded(call_times.decode, body)


def loaded(body: bytes) -> frames.Loaded:
    """Return which functions of a set couldn't be loaded. Raises: FrameUnfit."""
    failures = _decoded(_decode_loaded, body).failures
    return frames.Loaded([frames.told_failure(failure) for failure in failures])


def _decoded(decode: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode(body)
    except Exception as error:
        raise FrameUnfit(f"it said {len(body)} bytes that can't be read: {str(error)[:200]}") from None
