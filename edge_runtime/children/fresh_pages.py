"""Has what this process's children allocate come from pages of their own.

A process that is forked writes where its parent's allocators have free room, which is a little of everywhere: each
such page is copied for it. So the parent takes all of that room before it forks, and keeps it; its children then
allocate from pages that nobody has used, one after the other.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final

from edge_runtime.wasmedge.declarations import libc

_POOL: Final = 16 * 1024
"""Bytes of a pool of Python's allocator, which has blocks of one size."""
_POOL_HEAD: Final = 48
"""Bytes of a pool before its first block."""
_SMALLEST, _LARGEST = 16, 512
"""Bytes of such blocks, which come in steps of 16."""
_IN_A_ROW: Final = 5
"""Blocks, from the first one of a pool on, by which a new pool is known."""
_MOST: Final = 4_000
"""Objects of one size that are made at most: where no new pool shows by then, Python has another allocator."""
_HOLE: Final = 64 * 1024
"""Bytes of the largest hole in glibc's heap that is filled; larger ones are mostly whole pages."""

_libc: Final = ctypes.CDLL(None)
_libc.malloc.restype = _libc.sbrk.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.sbrk.argtypes = (ctypes.c_ssize_t,)

_kept: Final[list[Any]] = []


def use() -> None:
    """Fill what the allocators have free in pages that are used."""
    for size in range(_SMALLEST, _LARGEST + 1, 16):
        _fill_pools(_maker(size))
    _fill_holes()


def _maker(size: int) -> Callable[[], Any]:
    """Return what makes an object of so many bytes, without any for the collector."""
    if size == 16:
        return object
    if size == 32:
        return lambda: float("1.5")
    return lambda: bytes(size - 33)


def _fill_pools(make: Callable[[], Any]) -> None:
    """Make objects of one size until they come from a new pool."""
    made: list[Any] = []
    row, last, step = 0, 0, 0
    while row < _IN_A_ROW and len(made) < _MOST:
        each = make()
        address = id(each)
        if address % _POOL == _POOL_HEAD:
            row, step = 1, 0
        elif row and address - last == (step or address - last) > 0:
            row, step = row + 1, address - last
        else:
            row = 0
        last = address
        made.append(each)
    if row == _IN_A_ROW:
        _kept.append(made[:-row])


def _fill_holes() -> None:
    """Allocate pieces of decreasing sizes until none of any size comes from below the end of glibc's heap."""
    end = _libc.sbrk(0) - libc.mallinfo2().keepcost
    size = _HOLE
    while size >= _SMALLEST:
        piece = _libc.malloc(size)
        if piece is None or piece >= end:
            _libc.free(piece)
            size = size - 16 if size <= 1024 else size // 2
