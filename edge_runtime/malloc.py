"""What glibc's allocator keeps of freed memory. Each page that it takes from the system costs more than to copy what
comes into it, and by itself it returns a body's pages as soon as the body is freed.
"""

import ctypes
from typing import Final

KEEP: Final = 64 * 1024 * 1024
"""Bytes of free memory at the end of the heap that are kept until `trim`."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_libc: Final = ctypes.CDLL(None)


def keep(largest: int) -> None:
    """Have this process keep free memory from here on, of blocks up to `largest` bytes (32 MiB at most)."""
    _libc.mallopt(_M_TRIM_THRESHOLD, KEEP)
    _libc.mallopt(_M_MMAP_THRESHOLD, largest)


def trim() -> None:
    """Return free memory to the system."""
    _libc.malloc_trim(0)
