"""Shared memory in which each worker says which call it has started, and how far the call has come.

The memory has a slot for each worker. Each slot is a separate page, the only one that its worker can see, so no worker
can speak for another.

After a worker's death, this lets the front tell the call that ran from those that only waited; and it sees, without
asking, a call that loops, waits for the writer lock, or holds it.
"""

import mmap
import os
import sys
import time
from typing import Final, NamedTuple

from edge_runtime.ipc import log_lines

WORDS: Final = 4
"""Words of a slot that its worker writes, each of 8 bytes and written whole: when the call started, how long it waited
for the writer lock, since when it is in its state (all in ns of the monotonic clock, which processes share), and state
and request id in one word. (`struct` isn't suitable: it clears a field before it writes it, and a reader may see that.)
One more word is the front's: whether a release is being applied."""
LOG_AT: Final = mmap.PAGESIZE
"""Bytes from a slot's start to its log: a word with the number of bytes that the running call has written to stderr,
the last `LOG_BYTES` of them, the byte N at N modulo `LOG_BYTES`, and a word with the number of bytes that it wrote
after that, beyond its function's `log_bytes`."""
LOG_BYTES: Final = 16 * 1024
SLOT_BYTES: Final = LOG_AT + mmap.PAGESIZE + LOG_BYTES
SLOTS: Final = 128
"""The most workers at once."""
CLAIMS_AT: Final = 1024
"""Bytes from a slot's start to its claims (module `claims`), which take 2 KiB."""
_STRIDE: Final = SLOT_BYTES // 8
NONE: Final = 0xFFFF_FFFF
"""The id of no request."""

IDLE: Final = 0
RUNNING: Final = 1
WAITING: Final = 2
"""The call waits for the writer lock."""
WRITING: Final = 3
"""The call holds the writer lock."""
COMMITTING: Final = 4
"""From here on, the call's writes may be kept, whatever happens to the worker."""
LOADING: Final = 5
"""The called function is being loaded: nothing of it runs yet."""
SENT: Final = 6
"""The call runs, may write, and, before its first SQL, sends or has sent an HTTP request that can't be sent twice."""
OF_SQL: Final = (WAITING, WRITING, COMMITTING, SENT)
"""States that only a call with a grant of SQL can have."""
_TRIES: Final = 16
"""How often a slot is reread if it changes meanwhile; an honest worker's slot changes once or twice."""

_LOG_WORD: Final = LOG_AT // 8
_LOG_TEXT: Final = LOG_AT + 8
_LOST_WORD: Final = (_LOG_TEXT + LOG_BYTES) // 8


class Seen(NamedTuple):
    """What a slot said at one moment."""

    started_ns: int
    waited_ns: int
    since_ns: int
    state: int
    request: int


