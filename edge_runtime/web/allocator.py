"""The allocator of this process: memory of bodies is used again while bodies pass, and returned to the system after."""

import ctypes
from typing import Final

KEEP: Final = 64 * 1024 * 1024
"""Bytes of free memory at the end of the heap that the allocator keeps. By itself it returns more than a few hundred
KB at once, and each page that it takes again costs more than to copy what comes into it."""
LARGEST: Final = 1024 * 1024
"""Bytes from which on a block is asked of the system, and returned to it when it is freed. Bodies come in smaller
pieces."""
TRIM_AFTER: Final = 16 * 1024 * 1024
"""Bytes of bodies that have passed, after which free memory is returned to the system."""
LOOKS: Final = 30
"""Looks after which it is returned even if bodies go on passing."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_libc: Final = ctypes.CDLL(None)


class Allocator:
    """glibc keeps a freed block if one that is in use lies behind it: hundreds of MB after a crowd of clients."""

    def __init__(self) -> None:
        self.passed = 0
        """Bytes of request bodies and large answers that have passed since memory was last returned."""
        self._before = 0
        """Of them, those that had passed at the last look."""
        self._looks = 0
        """Looks since memory was to be returned, while bodies passed."""

    def keep(self) -> None:
        """Have the allocator keep free memory from here on, until `look` returns it."""
        _libc.mallopt(_M_TRIM_THRESHOLD, KEEP)
        _libc.mallopt(_M_MMAP_THRESHOLD, LARGEST)

    def look(self, *, held: bool) -> None:
        """Return free memory, if bodies have passed and no more do. To be called once a second; `held` tells whether
        bodies are in memory, which will leave room as well."""
        if self.passed < TRIM_AFTER:
            return
        self._looks += 1
        if self.passed != self._before and self._looks < LOOKS:
            self._before = self.passed
            return
        self.passed = self._before = TRIM_AFTER if held else 0
        self._looks = 0
        _libc.malloc_trim(0)
