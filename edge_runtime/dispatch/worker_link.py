"""The front's end of one worker's socket: frames out without waiting, frames in to the pool, its jobs in their order.

The raw socket and not a transport: a transport's write to a dead worker throws away replies that had already come.
"""

import asyncio
import itertools
import time
from collections import deque
from typing import Final, Protocol

from edge_runtime.dispatch.call import Body, Job
from edge_runtime.ipc import frames
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.zygote_client import Child

_BUFFER: Final = 256 * 1024
_SMALL: Final = 65_536
_AGAIN: Final = 0.02
"""Seconds between two looks at a dead worker's socket."""
_AT_ONCE: Final = 16
"""Pieces of what waits to be sent that one system call is given."""
_FRAME_LIMIT: Final = 128 * 1024 * 1024
"""Bytes: more than any answer may have. A worker that says more is not what it was."""


class Owner(Protocol):
    """Neither may raise: the socket's frames would be left half read."""

    def replied(self, link: "Link", request: int, kind: int, head: bytes, body: bytes | memoryview) -> None: ...

    def lost(self, link: "Link") -> None: ...


class Link:
    def __init__(self, child: Child, owner: Owner, claims: Claims) -> None:
        self.child = child
        self.claims = claims
        self.jobs: deque[Job] = deque()
        """What the worker has been given, the one that it works on first."""
        self.last = 0
        """Id of the job that was given last: they are counted, so that those that follow each other differ."""
        self.replied = 0
        """Id of the last job that was answered; the worker has read all frames up to it."""
        self.longs = 0
        """How many of them aren't short."""
        self.level = -1
        """Where the pool has it: by how many jobs, -1 where it may have no other one."""
        self.since = time.monotonic()
        """When the first job became the first."""
        self.serials: set[int] = set()
        """The sets of modules that it has loaded."""
        self.ordered: set[int] = set()
        """Those that it was told to load and to keep: all of `serials`, and what comes behind the calls that it has."""
        self.usable = False
        """It was ready and has loaded what it must, and isn't being ended."""
        self.spare = True
        """It is to take the place of a worker that is lost, and has no calls before."""
        self.killed = ""
        """Why the front killed it; empty while it hasn't."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._owner = owner
        self._loop = loop
        self._sock = child.sock
        self._fileno = child.sock.fileno()
        self._in = bytearray(_BUFFER)
        self._view = memoryview(self._in)
        self._have = 0
        self._large: bytearray | None = None
        """What has come of a frame that is larger than the buffer, its header included."""
        self._whole = 0
        """Bytes of that frame."""
        self._out: deque[memoryview] = deque()
        self._held: list[bytes] | None = None
        """Frames that go out together, while those that came together are handed over."""
        loop.add_reader(self._fileno, self._readable)
        child.exited.add_done_callback(self._exited)

    def send(self, request: int, kind: int, head: bytes, body: Body) -> None:
        """Send a frame, now or as the worker reads. To a dead one it sends nothing: `Owner.lost` follows."""
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        frame = frames.HEADER.pack(len(head) + size, request, kind, len(head)) + head
        if size < _SMALL:
            frame += body if isinstance(body, bytes) else b"".join(body)
            if self._held is None:
                self._give(frame)
            else:
                self._held.append(frame)
            return
        if self._held:
            self._give(b"".join(self._held))
            self._held.clear()
        pieces = (body,) if isinstance(body, bytes) else body
        self._out += (memoryview(frame), *[memoryview(piece) for piece in pieces])
        self._loop.add_writer(self._fileno, self._writable)

    def _give(self, frame: bytes) -> None:
        if not self._out:
            try:
                sent = self._sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._out.append(memoryview(frame))
        self._loop.add_writer(self._fileno, self._writable)

    def kill(self, why: str) -> None:
        """End the worker; the first reason counts."""
        if not self.killed:
            self.killed = why
            self.child.kill()

    def detach(self) -> None:
        """Read and write no more."""
        self.usable = False
        if not self.ended.done():
            self._loop.remove_reader(self._fileno)
            self._loop.remove_writer(self._fileno)
            self._out.clear()
            self.ended.set_result(None)

    def close(self) -> None:
        """Forget the worker, which ends."""
        self.detach()
        self.child.close()

    def _writable(self) -> None:
        # As much as the socket takes, and not what the worker makes room for meanwhile: others wait for the loop.
        out = self._out
        try:
            sent = self._sock.sendmsg(list(itertools.islice(out, _AT_ONCE)))
        except BlockingIOError:
            return
        except OSError:
            out.clear()
            sent = 0
        while out and sent >= len(out[0]):
            sent -= len(out.popleft())
        if out:
            out[0] = out[0][sent:]
        else:
            self._loop.remove_writer(self._fileno)

    def _exited(self, _: object) -> None:
        """The worker is dead: what it still said is read, and the end of it seen, even where the loop misses that (as
        it sometimes does of a socket whose other end died with something unread)."""
        if not self.ended.done():
            self._readable()
            self._loop.call_later(_AGAIN, self._exited, None)

    def _readable(self) -> None:
        large = self._large
        try:
            target = self._view[self._have :] if large is None else self._view[: self._whole - len(large)]
            got = self._sock.recv_into(target)
        except BlockingIOError:
            return
        except OSError:
            got = 0
        if not got:
            self._owner.lost(self)
            return
        if large is None:
            self._have += got
            # Each answer makes room for a call: one system call, and one waking of the worker, for all of them.
            held: list[bytes] = []
            self._held = held
            try:
                self._frames()
            finally:
                self._held = None
            if held and not self.ended.done():
                self._give(b"".join(held))
            return
        # It grows by what comes: room for all of it at once would hold the loop up.
        large += target[:got]
        if len(large) == self._whole:
            self._large = None
            _, request, kind, head = frames.HEADER.unpack_from(large)
            split = frames.HEADER_BYTES + head
            view = memoryview(large)
            # A large body isn't copied again; what else is as large is rare.
            body = view[split:] if kind >= frames.FIRST_STATUS else bytes(view[split:])
            self._owner.replied(self, request, kind, bytes(view[frames.HEADER_BYTES : split]), body)

    def _frames(self) -> None:
        """Hand over the whole frames that the buffer has, and keep the rest."""
        data, view, have, at = self._in, self._view, self._have, 0
        while have - at >= frames.HEADER_BYTES:
            length, request, kind, head = frames.HEADER.unpack_from(data, at)
            start = at + frames.HEADER_BYTES
            end = start + length
            if length > _FRAME_LIMIT:
                self._owner.lost(self)
                self.child.kill()
                return
            if end > have:
                if end - at > _BUFFER:
                    self._large, self._whole, self._have = bytearray(view[at:have]), end - at, 0
                    return
                break
            split = start + head
            at = end
            self._owner.replied(self, request, kind, bytes(view[start:split]), bytes(view[split:end]))
            if self.ended.done():
                return
        if at:
            data[: have - at] = data[at:have]
        self._have = have - at
