"""The page that the front and its workers share: which request each worker has started, and how far it has come.

Each slot is a page of memory of its own, the only one that its worker can see: none can speak for another.

It is how the front tells, after a worker's death, the request that ran from those that only waited, and how it sees a
call that loops, waits for the writer lock, or holds it, without asking.
"""

import mmap
import os
import sys
import time
from typing import Final, NamedTuple

WORDS: Final = 4
"""Of a slot, 8 bytes each, written whole: start of the call, time that it waited for the writer lock, since when it is
in its state (ns of the monotonic clock, which all processes share), and state and request id in one. (`struct` would
not do: it clears what it is about to write, and a reader may come in between.) One more is the front's: whether a
release is being applied."""
SLOT_BYTES: Final = mmap.PAGESIZE
SLOTS: Final = 128
CLAIMS_AT: Final = 1024
"""Bytes from a slot's start to its `claims`, 2 KiB."""
_STRIDE: Final = SLOT_BYTES // 8
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
LOADING: Final = 5
"""The function that it calls is being loaded: nothing of it runs yet."""

SENT: Final = 6
"""It runs, may write, and sends or has sent what can't be sent twice, before its first SQL."""


class Seen(NamedTuple):
    started_ns: int
    waited_ns: int
    since_ns: int
    state: int
    request: int


def create() -> int:
    """A descriptor of new slots, for this process and those that inherit it."""
    descriptor = os.memfd_create("skerry-started", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
    return descriptor


def open_page(descriptor: int) -> memoryview:
    """All slots: the front's view."""
    return memoryview(mmap.mmap(descriptor, SLOTS * SLOT_BYTES)).cast("Q")


def open_slot(descriptor: int, slot: int) -> memoryview:
    """One slot alone, as the first: its worker's view. From Python 3.13 on it keeps no descriptor of all of them."""
    at = slot * SLOT_BYTES
    if sys.version_info >= (3, 13):
        opened = mmap.mmap(descriptor, SLOT_BYTES, offset=at, trackfd=False)
    else:
        opened = mmap.mmap(descriptor, SLOT_BYTES, offset=at)
    return memoryview(opened).cast("Q")


def read(words: memoryview, slot: int) -> Seen:
    """One moment of a slot, while its worker goes on writing."""
    at = slot * _STRIDE
    while True:
        last = words[at + 3]
        seen = Seen(words[at], words[at + 1], words[at + 2], last >> 32, last & NONE)
        if words[at + 3] == last:
            return seen


def clear(words: memoryview, slot: int) -> None:
    """For a new worker, before it is born."""
    Mark(words, slot).clear()


def set_applying(words: memoryview, slot: int, applying: bool) -> None:
    """Tell the worker of a slot whether a release is being applied."""
    words[slot * _STRIDE + WORDS] = applying


class Mark:
    """A worker's own slot."""

    def __init__(self, words: memoryview, slot: int) -> None:
        self._words = words
        self._at = slot * _STRIDE
        self._last = self._at + WORDS - 1
        self._request = NONE
        self._waiting = False

    def clear(self) -> None:
        self._words[self._last] = NONE
        for word in (*range(self._at, self._last), self._last + 1):
            self._words[word] = 0

    def loading(self, request: int) -> None:
        """The function of `request` is about to be loaded; `start` follows, or `end` where it can't be called."""
        self._words[self._last] = NONE
        self._request = request
        self._enter(LOADING)

    def start(self, request: int) -> None:
        """The guest of `request` is about to run."""
        words, at = self._words, self._at
        # No request, as long as the times may be of either.
        words[self._last] = NONE
        words[at] = time.monotonic_ns()
        words[at + 1] = 0
        self._request = request
        self._waiting = False
        words[self._last] = RUNNING << 32 | request

    @property
    def applying(self) -> bool:
        """Whether a release is being applied, under the writer lock."""
        return self._words[self._last + 1] != 0

    def waiting(self) -> None:
        """It waits for the writer lock."""
        self._waiting = True
        self._enter(WAITING)

    def writing(self) -> None:
        """It has got the writer lock."""
        if self._waiting:
            self._waiting = False
            words, at = self._words, self._at
            words[at + 1] += time.monotonic_ns() - words[at + 2]
        self._enter(WRITING)

    def committing(self) -> None:
        self._enter(COMMITTING)

    def sending(self) -> None:
        """It sends what can't be sent twice."""
        self._enter(SENT)

    def running(self) -> None:
        """It has let the writer lock go without a commit."""
        self._words[self._last] = RUNNING << 32 | self._request

    def end(self) -> None:
        """The answer is sent."""
        self._words[self._last] = IDLE << 32 | self._request

    def _enter(self, state: int) -> None:
        # The time first: a state beside the time of the one before it would seem to have lasted.
        self._words[self._at + 2] = time.monotonic_ns()
        self._words[self._last] = state << 32 | self._request
