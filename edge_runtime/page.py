"""The page that the front and its workers share: which request each worker has started, and how far it has come.

It is how the front tells, after a worker's death, the request that ran from those that only waited, and how it sees a
call that loops, waits for the writer lock, or holds it, without asking. One slot a worker, written by it alone.
"""

import mmap
import os
import struct
import time
from typing import Final, NamedTuple

SLOT: Final = struct.Struct("<qqqII")
"""Start of the call, time that it waited for the writer lock, since when it is in its state (ns of the monotonic
clock, which all processes share), state, request id. The id comes last: a reader never sees it beside older times."""
SLOT_BYTES: Final = 32
PAGE_BYTES: Final = 4096
SLOTS: Final = PAGE_BYTES // SLOT_BYTES
NONE: Final = 0xFFFF_FFFF
"""The id of no request."""

IDLE: Final = 0
RUNNING: Final = 1
WAITING: Final = 2
"""For the writer lock."""
WRITING: Final = 3
"""It holds the writer lock."""
COMMITTING: Final = 4
"""What it wrote may be kept from here on, whatever happens to the worker."""

_STATE: Final = struct.Struct("<qqI")
_STATE_AT: Final = 8
_RUNNING: Final = struct.Struct("<qqqI")
_ID: Final = struct.Struct("<I")
_ID_AT: Final = 28


class Seen(NamedTuple):
    started_ns: int
    waited_ns: int
    since_ns: int
    state: int
    request: int


def create() -> int:
    """A descriptor of a new page, for this process and those that inherit it."""
    descriptor = os.memfd_create("skerry-started", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor


def open_page(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, PAGE_BYTES)


def read(page: mmap.mmap, slot: int) -> Seen:
    return Seen(*SLOT.unpack_from(page, slot * SLOT_BYTES))


def clear(page: mmap.mmap, slot: int) -> None:
    """For a new worker, before it is born."""
    SLOT.pack_into(page, slot * SLOT_BYTES, 0, 0, 0, IDLE, NONE)


class Mark:
    """A worker's own slot."""

    def __init__(self, page: mmap.mmap, slot: int) -> None:
        self._page = page
        self._at = slot * SLOT_BYTES
        self._waited = 0
        self._since = 0

    def start(self, request: int) -> None:
        """The guest of `request` is about to run."""
        self._waited = self._since = 0
        _RUNNING.pack_into(self._page, self._at, time.monotonic_ns(), 0, 0, RUNNING)
        _ID.pack_into(self._page, self._at + _ID_AT, request)

    def waiting(self) -> None:
        """It waits for the writer lock."""
        self._since = time.monotonic_ns()
        self._set(WAITING)

    def writing(self) -> None:
        """It has got the writer lock."""
        now = time.monotonic_ns()
        if self._since:
            self._waited += now - self._since
        self._since = now
        self._set(WRITING)

    def committing(self) -> None:
        self._since = time.monotonic_ns()
        self._set(COMMITTING)

    def running(self) -> None:
        """It has let the writer lock go without a commit."""
        self._since = 0
        self._set(RUNNING)

    def end(self) -> None:
        """The answer is sent."""
        _STATE.pack_into(self._page, self._at + _STATE_AT, 0, 0, IDLE)

    def _set(self, state: int) -> None:
        _STATE.pack_into(self._page, self._at + _STATE_AT, self._waited, self._since, state)
