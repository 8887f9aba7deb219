"""Keep memory in this process, take it all at once, or return it to the system.

There are two kinds. The first is free memory of glibc's allocator: getting a page again costs more than copying data
into it, and by default the allocator returns a body's pages as soon as the body is freed. The second is mapped pages of
program files, which are never written, so they can be dropped at any time: a later access rereads them from the file.
"""

import ctypes
import mmap
from typing import Final

KEEP: Final = 64 * 1024 * 1024
"""Bytes of free memory kept at the end of the heap until `trim_heap`."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

LARGEST: Final = 32 * 1024 * 1024
"""Bytes of the largest block in the heap: glibc maps larger ones separately."""
_HUGEPAGE: Final = 14
"""MADV_HUGEPAGE."""
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE."""

_LOAD: Final = 1
"""PT_LOAD."""
_WRITABLE: Final = 2
"""PF_W."""
_DONTNEED: Final = 4
"""MADV_DONTNEED."""

_libc: Final = ctypes.CDLL(None)
_libc.malloc.argtypes, _libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def keep_freed(largest: int) -> None:
    """Keep free memory in this process from now on, for blocks up to `largest` bytes (at most `LARGEST`)."""
    _libc.mallopt(_M_TRIM_THRESHOLD, KEEP)
    _libc.mallopt(_M_MMAP_THRESHOLD, largest)


def fill_heap(size: int) -> None:
    """Take `size` bytes, at most `LARGEST`, for the heap from the system at once, in large pages if it has them.

    Taken one by one, when each is first written, pages of 4 KiB cost more than the work with them.
    """
    keep_freed(LARGEST)
    block = _libc.malloc(size)
    if block is None:
        return
    start = (block + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    end = (block + size) & -mmap.PAGESIZE
    # Either may be refused, for instance by an older kernel: the pages are then taken one by one.
    for advice in (_HUGEPAGE, _POPULATE_WRITE):
        _libc.madvise(start, end - start, advice)
    _libc.free(block)


def trim_heap() -> None:
    """Return free memory to the system."""
    _libc.malloc_trim(0)


class _ProgramHeader(ctypes.Structure):
    """Elf64_Phdr."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("file_size", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    )


class _ProgramInfo(ctypes.Structure):
    """The first fields of dl_phdr_info."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_ProgramHeader)),
        ("count", ctypes.c_uint16),
    )


def drop_mapped(path: str = "") -> None:
    """Drop the pages that are mapped from the file `path` and can't be written; for an empty `path`, of all libraries.

    This is for linked and initialized code, and for compiled functions, whose metadata is read only at loading.
    """
    _wanted[0] = path.encode()
    _libc.dl_iterate_phdr(_look, None)


_wanted = [b""]


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_ProgramInfo), ctypes.c_size_t, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _look(info: "ctypes._Pointer[_ProgramInfo]", _size: int, _data: int | None) -> int:
    """Handle one mapped program. Made once, at the import: a fenced process can't make a C callback."""
    program = info.contents
    name, wanted = program.name, _wanted[0]
    if name == wanted or (not wanted and name.startswith(b"/")):
        for segment in program.segments[: program.count]:
            # Not the writable segments: loading filled in addresses there, even if the segment is read-only now.
            if segment.type == _LOAD and not segment.flags & _WRITABLE:
                start = _page(program.base + segment.address + mmap.PAGESIZE - 1)
                end = _page(program.base + segment.address + segment.file_size)
                if end > start:
                    _libc.madvise(start, end - start, _DONTNEED)
    return 0


def _page(address: int) -> int:
    return int(address) & -mmap.PAGESIZE
