"""Pages of program files that this process has mapped and doesn't need now: libraries that were linked and initialised,
and the parts of compiled functions that are only read when they are loaded.

They are never written, so they can be dropped at any time: whoever needs one again finds it in its file.
"""

import ctypes
import mmap
from typing import Any, Final

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
    """dl_phdr_info, as far as it is needed."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_ProgramHeader)),
        ("count", ctypes.c_uint16),
    )


def drop(path: str = "") -> None:
    """Drop the pages of the file `path` that are mapped from it and can't be written; of all libraries, where it is
    empty."""
    _wanted[0] = path.encode()
    _libc.dl_iterate_phdr(_look, None)


_wanted = [b""]


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_ProgramInfo), ctypes.c_size_t, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _look(found: Any, _size: int, _data: Any) -> int:
    """Told one program after the other. Made once, at the import: a fenced child can't make one."""
    program = found.contents
    name, wanted = program.name, _wanted[0]
    if name == wanted or (not wanted and name.startswith(b"/")):
        for segment in program.segments[: program.count]:
            # Where addresses were filled in at loading, the segment is writable, even if it isn't protected as such.
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
