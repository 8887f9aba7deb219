"""What glibc's allocator keeps of freed memory. Each page that it takes from the system costs more than to copy what
comes into it, and by itself it returns a body's pages as soon as the body is freed.
"""

import ctypes
import mmap
from typing import Final

KEEP: Final = 64 * 1024 * 1024
"""Bytes of free memory at the end of the heap that are kept until `trim`."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

LARGEST: Final = 32 * 1024 * 1024
"""Bytes of the largest block that the heap can have: glibc maps larger ones by themselves."""
_HUGEPAGE: Final = 14
"""MADV_HUGEPAGE."""
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE."""

_libc: Final = ctypes.CDLL(None)
_libc.malloc.argtypes, _libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def keep(largest: int) -> None:
    """Have this process keep free memory from here on, of blocks up to `largest` bytes (`LARGEST` at most)."""
    _libc.mallopt(_M_TRIM_THRESHOLD, KEEP)
    _libc.mallopt(_M_MMAP_THRESHOLD, largest)


def fill(size: int) -> None:
    """Take `size` bytes for the heap from the system at once, in large pages where it has them. Taken one by one, when
    each is first written, pages of 4 KiB cost more than what is done with them. `size` is `LARGEST` at most.
    """
    keep(LARGEST)
    block = _libc.malloc(size)
    if block is None:
        return
    start = (block + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    end = (block + size) & -mmap.PAGESIZE
    # Either may be refused, as by an older kernel: the pages then come one by one.
    for advice in (_HUGEPAGE, _POPULATE_WRITE):
        _libc.madvise(start, end - start, advice)
    _libc.free(block)


def trim() -> None:
    """Return free memory to the system."""
    _libc.malloc_trim(0)
