"""Gives back mapped pages of program files that this process doesn't need now: of libraries that are linked and
initialized, and of compiled functions, whose metadata is read at loading alone.

Such pages are never written, so they can be dropped at any time: a later access reads them from the file again.
"""

import ctypes
import mmap
from typing import Final

_LOAD: Final = 1
"""PT_LOAD."""
_WRITABLE: Final = 2
"""PF_W."""
_DONTNEED: Final = 4
"""MADV_DONTNEED."""


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


def drop(path: str = "") -> None:
    """Drop the pages of the file `path` that are mapped from it and can't be written; for an empty `path`, those of all
    libraries."""
    _wanted[0] = path.encode()
    _libc.dl_iterate_phdr(_look, None)


_wanted = [b""]


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_ProgramInfo), ctypes.c_size_t, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _look(info: "ctypes._Pointer[_ProgramInfo]", _size: int, _data: int | None) -> int:
    """Called with each mapped program in turn. Made once, at the import: a fenced process can't make a C callback."""
    program = info.contents
    name, wanted = program.name, _wanted[0]
    if name == wanted or (not wanted and name.startswith(b"/")):
        for segment in program.segments[: program.count]:
            # Not the writable segments: there, addresses were filled in at loading, even where the segment is read-only
            # now.
            if segment.type == _LOAD and not segment.flags & _WRITABLE:
                start = _page(program.base + segment.address + mmap.PAGESIZE - 1)
                end = _page(program.base + segment.address + segment.file_size)
                if end > start:
                    _libc.madvise(start, end - start, _DONTNEED)
    return 0


def _page(address: int) -> int:
    return int(address) & -mmap.PAGESIZE


_libc: Final = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int)
