"""A zygote whose workers are in the hands of functions: one whose name begins with `evil` has its worker do what its
call's body names, with the worker's own socket, page and files.

Run in place of `edge_runtime.children.zygote`. Workers run all calls in Python, so that these come to be seen.
"""

import ctypes
import fcntl
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime import wal
from edge_runtime.children import plain_calls, worker, zygote
from edge_runtime.ipc import frames, progress_page, request_head
from edge_runtime.ipc.claims import Claims
from tests.support import foreign_frames

FOREVER = 60.0
"""Seconds for which an attack goes on where nobody ends it: far beyond what any limit here lets it."""
_libc = ctypes.CDLL(None, use_errno=True)
_EXIT = 60 if os.uname().machine == "x86_64" else 93
"""The system call that ends one thread."""
_began = threading.Event()
"""Set when the thread is to speak that each worker has beside its main one."""
_socks: list[socket.socket] = []


class Hands:
    """What an attack has: the worker, and the call that it runs."""

    def __init__(self, taken: worker.Worker, request: int) -> None:
        self.sock: socket.socket = taken._sock
        self.words: memoryview = taken._mark._words
        self.claims: Claims = taken._claims
        self.worker = taken
        self.lock = taken._database.lock
        self.database = taken._database.path
        self.request = request


def say(hands: Hands, *said: Any) -> None:
    """Send frames in one write: each is its kind, its head and its body, and how far from the call's own id it is;
    None there: of no request."""
    data = b""
    for kind, head, body, *of in said:
        request = hands.request if not of else progress_page.NONE if of[0] is None else hands.request + of[0]
        data += frames.pack(request, kind, head.encode("latin-1"), body.encode("latin-1"))
    hands.sock.sendall(data)


def repeat(hands: Hands, times: int, kind: int, body: str, end: bool = True) -> None:
    """Send a frame again and again; then an answer."""
    hands.sock.sendall(frames.pack(hands.request, kind, b"", body.encode("latin-1")) * times)
    if end:
        hands.sock.sendall(frames.pack(hands.request, 204))


def header(hands: Hands, length: int, kind: int, head: int, rest: str) -> None:
    """Send a frame whose lengths needn't be true, and stay."""
    hands.sock.sendall(frames.HEADER.pack(length, hands.request, kind, head) + rest.encode("latin-1"))
    time.sleep(FOREVER)


def page(hands: Hands, started: int, waited: int, since: int, state: int, request: int | None = None) -> None:
    """Write this to the page, and loop."""
    hands.words[0], hands.words[1], hands.words[2] = started, waited, since
    hands.words[3] = state << 32 | (hands.request if request is None else request)
    time.sleep(FOREVER)


def spin(hands: Hands) -> None:
    """Write to the page without an end."""
    words, one, other = hands.words, 1 << 32 | hands.request, 3 << 32 | hands.request
    until = time.monotonic() + FOREVER
    while time.monotonic() < until:
        for _ in range(1000):
            words[3] = one
            words[3] = other


def end_alone(hands: Hands) -> None:
    """End the main thread; another one sends that the worker is ready, again and again."""
    _began.set()
    _libc.syscall(ctypes.c_long(_EXIT), ctypes.c_long(0))


def leave(hands: Hands) -> None:
    """Answer, and end the main thread alone."""
    hands.sock.sendall(frames.pack(hands.request, 204))
    _libc.syscall(ctypes.c_long(_EXIT), ctypes.c_long(0))


def close(hands: Hands, holds: bool = False) -> None:
    """Close the socket and stay, with the writer lock where it `holds` that."""
    if holds:
        hands.lock.acquire()
    hands.sock.close()
    time.sleep(FOREVER)


def hold(hands: Hands) -> None:
    """Take the writer lock, never to let it go, and answer."""
    hands.lock.acquire()
    hands.lock.release = lambda: None  # type: ignore[method-assign]
    hands.sock.sendall(frames.pack(hands.request, 204))


def deny(hands: Hands, gives_back: bool) -> None:
    """Say that no call was begun, and end; where it `gives_back` the call, it says so by its claim too."""
    hands.words[3] = progress_page.NONE
    if gives_back:
        hands.claims.offer(hands.request)
    os._exit(1)