def create() -> int:
    """Return a descriptor of new shared memory, for this process and those that inherit it."""
    descriptor = os.memfd_create("skerry-started", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
    return descriptor


def open_page(descriptor: int) -> memoryview:
    """Map all slots: the front's view."""
    return memoryview(mmap.mmap(descriptor, SLOTS * SLOT_BYTES)).cast("Q")


def open_slot(descriptor: int, slot: int) -> memoryview:
    """Map only one slot, as the first one: its worker's view.

    From Python 3.13 on, the mapping keeps no descriptor through which the worker could map the others.
    """
    at = slot * SLOT_BYTES
    if sys.version_info >= (3, 13):
        opened = mmap.mmap(descriptor, SLOT_BYTES, offset=at, trackfd=False)
    else:
        opened = mmap.mmap(descriptor, SLOT_BYTES, offset=at)
    return memoryview(opened).cast("Q")


def read(words: memoryview, slot: int, since: float = 0.0) -> Seen:
    """Return what a slot says at one moment while its worker goes on writing, as far as it is plausible.

    A guest may have taken over the worker and write anything. A slot that changes all the time says nothing. A time in
    the future is replaced by `since`, when the worker's first job became the first (monotonic clock, seconds).
    """
    at = slot * _STRIDE
    for _ in range(_TRIES):
        last = words[at + 3]
        started, waited, entered = words[at], words[at + 1], words[at + 2]
        if words[at + 3] == last:
            now, first, state = time.monotonic_ns(), int(since * 1e9), last >> 32
            if started > now:
                started = first
            return Seen(
                started,
                waited if waited <= now - started else 0,
                entered if entered <= now else first,
                state if state <= SENT else RUNNING,
                last & NONE,
            )
    return Seen(0, 0, 0, IDLE, NONE)


def clear(words: memoryview, slot: int) -> None:
    """Reset a slot; the front does it before a new worker is started."""
    Mark(words, slot).clear()


def log(words: memoryview, slot: int) -> bytes:
    """Return what a dead worker's running call wrote to stderr, or the end of it, with lines that say what is missing.
    The worker may have been taken over: the bytes can be anything."""
    written, lost = words[slot * _STRIDE + _LOG_WORD], words[slot * _STRIDE + _LOST_WORD]
    start = slot * SLOT_BYTES + _LOG_TEXT
    text = bytes(words.cast("B")[start : start + LOG_BYTES])
    if written <= LOG_BYTES:
        text = text[:written]
    else:
        at = written % LOG_BYTES
        text = text[at:] + text[:at]
        # Its first line is incomplete.
        text = text[text.find(b"\n") + 1 :]
        text = log_lines.LINE % (written - len(text)) + text
    return log_lines.with_loss(text, lost) if lost else text


def set_applying(words: memoryview, slot: int, applying: bool) -> None:
    """Tell the worker of a slot whether a release is being applied."""
    words[slot * _STRIDE + WORDS] = applying


class Mark:
    """A worker's own slot, for writing."""

    def __init__(self, words: memoryview, slot: int) -> None:
        self._words = words
        self._at = slot * _STRIDE
        self._last = self._at + WORDS - 1
        self._request = NONE
        self._waiting = False
        self._started_ns = 0

    @property
    def started(self) -> float:
        """When the call was started (monotonic clock, seconds)."""
        return self._started_ns / 1e9

    def clear(self) -> None:
        """Reset the slot: no call has been started."""
        self._words[self._last] = NONE
        logged = self._at + _LOG_WORD, self._at + _LOST_WORD
        for word in (*range(self._at, self._last), self._last + 1, *logged):
            self._words[word] = 0

    def loading(self, request: int) -> None:
        """Note that the function of call `request` is about to be loaded; `start` or, if that fails, `end` follows."""
        self._words[self._last] = NONE
        self._words[self._at + _LOG_WORD] = self._words[self._at + _LOST_WORD] = 0
        self._request = request
        self._enter(LOADING)

    def start(self, request: int) -> None:
        """Note that the guest of call `request` is about to run."""
        words, at = self._words, self._at
        # No request, while the times may belong to either call.
        words[self._last] = NONE
        words[at] = self._started_ns = time.monotonic_ns()
        words[at + 1] = 0
        words[at + _LOG_WORD] = words[at + _LOST_WORD] = 0
        self._request = request
        self._waiting = False
        words[self._last] = RUNNING << 32 | request

    def take_over(self, request: int, started_ns: int) -> None:
        """Take over the slot for call `request`, which other code has started in it."""
        self._request, self._started_ns = request, started_ns
        self._waiting = False

    @property
    def applying(self) -> bool:
        """Whether a release is being applied, under the writer lock."""
        return self._words[self._last + 1] != 0

    def waiting(self) -> None:
        """Note that the call waits for the writer lock."""
        self._waiting = True
        self._enter(WAITING)

    def writing(self) -> None:
        """Note that the call has got the writer lock."""
        self._count_waiting()
        self._enter(WRITING)

    def committing(self) -> None:
        """Note that the call is about to commit."""
        self._enter(COMMITTING)

    def sending(self) -> None:
        """Note that the call sends an HTTP request that can't be sent twice."""
        self._enter(SENT)

    def running(self) -> None:
        """Note that the call has released the writer lock without a commit, or no longer waits for it."""
        self._count_waiting()
        self._words[self._last] = RUNNING << 32 | self._request

    def end(self) -> None:
        """Note that the call's answer is sent."""
        self._words[self._last] = IDLE << 32 | self._request

    def _count_waiting(self) -> None:
        """Add the time since `waiting` to the call's waiting time."""
        if self._waiting:
            self._waiting = False
            words, at = self._words, self._at
            words[at + 1] += time.monotonic_ns() - words[at + 2]

    def _enter(self, state: int) -> None:
        # The time comes first: a new state with the old state's time would seem to have lasted long.
        self._words[self._at + 2] = time.monotonic_ns()
        self._words[self._last] = state << 32 | self._request


class LogPage:
    """The log of a worker's own slot, for writing."""

    def __init__(self, words: memoryview, slot: int) -> None:
        self._words = words
        self._count = slot * _STRIDE + _LOG_WORD
        self._lost = slot * _STRIDE + _LOST_WORD
        start = slot * SLOT_BYTES + _LOG_TEXT
        self._text = words.cast("B")[start : start + LOG_BYTES]

    def add(self, text: bytes | memoryview) -> None:
        """Note that the running call has written this to stderr."""
        written, size = self._words[self._count], len(text)
        kept = text[-LOG_BYTES:]
        at = (written + size - len(kept)) % LOG_BYTES
        first = kept[: LOG_BYTES - at]
        self._text[at : at + len(first)] = first
        if len(first) < len(kept):
            self._text[: len(kept) - len(first)] = kept[len(first) :]
        self._words[self._count] = written + size

    def lose(self, count: int) -> None:
        """Note that the running call has written this many bytes more than its function may log."""
        self._words[self._lost] += count
