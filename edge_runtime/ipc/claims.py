"""Claims: who owns a call that was queued in a worker, the worker that comes to it or the front that takes it back?

One semaphore a queued call, in the worker's slot of the shared page: the front offers the call with it, and whoever
gets it down owns the call, the worker before it runs it, or the front before it dispatches it elsewhere. Python has no
atomic operation between processes; these are libc's, correct on every processor that it runs on.
"""

from typing import Any, Final

import cffi

from edge_runtime.ipc import progress_page

CLAIMS: Final = 64
"""Of a worker. A call's is the one of its id modulo this."""
ROOM: Final = 40
"""Frames that a worker may have unread, at most: no two of them may share a claim."""

_ffi: Final = cffi.FFI()
_ffi.cdef(
    """
    typedef union { char size[32]; long align; } sem_t;  // of every 64-bit Linux
    int sem_init(sem_t *sem, int shared, unsigned int value);
    int sem_post(sem_t *sem);
    int sem_trywait(sem_t *sem);
    """
)
_libc: Final[Any] = _ffi.dlopen(None)
_BYTES: Final = _ffi.sizeof("sem_t") * CLAIMS


class Claims:
    """Of one worker, on either side."""

    __slots__ = ("_each", "_memory", "_post", "_try")

    def __init__(self, words: memoryview, slot: int) -> None:
        start = slot * progress_page.SLOT_BYTES + progress_page.CLAIMS_AT
        # Kept, and with it the mapping: pointers into it don't.
        self._memory = _ffi.from_buffer("sem_t[]", words.cast("B")[start : start + _BYTES], require_writable=True)
        self._each = [self._memory + number for number in range(CLAIMS)]
        self._post, self._try = _libc.sem_post, _libc.sem_trywait

    def clear(self) -> None:
        """For a new worker, before it is born."""
        for claim in self._each:
            _libc.sem_init(claim, 1, 0)

    def offer(self, request: int) -> None:
        """The front's, before it sends the call's frame."""
        self._post(self._each[request % CLAIMS])

    def take(self, request: int) -> bool:
        """Whether the call is the caller's now; if not, the other side has it."""
        return bool(self._try(self._each[request % CLAIMS]) == 0)
