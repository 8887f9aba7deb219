"""Claims decide who owns a call that is queued in a worker: the worker, when it gets to it, or the front, when it takes
it back.

Each queued call has a semaphore in the worker's slot of the shared page. The front raises it when it sends the call.
The side that lowers it owns the call: the worker before it runs the call, or the front before it dispatches the call
elsewhere. Python has no atomic operation between processes; libc's semaphores are correct on every processor.
"""

from typing import Any, Final

from edge_runtime.ipc import progress_page, semaphores_h

CLAIMS: Final = 64
"""Semaphores of a worker; a call uses the one at its id modulo this number."""
ROOM: Final = 40
"""The most unread frames that a worker may have, so that no two of them share a semaphore."""

_ffi: Final[Any] = semaphores_h.ffi
_libc: Final[Any] = _ffi.dlopen(None)
_BYTES: Final = _ffi.sizeof("sem_t") * CLAIMS


class Claims:
    """The claims of one worker, on either side."""

    __slots__ = ("_each", "_memory", "_post", "_try")

    def __init__(self, words: memoryview, slot: int) -> None:
        start = slot * progress_page.SLOT_BYTES + progress_page.CLAIMS_AT
        # Kept so that the mapping stays: pointers into it don't keep it.
        self._memory = _ffi.from_buffer("sem_t[]", words.cast("B")[start : start + _BYTES], require_writable=True)
        self._each = [self._memory + number for number in range(CLAIMS)]
        self._post, self._try = _libc.sem_post, _libc.sem_trywait

    def clear(self) -> None:
        """Reset all claims; the front does it before a new worker is started."""
        for claim in self._each:
            _libc.sem_init(claim, 1, 0)

    def offer(self, request: int) -> None:
        """Make a call claimable; the front does it before it sends the call's frame."""
        self._post(self._each[request % CLAIMS])

    def take(self, request: int) -> bool:
        """Claim a call; return whether this side owns it now. If not, the other side does."""
        return bool(self._try(self._each[request % CLAIMS]) == 0)