def exclude(hands: Hands) -> None:
    """Lock what readers of the database share, never to let it go, and answer."""
    assert hands.database is not None
    index = os.open(wal.index_of(hands.database), os.O_RDWR)
    # SQLite's WAL_READ_LOCK(0) to (4).
    fcntl.lockf(index, fcntl.LOCK_EX, 5, 123)
    hands.sock.sendall(frames.pack(hands.request, 204))


def read(hands: Hands) -> None:
    """Begin to read from the database, never to end that, and answer."""
    for statement in ("BEGIN", "SELECT count(*) FROM sqlite_schema"):
        hands.worker._database.rows(statement)
    hands.sock.sendall(frames.pack(hands.request, 204))


def spoil(hands: Hands, dies: bool) -> None:
    """Answer, and fail to load the next release, or end by that."""

    def load(_: frames.Load) -> list[frames.ChildFailure]:
        if dies:
            os._exit(1)
        return [frames.ChildFailure("function_unloadable", "It can't be loaded.")]

    hands.worker._load = load  # type: ignore[method-assign]
    hands.sock.sendall(frames.pack(hands.request, 204))


def crowd(hands: Hands, locks: int) -> None:
    """Take so many locks on a file, while others seem to wait for the writer lock."""
    for place in range(locks, 0, -1):
        fcntl.lockf(hands.lock.fileno(), fcntl.LOCK_EX, 1, 2 * place)
    page(hands, time.monotonic_ns(), 0, time.monotonic_ns(), progress_page.WAITING)


def hand_over(hands: Hands) -> None:
    """Send descriptors, as many as go, with a frame that never ends; answer where that isn't let through."""
    until, data = time.monotonic() + FOREVER, frames.HEADER.pack(1 << 20, hands.request, frames.LOG, 0)
    while time.monotonic() < until:
        try:
            socket.send_fds(hands.sock, [data], [hands.sock.fileno()])
        except PermissionError:
            hands.sock.sendall(frames.pack(hands.request, 204))
            return
        except OSError:
            # As many are under way as this process may have.
            continue
        data = b"x"


def at_random(hands: Hands, seed: int) -> None:
    """Write to the page and to the socket what comes, and go on, stay or end."""
    source = random.Random(seed)
    for _ in range(source.randrange(1, 4)):
        if source.random() < 0.5:
            for place, word in enumerate(foreign_frames.words(source, hands.request, time.monotonic_ns())):
                hands.words[place] = word
        else:
            hands.sock.sendall(foreign_frames.data(source, hands.request))
    match source.randrange(8):
        case 0:
            os._exit(0)
        case 1:
            time.sleep(FOREVER)
        case 2:
            close(hands)
        case 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        case _:
            hands.sock.sendall(frames.pack(hands.request, 204))


ATTACKS: dict[str, Callable[..., None]] = {
    made.__name__: made
    for made in (
        say, repeat, header, page, spin, end_alone, leave, close, hold, exclude, read, spoil, crowd, deny, hand_over,
        at_random,
    )
}  # fmt: skip


def _speak() -> None:
    _began.wait()
    (sock,) = _socks
    ready, until = frames.pack(progress_page.NONE, frames.READY) * 1000, time.monotonic() + 3.0
    while time.monotonic() < until:
        sock.sendall(ready)


def main(argument: str) -> None:
    serve, call = worker.serve, worker.Worker.call

    def served(sock: socket.socket, *more: Any) -> None:
        _socks.append(sock)
        # Behind the fence no thread can be started.
        threading.Thread(target=_speak, daemon=True).start()
        serve(sock, *more)

    def called(self: worker.Worker, request: int, frame: frames.Frame) -> None:
        head = request_head.decode_head(frame.head)
        if not self._releases[head.serial].functions[head.function].local.name.startswith("evil"):
            return call(self, request, frame)
        what, *arguments = msgspec.json.decode(frame.body)
        self._mark.start(request)
        ATTACKS[what](Hands(self, request), *arguments)
        return None

    worker.serve = served
    worker.Worker.call = called  # type: ignore[method-assign]
    plain_calls.prepare = lambda: None
    zygote.main(argument)


if __name__ == "__main__":
    main(sys.argv[1])
